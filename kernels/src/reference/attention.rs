//! Attention of one query over plain arrays.

/// `softmax(softcap(keys * q * scale)) * values`: `q` `[head_dim]`, `keys` and `values` `[n_keys, head_dim]`.
pub fn attention(q: &[f32], keys: &[f32], values: &[f32], scale: f32, softcap: Option<f32>) -> Vec<f32> {
    let dot = |k: &[f32]| q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
    let cap = |score: f64| softcap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh());
    let scores: Vec<f64> = keys.chunks_exact(q.len()).map(|k| cap(dot(k) * f64::from(scale))).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..q.len())
        .map(|d| {
            let column = values.chunks_exact(q.len()).map(|v| f64::from(v[d]));
            (weights.iter().zip(column).map(|(w, v)| w * v).sum::<f64>() / total) as f32
        })
        .collect()
}
