//! The JSON header of one file, and the ranges it claims.
//!
//! The JSON is read as a stream into small checked records, never into a tree: a header is bounded
//! in size, and so is what can be built from it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::DType;
use crate::error::{Blame, FileError, quote};
use crate::tensor::{TensorEntry, TensorTable, tensor_field};

/// What a header says.
pub(super) struct Parsed {
    pub(super) tensors: TensorTable,
    pub(super) unread: BTreeMap<String, String>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// Bytes of the header; the format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Tensors in one file (models of experts kept apart have under 100,000).
const MAX_TENSORS: usize = 1 << 18;
/// Bytes of a tensor name.
const MAX_NAME_BYTES: usize = 1024;
/// Dimensions of a tensor.
const MAX_DIMS: usize = 8;
/// Keys of `__metadata__`.
const MAX_METADATA_KEYS: usize = 4096;

const METADATA_KEY: &str = "__metadata__";
/// Length of the header's length.
const LENGTH_BYTES: usize = 8;

/// Reads the header of `bytes`, which is part number `part` of a model.
pub(super) fn parse(bytes: &[u8], part: usize, blame: &Blame) -> Result<Parsed, FileError> {
    let json = header_json(bytes, blame)?;
    let data_start = LENGTH_BYTES + json.len();
    let (entries, metadata) = parse_json(json, blame)?;

    let mut parsed = Parsed { tensors: TensorTable::default(), unread: BTreeMap::new(), metadata };
    let mut order: Vec<&RawTensor> = entries.iter().collect();
    order.sort_by_key(|raw| (raw.begin, raw.end));
    check_cover(&order, (bytes.len() - data_start) as u64, data_start, bytes.len(), blame)?;

    for raw in entries {
        let n_bytes = raw.end - raw.begin;
        let element = element_type(&raw.dtype)
            .ok_or_else(|| blame.unknown_type(format!("{}: dtype", tensor_field(&raw.name)), quote(&raw.dtype)))?;
        let shape = check_shape(&raw, element.bits(), n_bytes, blame)?;
        // inside the file: `check_cover` compared every range with its size
        let start = data_start + raw.begin as usize;
        match element {
            Element::Read(dtype) => {
                let entry = TensorEntry { dtype, shape, part, range: start..start + n_bytes as usize };
                parsed.tensors.insert(raw.name, entry, blame)?;
            }
            Element::Unread { .. } => {
                parsed.unread.insert(raw.name, raw.dtype);
            }
        }
    }
    Ok(parsed)
}

fn header_json<'a>(bytes: &'a [u8], blame: &Blame) -> Result<&'a [u8], FileError> {
    let field = "header length";
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(blame.past_end(field, 0, LENGTH_BYTES as u64, bytes.len()));
    };
    let n = u64::from_le_bytes(*length);
    if n > rest.len() as u64 {
        return Err(blame.past_end(field, LENGTH_BYTES as u64, n, bytes.len()));
    }
    if n > MAX_HEADER_BYTES {
        return Err(blame.limit(field, n, MAX_HEADER_BYTES));
    }
    Ok(&rest[..n as usize])
}

/// One tensor as the header has it. `begin <= end`, both from the start of the data.
struct RawTensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    begin: u64,
    end: u64,
}

type Metadata = BTreeMap<String, String>;

fn parse_json(json: &[u8], blame: &Blame) -> Result<(Vec<RawTensor>, Metadata), FileError> {
    if json.first() != Some(&b'{') {
        return Err(blame.format("is not a safetensors file: its header does not begin with \"{\""));
    }
    let name = RefCell::new(String::new());
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let header = HeaderSeed { name: &name }
        .deserialize(&mut deserializer)
        .and_then(|header| deserializer.end().map(|()| header))
        .map_err(|e| {
            let name = name.borrow();
            let field = if name.is_empty() { "header".to_owned() } else { format!("header: {}", quote(&name)) };
            blame.invalid(field, e.to_string())
        })?;
    let mut names: Vec<&str> = header.0.iter().map(|raw| raw.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(blame.duplicate(tensor_field(pair[0])));
    }
    for raw in &header.0 {
        if raw.begin > raw.end {
            let reason = format!("data_offsets begin at {} and end at {}", raw.begin, raw.end);
            return Err(blame.invalid(tensor_field(&raw.name), reason));
        }
    }
    Ok(header)
}

/// Refuses ranges that overlap, leave holes, or do not end where the file does.
fn check_cover(
    order: &[&RawTensor],
    n_data_bytes: u64,
    data_start: usize,
    file_bytes: usize,
    blame: &Blame,
) -> Result<(), FileError> {
    let mut at = 0;
    let mut previous: Option<&RawTensor> = None;
    for raw in order {
        if raw.end > n_data_bytes {
            let offset = (data_start as u64).saturating_add(raw.begin);
            return Err(blame.past_end(tensor_field(&raw.name), offset, raw.end - raw.begin, file_bytes));
        }
        match previous {
            Some(previous) if raw.begin < at => {
                return Err(blame.overlap(tensor_field(&raw.name), tensor_field(&previous.name)));
            }
            _ if raw.begin != at => {
                let reason = format!("data begins at {}, but the data before it ends at {at}", raw.begin);
                return Err(blame.invalid(tensor_field(&raw.name), reason));
            }
            _ => {}
        }
        at = raw.end;
        previous = Some(raw);
    }
    if at != n_data_bytes {
        return Err(blame.invalid("data", format!("tensors cover {at} of {n_data_bytes} bytes")));
    }
    Ok(())
}

