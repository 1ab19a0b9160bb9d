//! Gates of feed-forward layers.

use std::f64::consts::FRAC_2_PI;

/// `silu(gate) * up` element by element.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    elements(gate, up, |x| x / (1.0 + (-x).exp()))
}

/// `gelu(gate) * up` element by element, with the hyperbolic tangent in place of the error function.
pub fn geglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    elements(gate, up, |x| 0.5 * x * (1.0 + (FRAC_2_PI.sqrt() * (x + 0.044_715 * x.powi(3))).tanh()))
}

fn elements(gate: &[f32], up: &[f32], activation: impl Fn(f64) -> f64) -> Vec<f32> {
    gate.iter().zip(up).map(|(&gate, &up)| (activation(f64::from(gate)) * f64::from(up)) as f32).collect()
}
