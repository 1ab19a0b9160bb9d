//! A safetensors file: opens with every tensor in place, or is refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use modelfile::{SafeTensors, TensorView};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = SafeTensors::from_bytes("fuzz.safetensors", bytes.to_vec()) else { return };
    let n_data: usize = file.tensors().map(|tensor| checked(&tensor)).sum();
    assert!(n_data <= bytes.len(), "tensors share bytes");
    for tensor in file.tensors() {
        assert_eq!(file.tensor(tensor.name).expect("it was listed"), tensor);
    }
});

fn checked(tensor: &TensorView<'_>) -> usize {
    assert_eq!(tensor.dtype.bytes_of(tensor.n_elements()), Some(tensor.data.len()));
    tensor.data.len()
}
