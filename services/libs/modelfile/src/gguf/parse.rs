//! From bytes to metadata and a checked tensor table.

use super::cursor::Cursor;
use super::metadata::{Metadata, key_field};
use super::value::{Array, Strings, Value, ValueType};
use crate::DType;
use crate::error::{Blame, FileError};
use crate::tensor::{TensorEntry, TensorTable, tensor_field};

/// What the file says about itself.
pub(super) struct Parsed {
    pub(super) version: u32,
    pub(super) alignment: usize,
    pub(super) metadata: Metadata,
    pub(super) tensors: TensorTable,
}

/// Metadata keys in a file (real files have under 100).
const MAX_KEYS: usize = 1 << 16;
/// Tensors in a file (the largest published models have a few thousand).
const MAX_TENSORS: usize = 1 << 16;
/// Bytes of a metadata key; the format's own limit.
const MAX_KEY_BYTES: usize = (1 << 16) - 1;
/// Bytes of a tensor name (ggml itself takes 63).
const MAX_NAME_BYTES: usize = 1024;
/// Arrays inside arrays.
const MAX_ARRAY_DEPTH: usize = 4;
/// Arrays inside one array, all levels together.
const MAX_NESTED_ARRAYS: usize = 1 << 16;
/// Dimensions of a tensor; the format's own limit.
const MAX_DIMS: u32 = 4;
/// Alignment of tensor data unless the metadata says otherwise, in bytes.
const DEFAULT_ALIGNMENT: u32 = 32;

/// The least bytes a key and its value can take: length, type, a one-byte value.
const MIN_KEY_BYTES: usize = 8 + 4 + 1;
/// The least bytes an entry of the tensor table can take: length, rank, one dimension, type, offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;

const ALIGNMENT_KEY: &str = "general.alignment";

pub(super) fn parse(bytes: &[u8], blame: &Blame) -> Result<Parsed, FileError> {
    let mut cursor = Cursor::new(bytes, blame);
    let version = read_version(&mut cursor, blame)?;
    // the tensor count comes first in the file; metadata lies in between, so it is checked again
    // against what is left by the reads themselves
    let n_tensors = cursor.count("tensor count", MIN_TENSOR_BYTES, MAX_TENSORS)?;
    let n_keys = cursor.count("metadata count", MIN_KEY_BYTES, MAX_KEYS)?;

    let mut metadata = Metadata::new(blame.clone());
    for index in 0..n_keys {
        cursor.enter(format!("metadata key {index}"));
        let key = cursor.string("name", MAX_KEY_BYTES)?;
        cursor.enter(key_field(key));
        let value = read_value(&mut cursor, blame)?;
        metadata.insert(key.to_owned(), value)?;
    }
    let alignment = alignment(&metadata)?;
    refuse_split(&metadata)?;

    let mut infos = Vec::with_capacity(n_tensors);
    for index in 0..n_tensors {
        cursor.enter(format!("tensor {index}"));
        infos.push(read_tensor_info(&mut cursor, blame)?);
    }

    // without tensors there need be no data section, so its start may lie past the end
    let data_start = (cursor.pos() as u64).next_multiple_of(alignment as u64);
    let mut tensors = TensorTable::default();
    for info in infos {
        let entry = locate(&info, data_start, alignment as u64, bytes.len(), blame)?;
        tensors.insert(info.name, entry, blame)?;
    }
    tensors.check_overlap(blame)?;
    Ok(Parsed { version, alignment, metadata, tensors })
}

fn read_version(cursor: &mut Cursor<'_>, blame: &Blame) -> Result<u32, FileError> {
    let magic: [u8; 4] = cursor.array("magic")?;
    if &magic != b"GGUF" {
        return Err(blame.format(format!("is not a GGUF file: it begins with \"{}\"", magic.escape_ascii())));
    }
    match cursor.u32("version")? {
        version @ 2..=3 => Ok(version),
        version if version & 0xffff == 0 && version != 0 => {
            Err(blame.format("is a big-endian GGUF file, which is not supported"))
        }
        version => Err(blame.format(format!("is a GGUF file of version {version}; 2 and 3 are supported"))),
    }
}

fn read_type(cursor: &mut Cursor<'_>, blame: &Blame, part: &str) -> Result<ValueType, FileError> {
    let number = cursor.u32(part)?;
    ValueType::from_number(number).ok_or_else(|| blame.unknown_type(cursor.part(part), number.to_string()))
}

