//! Pages of a mapped file are given back, and come back with the same bytes. Alone in its process, whose memory it
//! looks at.
#![cfg(target_os = "linux")]

use modelfile::{DType, Gguf, GgufWriter};

const N_BYTES: usize = 32 << 20;

/// Memory of this process that is pages of files, bytes.
fn file_pages() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssFile:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn released_pages_leave_and_come_back() {
    let bytes: Vec<u8> = (0..N_BYTES).map(|i| ((i * 31) >> 7) as u8).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, GgufWriter::new().tensor("t", DType::F32, &[N_BYTES / 4], bytes.clone()).finish()).unwrap();
    let file = Gguf::open(&path).unwrap();
    let (read, before) = (|| assert!(file.tensor("t").unwrap().data == bytes), file_pages());
    read();
    assert!(file_pages() > before + N_BYTES / 2, "reading maps pages: nothing to give back otherwise");
    file.release();
    assert!(file_pages() < before + N_BYTES / 4, "{} of {before} bytes before", file_pages());
    read();
    file.release();
    file.digest();
    assert!(file_pages() < before + N_BYTES / 2, "hashing gives back what it has read");
    read();
}
