//! Bad GGUF files are refused with the field named: never a panic, never a wrong range.

mod common;

use modelfile::{Array, DType, FileError, GgufWriter, Value};
use proptest::prelude::*;

use common::{changes, open_gguf, sample_gguf};

fn check(bytes: &[u8], want: &str) {
    let message = open_gguf(bytes.to_vec()).expect_err(want).to_string();
    assert_eq!(message, format!("m.gguf: {want}"));
}

/// Writes the parts of a file by hand.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(n_tensors: u64, n_keys: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(n_tensors).u64(n_keys)
    }

    fn u32(mut self, value: u32) -> Raw {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Raw {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend(bytes);
        self
    }

    fn str(self, text: &[u8]) -> Raw {
        self.u64(text.len() as u64).bytes(text)
    }

    /// Zeros up to a size of `n` bytes.
    fn to(mut self, n: usize) -> Raw {
        assert!(self.0.len() <= n);
        self.0.resize(n, 0);
        self
    }

    /// One tensor `t` and room for its data up to byte 4192; with one dimension it begins at byte 64.
    fn tensor(dims: &[u64], dtype: u32, offset: u64) -> Raw {
        let raw = Raw::header(1, 0).str(b"t").u32(dims.len() as u32);
        let raw = dims.iter().fold(raw, |raw, dim| raw.u64(*dim));
        raw.u32(dtype).u64(offset).to(4192)
    }

    /// One metadata key `k` of this type, value to follow.
    fn key(kind: u32) -> Raw {
        Raw::header(0, 1).str(b"k").u32(kind)
    }

    fn check(self, want: &str) {
        check(&self.0, want);
    }
}

