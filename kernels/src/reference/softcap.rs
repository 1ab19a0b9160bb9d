//! Soft cap of scores and logits.

/// `cap * tanh(x / cap)` for each element.
pub fn softcap(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = (f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh()) as f32);
}