fn read_value(cursor: &mut Cursor<'_>, blame: &Blame) -> Result<Value, FileError> {
    let part = "value";
    Ok(match read_type(cursor, blame, "type")? {
        ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array(part)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array(part)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array(part)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array(part)?)),
        ValueType::U32 => Value::U32(cursor.u32(part)?),
        ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array(part)?)),
        ValueType::U64 => Value::U64(cursor.u64(part)?),
        ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array(part)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array(part)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array(part)?)),
        ValueType::Bool => {
            let [byte] = cursor.array(part)?;
            Value::Bool(boolean(byte).ok_or_else(|| blame.invalid(cursor.field(), not_boolean(byte)))?)
        }
        ValueType::Str => Value::Str(cursor.string(part, usize::MAX)?.to_owned()),
        ValueType::Array => Value::Array(read_array(cursor, blame, 1, &mut 0)?),
    })
}

/// Reads an array at nesting level `depth`; `n_nested` counts the arrays inside the outermost one.
fn read_array(cursor: &mut Cursor<'_>, blame: &Blame, depth: usize, n_nested: &mut usize) -> Result<Array, FileError> {
    Ok(match read_type(cursor, blame, "element type")? {
        ValueType::U8 => Array::U8(read_numbers(cursor, u8::from_le_bytes)?),
        ValueType::I8 => Array::I8(read_numbers(cursor, i8::from_le_bytes)?),
        ValueType::U16 => Array::U16(read_numbers(cursor, u16::from_le_bytes)?),
        ValueType::I16 => Array::I16(read_numbers(cursor, i16::from_le_bytes)?),
        ValueType::U32 => Array::U32(read_numbers(cursor, u32::from_le_bytes)?),
        ValueType::I32 => Array::I32(read_numbers(cursor, i32::from_le_bytes)?),
        ValueType::U64 => Array::U64(read_numbers(cursor, u64::from_le_bytes)?),
        ValueType::I64 => Array::I64(read_numbers(cursor, i64::from_le_bytes)?),
        ValueType::F32 => Array::F32(read_numbers(cursor, f32::from_le_bytes)?),
        ValueType::F64 => Array::F64(read_numbers(cursor, f64::from_le_bytes)?),
        ValueType::Bool => Array::Bool(read_booleans(cursor, blame)?),
        ValueType::Str => Array::Str(read_strings(cursor, blame)?),
        ValueType::Array => {
            if depth >= MAX_ARRAY_DEPTH {
                return Err(blame.limit(cursor.part("array depth"), depth as u64 + 1, MAX_ARRAY_DEPTH as u64));
            }
            let n = cursor.count("length", 4 + 8, MAX_NESTED_ARRAYS - *n_nested)?;
            *n_nested += n;
            let mut arrays = Vec::with_capacity(n);
            for _ in 0..n {
                arrays.push(read_array(cursor, blame, depth + 1, n_nested)?);
            }
            Array::Array(arrays)
        }
    })
}

fn read_numbers<const N: usize, T>(cursor: &mut Cursor<'_>, convert: fn([u8; N]) -> T) -> Result<Vec<T>, FileError> {
    let n = cursor.count("length", N, usize::MAX)?;
    // no overflow: the count was checked against what is left of the file
    let (numbers, _) = cursor.take(n * N, "elements")?.as_chunks::<N>();
    Ok(numbers.iter().map(|bytes| convert(*bytes)).collect())
}

fn read_booleans(cursor: &mut Cursor<'_>, blame: &Blame) -> Result<Vec<bool>, FileError> {
    let bytes: Vec<u8> = read_numbers(cursor, u8::from_le_bytes)?;
    let bad = |&byte: &u8| blame.invalid(cursor.field(), not_boolean(byte));
    bytes.iter().map(|byte| boolean(*byte).ok_or_else(|| bad(byte))).collect()
}

fn read_strings(cursor: &mut Cursor<'_>, blame: &Blame) -> Result<Strings, FileError> {
    let n = cursor.count("length", 8, usize::MAX)?;
    let mut strings = Strings::with_capacity(n);
    for index in 0..n {
        cursor.enter_element(Some(index as u64));
        let text = cursor.string("string", usize::MAX)?;
        let text_bytes = strings.text_bytes() + text.len();
        if text_bytes > Strings::MAX_BYTES {
            return Err(blame.limit(cursor.part("text so far"), text_bytes as u64, Strings::MAX_BYTES as u64));
        }
        strings.push(text);
    }
    cursor.enter_element(None);
    Ok(strings)
}