#[test]
fn other_files_are_not_gguf() {
    check(b"GGML\x01\0\0\0", r#"is not a GGUF file: it begins with "GGML""#);
    check(b"\x00\xff\"\n....", r#"is not a GGUF file: it begins with "\x00\xff\"\n""#);
    check(b"GGUF\x01\0\0\0", "is a GGUF file of version 1; 2 and 3 are supported");
    check(b"GGUF\x04\0\0\0", "is a GGUF file of version 4; 2 and 3 are supported");
    check(b"GGUF\0\0\0\x03", "is a big-endian GGUF file, which is not supported");
    check(b"GG", "header: magic: offset 0 + 4 bytes is past the end of the file (2 bytes)");
    check(b"GGUF\x03\0", "header: version: offset 4 + 4 bytes is past the end of the file (6 bytes)");
}

#[test]
fn counts_are_compared_with_the_file() {
    let past = "is past the end of the file (24 bytes)";
    Raw::header(3, 0).check(&format!("header: tensor count: offset 16 + 96 bytes {past}"));
    Raw::header(u64::MAX, 0).check(&format!("header: tensor count: offset 16 + {} bytes {past}", u64::MAX));
    Raw::header(0, 1 << 60).check(&format!("header: metadata count: offset 24 + {} bytes {past}", 13u64 << 60));
    Raw::header(70_000, 0).to(4 << 20).check("header: tensor count: 70000 is over the limit of 65536");
    Raw::header(0, 70_000).to(4 << 20).check("header: metadata count: 70000 is over the limit of 65536");
}

#[test]
fn strings_are_checked() {
    let raw = Raw::header(0, 1).u64(1 << 40).to(64);
    raw.check("metadata key 0: name: offset 32 + 1099511627776 bytes is past the end of the file (64 bytes)");
    Raw::header(0, 1).str(&[b'k'; 65_536]).to(70_000).check("metadata key 0: name: 65536 is over the limit of 65535");
    Raw::header(0, 1).str(b"ab\xff").to(64).check("metadata key 0: name: is not UTF-8 after 2 bytes");
    Raw::key(8).str(b"\xc3").check(r#"metadata "k": value: is not UTF-8 after 0 bytes"#);
    let raw = Raw::key(8).u64(9).bytes(b"12345678");
    raw.check(r#"metadata "k": value: offset 45 + 9 bytes is past the end of the file (53 bytes)"#);
}

#[test]
fn values_are_checked() {
    Raw::key(13).u64(0).check(r#"metadata "k": type: 13 is not a type this reader knows"#);
    Raw::key(u32::MAX).u64(0).check(r#"metadata "k": type: 4294967295 is not a type this reader knows"#);
    Raw::key(7).bytes(&[2]).check(r#"metadata "k": the boolean 2 is neither 0 nor 1"#);
    let raw = Raw::key(10).u32(0);
    raw.check(r#"metadata "k": value: offset 37 + 8 bytes is past the end of the file (41 bytes)"#);
}

#[test]
fn arrays_are_checked() {
    let past = "is past the end of the file (57 bytes)";
    let array = |kind: u32, n: u64| Raw::key(9).u32(kind).u64(n).to(57);
    array(13, 1).check(r#"metadata "k": element type: 13 is not a type this reader knows"#);
    array(0, 9).check(&format!(r#"metadata "k": length: offset 49 + 9 bytes {past}"#));
    array(10, u64::MAX).check(&format!(r#"metadata "k": length: offset 49 + {} bytes {past}"#, u64::MAX));
    array(8, 1 << 61).check(&format!(r#"metadata "k": length: offset 49 + {} bytes {past}"#, u64::MAX));
    array(12, 1 << 32).check(&format!(r#"metadata "k": length: offset 49 + {} bytes {past}"#, 8u64 << 32));
    Raw::key(9).u32(7).u64(2).bytes(&[1, 7]).check(r#"metadata "k": the boolean 7 is neither 0 nor 1"#);
    let strings = Raw::key(9).u32(8).u64(2).str(b"ok");
    strings.clone().str(b"\xff").check(r#"metadata "k"[1]: string: is not UTF-8 after 0 bytes"#);
    strings.u64(50).check(r#"metadata "k"[1]: string: offset 67 + 50 bytes is past the end of the file (67 bytes)"#);
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| (0..depth).fold(Array::U8(vec![]), |inner, _| Array::Array(vec![inner]));
    let file = |depth| GgufWriter::new().metadata("k", Value::Array(nested(depth))).finish();
    assert!(open_gguf(file(3)).is_ok());
    check(&file(4), r#"metadata "k": array depth: 5 is over the limit of 4"#);
    // written flat: building such a value would itself need a deep stack
    let deep = (0..100_000).fold(Raw::key(9), |raw, _| raw.u32(9).u64(1));
    deep.check(r#"metadata "k": array depth: 5 is over the limit of 4"#);
    let wide = Value::Array(Array::Array(vec![Array::U8(vec![]); 70_000]));
    check(&GgufWriter::new().metadata("k", wide).finish(), r#"metadata "k": length: 70000 is over the limit of 65536"#);
    let row = Array::Array(vec![Array::U8(vec![]); 300]);
    let square = Value::Array(Array::Array(vec![row; 300]));
    let message = open_gguf(GgufWriter::new().metadata("k", square).finish()).expect_err("too many").to_string();
    assert!(message.contains(r#"metadata "k": length: 300 is over the limit of"#), "{message}");
}

#[test]
fn names_are_unique() {
    let twice = GgufWriter::new().metadata("k", Value::U8(1)).metadata("k", Value::U8(1));
    check(&twice.finish(), r#"metadata "k": occurs twice"#);
    let twice = GgufWriter::new().tensor("t", DType::F16, &[16], vec![0; 32]);
    let twice = twice.tensor("t", DType::F16, &[16], vec![0; 32]);
    check(&twice.finish(), r#"tensor "t": occurs twice"#);
}

#[test]
fn the_alignment_is_checked() {
    let file = |value| GgufWriter::new().metadata("general.alignment", value).finish();
    check(&file(Value::U32(0)), r#"metadata "general.alignment": 0 is not a power of two"#);
    check(&file(Value::U32(48)), r#"metadata "general.alignment": 48 is not a power of two"#);
    let wrong_type = r#"metadata "general.alignment": is string, not an integer from 0 to 2^32 - 1"#;
    check(&file(Value::Str("32".to_owned())), wrong_type);
    assert!(open_gguf(file(Value::U32(1 << 31))).is_ok(), "nothing lies after it");
    Raw::tensor(&[8], 0, 33).check(r#"tensor "t": offset 33 is not a multiple of the alignment 32"#);
}

#[test]
fn a_part_of_a_split_model_is_refused() {
    let file = GgufWriter::new().metadata("split.count", Value::U16(3)).finish();
    check(&file, r#"metadata "split.count": is one of 3 parts of a model; join them first"#);
}

#[test]
fn tensor_shapes_are_checked() {
    assert!(open_gguf(Raw::tensor(&[1024], 0, 0).0).is_ok());
    assert!(open_gguf(Raw::tensor(&[4, 4, 4, 16], 0, 0).0).is_ok());
    Raw::tensor(&[], 0, 0).check(r#"tensor "t": number of dimensions: is 0"#);
    Raw::tensor(&[1; 5], 0, 0).check(r#"tensor "t": number of dimensions: 5 is over the limit of 4"#);
    Raw::tensor(&[4, 0], 0, 0).check(r#"tensor "t": dimensions: one of them is 0"#);
    Raw::tensor(&[33], 2, 0).check(r#"tensor "t": dimensions: a row of 33 numbers is not whole Q4_0 blocks of 32"#);
    Raw::tensor(&[128, 2], 12, 0)
        .check(r#"tensor "t": dimensions: a row of 128 numbers is not whole Q4_K blocks of 256"#);
    let overflows = |dims: &[u64]| {
        Raw::tensor(dims, 0, 0).check(&format!(r#"tensor "t": dimensions: the product of {dims:?} overflows"#));
    };
    overflows(&[1 << 32, 1 << 32]);
    overflows(&[1 << 16, 1 << 16, 1 << 16, 1 << 16]);
    overflows(&[2, u64::MAX]);
    Raw::tensor(&[u64::MAX], 0, 0)
        .check(&format!(r#"tensor "t": dimensions: a row of {} numbers is not whole F32 blocks of 1"#, u64::MAX));
}

#[test]
fn tensor_types_are_checked() {
    Raw::tensor(&[32], 99, 0).check(r#"tensor "t": type: 99 is not a type this reader knows"#);
    Raw::tensor(&[32], 4, 0).check(r#"tensor "t": type: 4 is not a type this reader knows"#);
    Raw::tensor(&[32], 6, 0).check(r#"tensor "t": type: 6 (Q5_0) is not a type this reader knows"#);
    Raw::tensor(&[32], 39, 0).check(r#"tensor "t": type: 39 (MXFP4) is not a type this reader knows"#);
}

#[test]
fn tensor_places_are_checked() {
    let past = |dims: &[u64], offset: u64, at: u64, n: u64| {
        Raw::tensor(dims, 0, offset)
            .check(&format!(r#"tensor "t": offset {at} + {n} bytes is past the end of the file (4192 bytes)"#));
    };
    past(&[1033], 0, 64, 4132);
    past(&[1025], 32, 96, 4100);
    past(&[8], 4128, 4192, 32);
    past(&[8], u64::MAX - 31, u64::MAX, 32);
    past(&[8], 1 << 63, (1 << 63) + 64, 32);
    past(&[1 << 60], 0, 64, 1 << 62);
    past(&[1 << 61], u64::MAX - 31, u64::MAX, 1 << 63);
}

#[test]
fn tensors_do_not_overlap() {
    let two = |second: u64| {
        let raw = Raw::header(2, 0).str(b"a").u32(1).u64(16).u32(0).u64(0);
        raw.str(b"b").u32(1).u64(16).u32(0).u64(second).to(4192)
    };
    assert!(open_gguf(two(64).0).is_ok());
    two(32).check(r#"tensor "b": shares bytes with tensor "a""#);
    two(0).check(r#"tensor "b": shares bytes with tensor "a""#);
}

#[test]
fn long_names_do_not_fill_messages() {
    let key = "k".repeat(60_000);
    let file = GgufWriter::new().metadata(&key, Value::U8(1)).metadata(&key, Value::U8(1)).finish();
    let message = open_gguf(file).expect_err("twice").to_string();
    assert!(message.len() < 200 && message.ends_with("\"...: occurs twice"), "{message}");
    let long = GgufWriter::new().tensor(&key, DType::F32, &[1], vec![0; 4]);
    check(&long.finish(), "tensor 0: name: 60000 is over the limit of 1024");
}

#[test]
fn every_truncation_is_refused() {
    let file = sample_gguf().finish();
    assert!(open_gguf(file.clone()).is_ok());
    for n in 0..file.len() {
        let error = open_gguf(file[..n].to_vec()).expect_err("part of a file");
        assert!(matches!(error, FileError::PastEnd { .. }), "{n} bytes: {error}");
    }
}

#[test]
fn one_change_anywhere_is_survived() {
    let file = sample_gguf().finish();
    let n_data: usize = DType::ALL.iter().map(|dtype| dtype.bytes_of(512).expect("whole blocks")).sum();
    changes(&file, 0..file.len() - n_data, |changed| drop(open_gguf(changed)));
}

proptest! {
    #[test]
    fn random_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..2000), magic in any::<bool>()) {
        if magic && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(b"GGUF\x03\0\0\0");
        }
        prop_assert!(open_gguf(bytes).is_err());
    }

    #[test]
    fn many_changes_are_survived(
        edits in prop::collection::vec((0usize..1500, prop_oneof![any::<u8>(), 0u8..16]), 1..12),
        cut in prop::option::of(0usize..9000),
    ) {
        let mut file = sample_gguf().finish();
        for (at, byte) in edits {
            file[at] = byte;
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        drop(open_gguf(file));
    }
}
