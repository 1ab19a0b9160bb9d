//! Rotary embedding.

/// Rotates one head at `position`: pairs `(i, i + half)`, or with `interleaved` pairs `(2i, 2i + 1)`.
///
/// `inv_freq`: radians per position of each pair. Elements past the pairs stay.
pub fn rope(head: &mut [f32], position: u32, inv_freq: &[f32], interleaved: bool) {
    let half = inv_freq.len();
    for (i, &freq) in inv_freq.iter().enumerate() {
        let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (sin, cos) = sin_cos(f64::from(position as f32 * freq));
        let (x, y) = (f64::from(head[a]), f64::from(head[b]));
        head[a] = (x * cos - y * sin) as f32;
        head[b] = (y * cos + x * sin) as f32;
    }
}

/// Sine and cosine of `x` radians, within 2e-15 for float32 values below 2^28, the same bits on every machine: only additions
/// and multiplications, in this order.
pub fn sin_cos(x: f64) -> (f64, f64) {
    // pi/2 in three parts; the first two have 25 bits, so that their products with n are exact up to n = 2^28.
    const PI_2: [f64; 3] = [1.570_796_310_901_641_8, 1.589_325_471_229_585_7e-8, 6.123_233_995_736_766e-17];
    const SIN: [f64; 8] = [
        -1.0 / 6.0,
        1.0 / 120.0,
        -1.0 / 5_040.0,
        1.0 / 362_880.0,
        -1.0 / 39_916_800.0,
        1.0 / 6_227_020_800.0,
        -1.0 / 1_307_674_368_000.0,
        1.0 / 355_687_428_096_000.0,
    ];
    const COS: [f64; 8] = [
        -0.5,
        1.0 / 24.0,
        -1.0 / 720.0,
        1.0 / 40_320.0,
        -1.0 / 3_628_800.0,
        1.0 / 479_001_600.0,
        -1.0 / 87_178_291_200.0,
        1.0 / 20_922_789_888_000.0,
    ];
    let n = (x * std::f64::consts::FRAC_2_PI).round();
    let r = PI_2.iter().fold(x, |r, part| r - n * part);
    let r2 = r * r;
    let series = |c: &[f64; 8]| c.iter().rev().fold(0.0, |sum, c| sum * r2 + c) * r2;
    let (sin, cos) = (r + r * series(&SIN), 1.0 + series(&COS));
    match (n as i64) & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sine_and_cosine_are_close_to_the_systems() {
        for i in -200_000..200_000 {
            let x = f64::from(i as f32 * 0.913_7 * (1.0 + (i & 7) as f32 * 40.0));
            let (sin, cos) = sin_cos(x);
            assert!((sin - x.sin()).abs() < 2e-15 && (cos - x.cos()).abs() < 2e-15, "{x}");
        }
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
    }
}
