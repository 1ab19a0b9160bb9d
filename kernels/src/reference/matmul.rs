//! Matrix product.

/// `x * weights^T`: `x` `[n_rows, k]`, `weights` `[n_out, k]`, result `[n_rows, n_out]`.
pub fn matmul(x: &[f32], weights: &[f32], k: usize) -> Vec<f32> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
    x.chunks_exact(k).flat_map(|x| weights.chunks_exact(k).map(move |w| dot(x, w) as f32)).collect()
}
