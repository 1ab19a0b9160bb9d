//! The operations in plain scalar Rust, summed in float64: slow, readable, the oracle of every test.

mod attention;
mod gate;
mod matmul;
mod rms_norm;
mod rope;
mod softcap;

pub use attention::attention;
pub use gate::{geglu, swiglu};
pub use matmul::matmul;
pub use rms_norm::rms_norm;
pub use rope::{rope, sin_cos};
pub use softcap::softcap;
