//! What a hostile file can make the readers allocate: never more than twice its size and a constant.

mod common;

use std::time::{Duration, Instant};

use modelfile::{Array, GgufWriter, Value};
use peak_alloc::PeakAlloc;

use common::{open_gguf, open_safetensors, sample_gguf, with_header};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const SLACK_BYTES: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens, and returns whether that succeeded; the file itself is not counted.
fn check<E>(what: &str, bytes: Vec<u8>, open: impl Fn(Vec<u8>) -> Result<(), E>) -> bool {
    let n_bytes = bytes.len();
    ALLOCATOR.reset_peak_usage();
    let (before, started) = (ALLOCATOR.current_usage(), Instant::now());
    let good = open(bytes).is_ok();
    let took = started.elapsed();
    let grown = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(grown <= 2 * n_bytes + SLACK_BYTES, "{what}: {grown} bytes allocated for a file of {n_bytes}");
    assert!(took < PATIENCE, "{what}: {took:?}");
    good
}

/// A GGUF file of one key, of this many bytes, whose array claims `n` elements of a type.
fn array_claim(kind: u32, n: u64, n_bytes: usize) -> Vec<u8> {
    let mut file = GgufWriter::new().metadata("k", Value::Array(Array::U8(vec![]))).finish();
    let at = file.len() - 12;
    file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
    file[at + 4..].copy_from_slice(&n.to_le_bytes());
    file.resize(n_bytes, 0);
    file
}

fn gguf_counts(n_tensors: u64, n_keys: u64, n_bytes: usize) -> Vec<u8> {
    let mut file = [&b"GGUF\x03\0\0\0"[..], &n_tensors.to_le_bytes(), &n_keys.to_le_bytes()].concat();
    file.resize(n_bytes, 0);
    file
}

/// One test, because the allocator counts for the whole process.
#[test]
fn allocation_is_bounded_by_the_file() {
    const MIB: usize = 1 << 20;
    let gguf = |what: &str, bytes| check(what, bytes, open_gguf);
    for n in [u64::MAX, 1 << 63, 1 << 40, 1 << 24] {
        assert!(!gguf("tensor count", gguf_counts(n, 0, 100)));
        assert!(!gguf("metadata count", gguf_counts(0, n, 100)));
        for kind in 0..13 {
            assert!(!gguf("array length", array_claim(kind, n, 100)));
        }
    }
    assert!(!gguf("tensor count in a big file", gguf_counts(MIB as u64, 0, 40 * MIB)));
    assert!(gguf("empty strings", array_claim(8, 4 * MIB as u64, 33 * MIB)));
    assert!(!gguf("empty arrays", array_claim(9, 2 * MIB as u64, 33 * MIB)));
    assert!(gguf("an array of bytes", array_claim(0, 32 * MIB as u64, 33 * MIB)));
    assert!(gguf("an array of numbers", array_claim(12, 4 * MIB as u64, 33 * MIB)));
    let text = Value::Str("x".repeat(32 * MIB));
    assert!(gguf("a long string", GgufWriter::new().metadata("k", text).finish()));
    let keys = (0..65_536).fold(GgufWriter::new(), |file, i| file.metadata(&i.to_string(), Value::U8(0)));
    assert!(gguf("many keys", keys.finish()));
    let dtype = modelfile::DType::F32;
    let tensors = (0..65_536).fold(GgufWriter::new(), |file, i| file.tensor(&i.to_string(), dtype, &[1], vec![0; 4]));
    assert!(gguf("many tensors", tensors.finish()));
    assert!(gguf("the sample", sample_gguf().finish()));

    let safetensors = |what: &str, header: String, n_data| check(what, with_header(&header, n_data), open_safetensors);
    let dims = "1,".repeat(8 * MIB);
    assert!(!safetensors("dimensions", format!(r#"{{"t":{{"dtype":"F32","shape":[{dims}1]}}}}"#), 4));
    assert!(!safetensors("a long name", format!(r#"{{"{}":1}}"#, "x".repeat(32 * MIB)), 4));
    assert!(!safetensors("an escaped name", format!(r#"{{"{}":1}}"#, r"\u00e4".repeat(5 * MIB)), 4));
    let text = "x".repeat(32 * MIB);
    assert!(safetensors("long metadata", format!(r#"{{"__metadata__":{{"k":"{text}"}}}}"#), 0));
    let pairs: Vec<String> = (0..2 * MIB).map(|i| format!(r#""{i:x}":"""#)).collect();
    assert!(!safetensors("many metadata keys", format!(r#"{{"__metadata__":{{{}}}}}"#, pairs.join(",")), 0));
    let tensors = |n: usize| {
        let entry = |i| format!(r#""{i:x}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1);
        format!("{{{}}}", (0..n).map(entry).collect::<Vec<_>>().join(","))
    };
    assert!(safetensors("many tensors", tensors(200_000), 200_000));
    assert!(!safetensors("too many tensors", tensors(400_000), 400_000));
    assert!(!safetensors("deep JSON", format!(r#"{{"t":{}"#, "[".repeat(32 * MIB)), 0));
}
