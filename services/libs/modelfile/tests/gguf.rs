//! Good GGUF files are read as they were written.

mod common;

use modelfile::{Array, DType, FileError, Gguf, GgufWriter, Value};

use common::sample_gguf;

fn open(file: &GgufWriter) -> Gguf {
    Gguf::from_bytes("m.gguf", file.finish()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_value_type_comes_back() {
    let file = open(&sample_gguf());
    let metadata = file.metadata();
    assert_eq!(metadata.len(), 26);
    assert_eq!(metadata.str("general.architecture").expect("there"), "llama");
    assert_eq!(metadata.get("v.u8"), Some(&Value::U8(200)));
    assert_eq!(metadata.get("v.i8"), Some(&Value::I8(-100)));
    assert_eq!(metadata.get("v.u16"), Some(&Value::U16(60_000)));
    assert_eq!(metadata.get("v.i16"), Some(&Value::I16(-30_000)));
    assert_eq!(metadata.get("v.i32"), Some(&Value::I32(-2_000_000_000)));
    assert_eq!(metadata.get("v.u64"), Some(&Value::U64(u64::MAX)));
    assert_eq!(metadata.get("v.i64"), Some(&Value::I64(i64::MIN)));
    assert_eq!(metadata.get("v.f64"), Some(&Value::F64(-2.5)));
    assert!(metadata.bool("v.bool").expect("there"));
    assert_eq!(metadata.need::<&[i32]>("a.i32").expect("there"), [-1, 2]);
    assert_eq!(metadata.need::<&[f32]>("a.f32").expect("there"), [0.5, -0.5]);
    assert_eq!(metadata.array("a.bool").expect("there"), &Array::Bool(vec![true, false]));
    assert!(metadata.array("a.empty").expect("there").is_empty());
    let strings = metadata.strings("a.str").expect("there");
    assert_eq!(strings.iter().collect::<Vec<_>>(), ["a", "", "ü\0"]);
    assert_eq!((strings.get(2), strings.get(3)), (Some("ü\0"), None));
    let Array::Array(nested) = metadata.array("a.array").expect("there") else { panic!("an array of arrays") };
    assert_eq!(nested, &[Array::U8(vec![1, 2]), Array::Str(["x"].into_iter().collect())]);
}

#[test]
fn typed_getters_convert_where_nothing_is_lost() {
    let file = open(&sample_gguf());
    let metadata = file.metadata();
    assert_eq!(metadata.u32("v.u8").expect("fits"), 200);
    assert_eq!(metadata.u64("v.u32").expect("fits"), 4_000_000_000);
    assert_eq!(metadata.f32("v.f64").expect("a float"), -2.5);
    assert_eq!(metadata.find::<u32>("absent").expect("absence is fine"), None);
}

#[test]
fn getters_name_the_key() {
    fn check<T: std::fmt::Debug>(got: Result<T, FileError>, want: &str) {
        assert_eq!(got.expect_err(want).to_string(), want);
    }
    let file = open(&sample_gguf());
    let metadata = file.metadata();
    check(metadata.u32("absent"), r#"m.gguf: metadata "absent": is not in the file"#);
    check(metadata.u32("v.i8"), r#"m.gguf: metadata "v.i8": is the i8 -100, not an integer from 0 to 2^32 - 1"#);
    check(
        metadata.u32("v.u64"),
        r#"m.gguf: metadata "v.u64": is the u64 18446744073709551615, not an integer from 0 to 2^32 - 1"#,
    );
    check(metadata.str("a.u8"), r#"m.gguf: metadata "a.u8": is an array of 3 u8, not a string"#);
    check(metadata.strings("a.u8"), r#"m.gguf: metadata "a.u8": is an array of 3 u8, not an array of strings"#);
    check(file.tensor("t"), r#"m.gguf: tensor "t": is not in the file"#);
}

#[test]
fn every_tensor_format_comes_back() {
    for (version, alignment) in [(3, 32), (2, 32), (3, 1), (3, 256)] {
        let written = sample_gguf().version(version);
        let file = open(&if alignment == 32 { written } else { written.alignment(alignment) });
        assert_eq!((file.version(), file.alignment()), (version, alignment as usize));
        assert_eq!(file.tensors().len(), 10);
        for (i, dtype) in DType::ALL.into_iter().enumerate() {
            let tensor = file.tensor(&format!("t.{dtype}")).expect("there");
            assert_eq!((tensor.dtype, tensor.shape), (dtype, &[2, 256][..]));
            assert_eq!(tensor.data, vec![i as u8 + 1; 512 / dtype.block_elements() * dtype.block_bytes()]);
        }
        let tensor = file.tensor("t.3d").expect("there");
        assert_eq!((tensor.shape, tensor.n_elements(), tensor.data.len()), (&[2, 3, 5][..], 30, 60));
    }
}

#[test]
fn a_file_without_tensors_needs_no_data() {
    let file = open(&GgufWriter::new().metadata("k", Value::U8(1)));
    assert_eq!((file.tensors().len(), file.metadata().len()), (0, 1));
    let empty = open(&GgufWriter::new());
    assert!(empty.metadata().is_empty());
}

#[test]
fn the_digest_tells_files_apart() {
    let a = open(&sample_gguf());
    assert_eq!(a.digest(), open(&sample_gguf()).digest());
    assert_eq!(a.digest().len(), 32);
    let mut bytes = sample_gguf().finish();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let b = Gguf::from_bytes("m.gguf", bytes).expect("still a good file");
    assert_ne!(a.digest(), b.digest());
}

#[test]
fn a_file_on_disk_is_mapped() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, sample_gguf().finish()).expect("written");
    let file = Gguf::open(&path).expect("a good file");
    assert_eq!(file.digest(), open(&sample_gguf()).digest());
    assert_eq!(file.tensor("t.F32").expect("there").data, vec![1; 2048]);
    assert!(file.has_tensor("t.F32") && !file.has_tensor("t"));

    let message = |path: &std::path::Path| Gguf::open(path).expect_err("refused").to_string();
    assert!(message(dir.path()).ends_with(": is not a regular file"));
    assert!(message(&dir.path().join("none")).ends_with("none: cannot be read"));
    std::fs::write(&path, b"").expect("written");
    assert!(message(&path).ends_with("header: magic: offset 0 + 4 bytes is past the end of the file (0 bytes)"));
}