fn check_shape(raw: &RawTensor, bits: u64, n_bytes: u64, blame: &Blame) -> Result<Vec<usize>, FileError> {
    let field = || format!("{}: shape", tensor_field(&raw.name));
    let product = raw.shape.iter().try_fold(bits, |product, dim| product.checked_mul(*dim));
    match product {
        Some(n_bits) if n_bits.is_multiple_of(8) && n_bits / 8 == n_bytes => {}
        Some(_) => {
            let reason = format!("{:?} of {} does not take the {n_bytes} bytes of data_offsets", raw.shape, raw.dtype);
            return Err(blame.invalid(field(), reason));
        }
        None => return Err(blame.invalid(field(), format!("the product of {:?} overflows", raw.shape))),
    }
    let convert = |dim: &u64| usize::try_from(*dim).map_err(|_| blame.limit(field(), *dim, usize::MAX as u64));
    raw.shape.iter().map(convert).collect()
}

/// The format's element types.
#[derive(Clone, Copy)]
enum Element {
    Read(DType),
    Unread { bits: u64 },
}

impl Element {
    fn bits(self) -> u64 {
        match self {
            Element::Read(dtype) => dtype.block_bytes() as u64 * 8,
            Element::Unread { bits } => bits,
        }
    }
}

fn element_type(name: &str) -> Option<Element> {
    Some(match name {
        "F32" => Element::Read(DType::F32),
        "F16" => Element::Read(DType::F16),
        "BF16" => Element::Read(DType::BF16),
        "F4" => Element::Unread { bits: 4 },
        "F6_E2M3" | "F6_E3M2" => Element::Unread { bits: 6 },
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => Element::Unread { bits: 8 },
        "U16" | "I16" => Element::Unread { bits: 16 },
        "U32" | "I32" => Element::Unread { bits: 32 },
        "U64" | "I64" | "F64" | "C64" => Element::Unread { bits: 64 },
        _ => return None,
    })
}

/// Reads the whole header; leaves the name of the entry it is at in `name`, for messages.
struct HeaderSeed<'a> {
    name: &'a RefCell<String>,
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = (Vec<RawTensor>, Metadata);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = (Vec<RawTensor>, Metadata);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut tensors = Vec::new();
        let mut metadata = None;
        while let Some(BoundedText(name)) = map.next_key()? {
            self.name.replace(name.clone());
            if name == METADATA_KEY {
                let BoundedMap(found) = map.next_value()?;
                if metadata.replace(found).is_some() {
                    return Err(A::Error::custom("occurs twice"));
                }
            } else {
                if tensors.len() == MAX_TENSORS {
                    return Err(A::Error::custom(format!("is over the limit of {MAX_TENSORS} tensors")));
                }
                let Entry { dtype, shape, data_offsets: [begin, end] } = map.next_value()?;
                tensors.push(RawTensor { name, dtype: dtype.0, shape: shape.0, begin, end });
            }
            self.name.borrow_mut().clear();
        }
        Ok((tensors, metadata.unwrap_or_default()))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: BoundedText,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// A string of at most [`MAX_NAME_BYTES`].
struct BoundedText(String);

impl<'de> Deserialize<'de> for BoundedText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        if text.len() > MAX_NAME_BYTES {
            let reason = format!("a name of {} bytes is over the limit of {MAX_NAME_BYTES}", text.len());
            return Err(D::Error::custom(reason));
        }
        Ok(BoundedText(text.into_owned()))
    }
}

/// At most [`MAX_DIMS`] dimensions.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == MAX_DIMS {
                        return Err(A::Error::custom(format!("shape is over the limit of {MAX_DIMS} dimensions")));
                    }
                    dims.push(dim);
                }
                Ok(Shape(dims))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}

/// Strings by key, at most [`MAX_METADATA_KEYS`], keys unique.
struct BoundedMap(Metadata);

impl<'de> Deserialize<'de> for BoundedMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = BoundedMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BoundedMap, A::Error> {
                let mut pairs = Metadata::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if pairs.len() == MAX_METADATA_KEYS {
                        return Err(A::Error::custom(format!("is over the limit of {MAX_METADATA_KEYS} keys")));
                    }
                    if pairs.contains_key(&key) {
                        return Err(A::Error::custom(format!("key {} occurs twice", quote(&key))));
                    }
                    pairs.insert(key, value);
                }
                Ok(BoundedMap(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}
