//! Good safetensors files are read as they were written, alone and in shards.

mod common;

use std::path::Path;

use modelfile::{DType, SafeTensors, SafeTensorsWriter};

use common::{sample_safetensors, with_header};

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), bytes).expect("written");
}

fn message(result: Result<SafeTensors, modelfile::FileError>) -> String {
    result.expect_err("refused").to_string()
}

#[test]
fn every_element_type_comes_back() {
    let file = SafeTensors::from_bytes("m.safetensors", sample_safetensors().finish()).expect("a good file");
    assert_eq!(file.metadata()["format"], "pt");
    assert_eq!(
        file.tensors().map(|t| t.name.to_owned()).collect::<Vec<_>>(),
        ["bf16", "empty", "f16", "f32", "scalar"]
    );
    let tensor = file.tensor("f32").expect("there");
    assert_eq!((tensor.dtype, tensor.shape, tensor.n_elements()), (DType::F32, &[2, 3][..], 6));
    assert_eq!(tensor.data[20..], 5f32.to_le_bytes());
    let tensor = file.tensor("bf16").expect("there");
    assert_eq!((tensor.dtype, tensor.shape, tensor.data), (DType::BF16, &[2, 2, 1][..], &[0x3f; 8][..]));
    let tensor = file.tensor("scalar").expect("there");
    assert_eq!((tensor.shape, tensor.data), (&[][..], &7f32.to_le_bytes()[..]));
    assert!(file.tensor("empty").expect("there").data.is_empty());
    assert_eq!(file.tensor("t").expect_err("absent").to_string(), r#"m.safetensors: tensor "t": is not in the file"#);
}

#[test]
fn types_that_are_not_read_are_refused_when_asked_for() {
    let header = r#"{"ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"w":{"dtype":"F16","shape":[1],"data_offsets":[16,18]}}"#;
    let file = SafeTensors::from_bytes("m.safetensors", with_header(header, 18)).expect("a good file");
    assert_eq!(file.tensors().len(), 1);
    let want = r#"m.safetensors: tensor "ids": I64 is not a type this reader knows"#;
    assert_eq!(file.tensor("ids").expect_err("integers").to_string(), want);
}

#[test]
fn a_header_may_be_padded_and_in_any_order() {
    let header = "{\n \"b\": {\"data_offsets\": [4, 8], \"shape\": [1], \"dtype\": \"F32\"},\n \"a\": {\"dtype\": \"F32\", \"shape\": [1, 1], \"data_offsets\": [0, 4]} }   ";
    let file = SafeTensors::from_bytes("m.safetensors", with_header(header, 8)).expect("a good file");
    assert_eq!(file.tensors().len(), 2);
    let none = SafeTensors::from_bytes("m.safetensors", with_header("{}", 0)).expect("a good file");
    assert_eq!(none.tensors().len(), 0);
}

#[test]
fn one_file_is_preferred_to_an_index() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path();
    let none = message(SafeTensors::open_dir(path));
    assert!(none.ends_with(": holds neither model.safetensors nor model.safetensors.index.json"), "{none}");
    write(path, "model.safetensors.index.json", "nonsense");
    assert!(message(SafeTensors::open_dir(path)).contains("model.safetensors.index.json: index: "));
    write(path, "model.safetensors", sample_safetensors().finish());
    assert_eq!(SafeTensors::open_dir(path).expect("the one file").tensors().len(), 5);
}

#[test]
fn shards_make_one_model() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path();
    let shard = |names: &[&str], value: f32| {
        let file = SafeTensorsWriter::new().metadata("format", "pt");
        names.iter().fold(file, |file, name| file.tensor_f32(name, &[1], &[value])).finish()
    };
    write(path, "m-1.safetensors", shard(&["a", "both"], 1.0));
    write(path, "m-2.safetensors", shard(&["b", "both"], 2.0));
    let index = |map: &str| write(path, "model.safetensors.index.json", format!(r#"{{"weight_map":{map}}}"#));

    index(r#"{"a":"m-1.safetensors","b":"m-2.safetensors","both":"m-2.safetensors"}"#);
    let model = SafeTensors::open_dir(path).expect("a good model");
    assert_eq!(model.tensors().len(), 3);
    assert_eq!(model.tensor("a").expect("there").data, 1f32.to_le_bytes());
    assert_eq!(model.tensor("both").expect("there").data, 2f32.to_le_bytes());
    let digest = model.digest();
    write(path, "m-2.safetensors", shard(&["b", "both"], 3.0));
    assert_ne!(SafeTensors::open_dir(path).expect("a good model").digest(), digest);

    index(r#"{"a":"m-2.safetensors"}"#);
    assert!(message(SafeTensors::open_dir(path)).ends_with(r#"m-2.safetensors: tensor "a": is not in the file"#));
    index(r#"{"a":"m-3.safetensors"}"#);
    assert!(message(SafeTensors::open_dir(path)).ends_with("m-3.safetensors: cannot be read"));
    index(r#"{"a":"../m-1.safetensors"}"#);
    assert!(message(SafeTensors::open_dir(path)).contains("is not the name of a .safetensors file beside the index"));
    write(path, "m-1.safetensors", "short");
    index(r#"{"a":"m-1.safetensors"}"#);
    assert!(message(SafeTensors::open_dir(path)).contains("m-1.safetensors: header length: "));
}
