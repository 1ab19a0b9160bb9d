//! Sample files, and what must hold of every file that opens.

#![allow(dead_code, reason = "each test file uses some of this")]

use modelfile::{Array, DType, FileError, Gguf, GgufWriter, SafeTensors, SafeTensorsWriter, TensorView, Value};

/// A small file with every value type and every tensor format.
pub(crate) fn sample_gguf() -> GgufWriter {
    let nested = Array::Array(vec![Array::U8(vec![1, 2]), Array::Str(["x"].into_iter().collect())]);
    let mut file = GgufWriter::new()
        .metadata("general.architecture", Value::Str("llama".to_owned()))
        .metadata("v.u8", Value::U8(200))
        .metadata("v.i8", Value::I8(-100))
        .metadata("v.u16", Value::U16(60_000))
        .metadata("v.i16", Value::I16(-30_000))
        .metadata("v.u32", Value::U32(4_000_000_000))
        .metadata("v.i32", Value::I32(-2_000_000_000))
        .metadata("v.u64", Value::U64(u64::MAX))
        .metadata("v.i64", Value::I64(i64::MIN))
        .metadata("v.f32", Value::F32(1.5))
        .metadata("v.f64", Value::F64(-2.5))
        .metadata("v.bool", Value::Bool(true))
        .metadata("a.u8", Value::Array(Array::U8(vec![1, 2, 3])))
        .metadata("a.i8", Value::Array(Array::I8(vec![-1])))
        .metadata("a.u16", Value::Array(Array::U16(vec![1])))
        .metadata("a.i16", Value::Array(Array::I16(vec![-1])))
        .metadata("a.u32", Value::Array(Array::U32(vec![1, 2])))
        .metadata("a.i32", Value::Array(Array::I32(vec![-1, 2])))
        .metadata("a.u64", Value::Array(Array::U64(vec![1])))
        .metadata("a.i64", Value::Array(Array::I64(vec![-1])))
        .metadata("a.f32", Value::Array(Array::F32(vec![0.5, -0.5])))
        .metadata("a.f64", Value::Array(Array::F64(vec![0.25])))
        .metadata("a.bool", Value::Array(Array::Bool(vec![true, false])))
        .metadata("a.str", Value::Array(Array::Str(["a", "", "ü\0"].into_iter().collect())))
        .metadata("a.empty", Value::Array(Array::U32(vec![])))
        .metadata("a.array", Value::Array(nested));
    for (i, dtype) in DType::ALL.into_iter().enumerate() {
        let data = vec![i as u8 + 1; dtype.bytes_of(512).expect("whole blocks")];
        file = file.tensor(&format!("t.{dtype}"), dtype, &[2, 256], data);
    }
    file.tensor("t.3d", DType::F16, &[2, 3, 5], vec![0x3c; 60])
}

/// A small file with every readable element type, a scalar and an empty tensor.
pub(crate) fn sample_safetensors() -> SafeTensorsWriter {
    SafeTensorsWriter::new()
        .metadata("format", "pt")
        .tensor_f32("f32", &[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
        .tensor("f16", DType::F16, &[4], vec![0x3c; 8])
        .tensor("bf16", DType::BF16, &[2, 2, 1], vec![0x3f; 8])
        .tensor_f32("scalar", &[], &[7.0])
        .tensor_f32("empty", &[0, 3], &[])
}

/// A safetensors file with this header, and this many bytes of data after it.
pub(crate) fn with_header(header: &str, n_data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + n_data, 0);
    file
}

/// Opens, and if that succeeds checks what a user may rely on.
pub(crate) fn open_gguf(bytes: Vec<u8>) -> Result<(), FileError> {
    let n_bytes = bytes.len();
    let file = Gguf::from_bytes("m.gguf", bytes).inspect_err(check_message)?;
    let n_data: usize = file.tensors().map(check_view).sum();
    assert!(n_data <= n_bytes, "tensors do not share bytes");
    Ok(())
}

/// As [`open_gguf`].
pub(crate) fn open_safetensors(bytes: Vec<u8>) -> Result<(), FileError> {
    let n_bytes = bytes.len();
    let file = SafeTensors::from_bytes("m.safetensors", bytes).inspect_err(check_message)?;
    let n_data: usize = file.tensors().map(check_view).sum();
    assert!(n_data <= n_bytes, "tensors do not share bytes");
    Ok(())
}

fn check_view(tensor: TensorView<'_>) -> usize {
    assert_eq!(tensor.dtype.bytes_of(tensor.n_elements()), Some(tensor.data.len()), "{}", tensor.name);
    tensor.data.len()
}

fn check_message(error: &FileError) {
    let message = error.to_string();
    assert!(message.starts_with("m."), "{message:?} names the file");
    assert!(message.len() < 2000, "a message is no place for the file's contents: {} bytes", message.len());
}

/// Everything that can be done to a file by changing one place: each byte, and each 8 bytes.
pub(crate) fn changes(file: &[u8], places: std::ops::Range<usize>, mut try_one: impl FnMut(Vec<u8>)) {
    for at in places {
        let byte = file[at];
        for new in [0, 1, 2, 9, 0x7f, 0x80, 0xff, b'"', b'{', byte ^ 1, byte ^ 0x80, byte.wrapping_add(1)] {
            let mut changed = file.to_vec();
            changed[at] = new;
            try_one(changed);
        }
        if at + 8 <= file.len() {
            for new in [0, 1, 1 << 16, 1 << 31, 1 << 32, 1 << 48, i64::MAX as u64, 1 << 63, u64::MAX - 31, u64::MAX] {
                let mut changed = file.to_vec();
                changed[at..at + 8].copy_from_slice(&u64::to_le_bytes(new));
                try_one(changed);
            }
        }
    }
}