fn boolean(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn not_boolean(byte: u8) -> String {
    format!("the boolean {byte} is neither 0 nor 1")
}

fn alignment(metadata: &Metadata) -> Result<usize, FileError> {
    let alignment = metadata.find::<u32>(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() {
        return Err(metadata.invalid(ALIGNMENT_KEY, format!("{alignment} is not a power of two")));
    }
    Ok(alignment as usize)
}

/// A part of a split model lacks tensors, which would show up later as a puzzling missing name.
fn refuse_split(metadata: &Metadata) -> Result<(), FileError> {
    match metadata.find::<u32>("split.count")? {
        Some(n @ 2..) => {
            Err(metadata.invalid("split.count", format!("is one of {n} parts of a model; join them first")))
        }
        _ => Ok(()),
    }
}

/// One entry of the tensor table, shape and size checked, place not yet.
struct TensorInfo {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    offset: u64,
    n_bytes: u64,
}

fn read_tensor_info(cursor: &mut Cursor<'_>, blame: &Blame) -> Result<TensorInfo, FileError> {
    let name = cursor.string("name", MAX_NAME_BYTES)?;
    cursor.enter(tensor_field(name));

    let rank = cursor.u32("number of dimensions")?;
    if rank == 0 {
        return Err(blame.invalid(cursor.part("number of dimensions"), "is 0"));
    }
    if rank > MAX_DIMS {
        return Err(blame.limit(cursor.part("number of dimensions"), rank.into(), MAX_DIMS.into()));
    }
    let mut shape = Vec::with_capacity(rank as usize);
    for _ in 0..rank {
        let dim = cursor.u64("dimensions")?;
        if dim == 0 {
            return Err(blame.invalid(cursor.part("dimensions"), "one of them is 0"));
        }
        shape.push(usize::try_from(dim).map_err(|_| blame.limit(cursor.part("dimensions"), dim, usize::MAX as u64))?);
    }

    let number = cursor.u32("type")?;
    let dtype = dtype(number).map_err(|found| blame.unknown_type(cursor.part("type"), found))?;
    let offset = cursor.u64("offset")?;

    // the file has the innermost dimension first, and blocks lie along it
    let row = shape[0];
    let row_bytes = dtype.bytes_of(row).ok_or_else(|| {
        let reason = format!("a row of {row} numbers is not whole {dtype} blocks of {}", dtype.block_elements());
        blame.invalid(cursor.part("dimensions"), reason)
    })?;
    let too_big = || blame.invalid(cursor.part("dimensions"), format!("the product of {shape:?} overflows"));
    let mut n_elements = row;
    let mut n_bytes = row_bytes;
    for dim in &shape[1..] {
        n_elements = n_elements.checked_mul(*dim).ok_or_else(too_big)?;
        n_bytes = n_bytes.checked_mul(*dim).ok_or_else(too_big)?;
    }
    shape.reverse();
    Ok(TensorInfo { name: name.to_owned(), dtype, shape, offset, n_bytes: n_bytes as u64 })
}

/// Where the tensor lies in the file, all of it inside.
fn locate(
    info: &TensorInfo,
    data_start: u64,
    alignment: u64,
    file_bytes: usize,
    blame: &Blame,
) -> Result<TensorEntry, FileError> {
    let field = || tensor_field(&info.name);
    if !info.offset.is_multiple_of(alignment) {
        let reason = format!("offset {} is not a multiple of the alignment {alignment}", info.offset);
        return Err(blame.invalid(field(), reason));
    }
    let start = data_start.checked_add(info.offset);
    let range = start.and_then(|start| Some((start, start.checked_add(info.n_bytes)?)));
    match range {
        Some((start, end)) if end <= file_bytes as u64 => {
            // both are at most the size of a slice
            let range = start as usize..end as usize;
            Ok(TensorEntry { dtype: info.dtype, shape: info.shape.clone(), part: 0, range })
        }
        _ => Err(blame.past_end(field(), data_start.saturating_add(info.offset), info.n_bytes, file_bytes)),
    }
}

/// The format with ggml's number, or its name for a message.
fn dtype(number: u32) -> Result<DType, String> {
    match number {
        0 => return Ok(DType::F32),
        1 => return Ok(DType::F16),
        2 => return Ok(DType::Q4_0),
        3 => return Ok(DType::Q4_1),
        8 => return Ok(DType::Q8_0),
        12 => return Ok(DType::Q4K),
        13 => return Ok(DType::Q5K),
        14 => return Ok(DType::Q6K),
        30 => return Ok(DType::BF16),
        _ => {}
    }
    // the rest of ggml's types, for a better message
    let name = match number {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16..=19 | 21..=23 | 29 => "an IQ format",
        20 => "IQ4_NL",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return Err(number.to_string()),
    };
    Err(format!("{number} ({name})"))
}

/// ggml's number of a format.
pub(super) fn dtype_number(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 8,
        DType::Q4K => 12,
        DType::Q5K => 13,
        DType::Q6K => 14,
        DType::BF16 => 30,
    }
}
