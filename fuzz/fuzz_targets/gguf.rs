//! A GGUF file: opens with every tensor in place, or is refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use modelfile::{Gguf, TensorView};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Gguf::from_bytes("fuzz.gguf", bytes.to_vec()) else { return };
    let n_data: usize = file.tensors().map(|tensor| checked(&tensor)).sum();
    assert!(n_data <= bytes.len(), "tensors share bytes");
    for (key, value) in file.metadata().iter() {
        assert!(!value.describe().is_empty());
        // every typed getter answers or refuses
        let metadata = file.metadata();
        let _ = (metadata.u32(key), metadata.u64(key), metadata.f32(key), metadata.bool(key), metadata.str(key));
        if let Ok(strings) = metadata.strings(key) {
            assert_eq!(strings.iter().count(), strings.len());
        }
    }
});

fn checked(tensor: &TensorView<'_>) -> usize {
    assert_eq!(tensor.dtype.bytes_of(tensor.n_elements()), Some(tensor.data.len()));
    tensor.data.len()
}
