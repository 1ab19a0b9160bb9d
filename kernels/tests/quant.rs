//! Block formats against numbers computed outside: tests/golden/make_goldens.py wrote blocks of random
//! bytes and their values, and that script's formulas were compared with ggml's own Python package.

use std::path::PathBuf;

use kernels::quant::{QuantFormat, dequantize};

fn check(name: &str, format: QuantFormat) {
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/quant");
    let read = |suffix: &str| {
        let path = data.join(format!("{name}.{suffix}"));
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let (blocks, want) = (read("bin"), read("f32"));
    let want: Vec<u32> = want.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    assert!(blocks.len() > format.block_bytes(), "{name}: more than one block");

    let mut got = vec![f32::NAN; want.len()];
    dequantize(format, &blocks, &mut got);
    let got: Vec<u32> = got.into_iter().map(f32::to_bits).collect();
    assert_eq!(got, want, "{name}: not bit-identical");
}

#[test]
fn every_block_format_equals_its_golden() {
    check("Q8_0", QuantFormat::Q8_0);
    check("Q4_0", QuantFormat::Q4_0);
    check("Q4_1", QuantFormat::Q4_1);
    check("Q4_K", QuantFormat::Q4K);
    check("Q5_K", QuantFormat::Q5K);
    check("Q6_K", QuantFormat::Q6K);
}
