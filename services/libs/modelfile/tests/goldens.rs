//! The checkpoints of tests/golden, written by a script that shares nothing with this crate.

use std::path::PathBuf;

use modelfile::{DType, Gguf, SafeTensors};

fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden/data").join(path)
}

#[test]
fn a_checkpoint_and_its_gguf_copy_hold_the_same_numbers() {
    let hub = SafeTensors::open_dir(&data("llama-tiny")).unwrap_or_else(|e| panic!("{e}"));
    let gguf = Gguf::open(&data("llama-tiny/model.gguf")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(hub.tensors().len(), gguf.tensors().len());
    for (ours, theirs) in [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.1.self_attn.v_proj.weight", "blk.1.attn_v.weight"),
        ("model.layers.2.mlp.down_proj.weight", "blk.2.ffn_down.weight"),
        ("lm_head.weight", "output.weight"),
    ] {
        let (a, b) = (hub.tensor(ours).expect(ours), gguf.tensor(theirs).expect(theirs));
        assert_eq!((a.dtype, a.shape, a.data), (DType::BF16, b.shape, b.data), "{ours}");
    }
    // q and k have their rows in another order: row 1 of a head of 16 here is row 2 there
    let (a, b) = ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight");
    let (a, b) = (hub.tensor(a).expect(a), gguf.tensor(b).expect(b));
    let row = |data: &[u8], index: usize| data[index * 64..][..64].to_vec();
    assert_eq!((row(a.data, 0), row(a.data, 1), row(a.data, 8)), (row(b.data, 0), row(b.data, 2), row(b.data, 1)));
}

#[test]
fn a_sharded_checkpoint_is_one_model() {
    let model = SafeTensors::open_dir(&data("llama-tied")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(model.tensors().len(), 20);
    assert!(model.tensors().all(|tensor| tensor.dtype == DType::F16));
}

#[test]
fn a_file_holds_every_block_format() {
    let file = Gguf::open(&data("llama-quant/model.gguf")).unwrap_or_else(|e| panic!("{e}"));
    for dtype in DType::ALL {
        let found = file.tensors().any(|tensor| tensor.dtype == dtype);
        assert_eq!(found, !matches!(dtype, DType::F16 | DType::BF16), "{dtype}");
    }
}
