//! The gate of a SwiGLU layer.

/// `silu(gate) * up` element by element.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let element = |(&gate, &up): (&f32, &f32)| {
        let gate = f64::from(gate);
        (gate / (1.0 + (-gate).exp()) * f64::from(up)) as f32
    };
    gate.iter().zip(up).map(element).collect()
}
