//! Product of rounded inputs with packed quantised weights against the plain product of the same numbers.

mod common;

use common::{Random, all_cpus, assert_close, bits};
use kernels::cpu::{Activation, Cpu, Linear, Matrix, Rows, Store};
use kernels::quant::encode::quantize;
use kernels::quant::{QuantFormat, dequantize};
use kernels::reference;

/// What a row is after rounding to 8 bits per block of 32, to 16 if the block stands out or `fine` is set.
fn rounded(x: &[f32], fine: bool) -> Vec<f32> {
    let largest = |x: &[f32]| x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let mean = x.chunks_exact(32).map(largest).sum::<f32>() / (x.len() / 32) as f32;
    let block = |x: &[f32]| {
        let largest = largest(x);
        let steps = if fine || largest > 2.0 * mean { 32_767.0 } else { 127.0 };
        let inverse = if largest > 0.0 { steps / largest } else { 0.0 };
        x.iter().map(|x| (x * inverse).round_ties_even() * (largest / steps)).collect::<Vec<_>>()
    };
    x.chunks_exact(32).flat_map(block).collect()
}

fn product(cpu: &mut Cpu, linear: &Linear, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / linear.k() * linear.n_out()];
    cpu.matmul(linear, Rows::new(x), &mut out, Store::Replace);
    out
}

fn check(format: QuantFormat, n_rows: usize, k: usize, n_out: usize) {
    let mut random = Random::new((n_rows * 31 + k) as u64);
    let mut x = random.vec(n_rows * k);
    // Blocks of zeros, and of very different sizes.
    x[..32].fill(0.0);
    x.chunks_exact_mut(32).enumerate().for_each(|(i, b)| b.iter_mut().for_each(|x| *x *= [1.0, 30.0, 1e-3][i % 3]));
    let stored = quantize(format, &random.vec(n_out * k));
    let mut weights = vec![0.0; n_out * k];
    dequantize(format, &stored, &mut weights);
    let x_rounded: Vec<_> = x.chunks_exact(k).flat_map(|x| rounded(x, format == QuantFormat::Q8_0)).collect();
    let expected = reference::matmul(&x_rounded, &weights, k);
    let abs = |x: &[f32]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
    // What rounding errors are measured by.
    let sizes = reference::matmul(&abs(&x_rounded), &abs(&weights), k);
    let row_bytes = format.bytes_of(k);
    let mut first: Option<Vec<u32>> = None;
    for mut cpu in all_cpus() {
        let row = |o: usize| &stored[o * row_bytes..(o + 1) * row_bytes];
        let matrix = Matrix::pack_integer(cpu.pool(), format, n_out, k, &row).unwrap();
        let linear = Linear::new(vec![matrix], None);
        let mut unpacked = vec![0.0; n_out * k];
        unpacked.chunks_exact_mut(k).enumerate().for_each(|(o, out)| linear.read_row(o, out));
        assert_eq!(bits(&unpacked), bits(&weights), "{format:?} unpacked");
        let out = product(&mut cpu, &linear, &x);
        for ((found, expected), size) in out.iter().zip(&expected).zip(&sizes) {
            assert!((found - expected).abs() <= 3e-6 * size, "{format:?}: {found} instead of {expected} of {size}");
        }
        assert_eq!(&bits(&out), first.get_or_insert_with(|| bits(&out)), "{format:?} {}", cpu.isa());
        for (row, out) in x.chunks_exact(k).zip(out.chunks_exact(n_out)) {
            assert_eq!(bits(&product(&mut cpu, &linear, row)), bits(out), "a row alone");
        }
    }
}

#[test]
fn equals_the_reference_on_all_levels_threads_and_batches() {
    for format in QuantFormat::ALL.into_iter().filter(|f| f.block_elements() > 1) {
        // Sizes in blocks of 32; larger blocks are eight of them.
        let unit = if format.block_elements() == 32 { 32 } else { 256 };
        check(format, 1, unit, 1);
        check(format, 1, 3 * unit, 70);
        check(format, 3, 2 * unit, 16);
        check(format, 15, 5 * unit, 33);
        check(format, 70, 4 * unit, 64);
    }
}

#[test]
fn a_norm_on_the_way_and_gates_have_the_bits_of_separate_operations() {
    let (k, dim) = (96, 70);
    let mut random = Random::new(8);
    let (x, gain) = (random.vec(13 * k), random.vec(k));
    let stored = [QuantFormat::Q4_1, QuantFormat::Q8_0].map(|format| (format, quantize(format, &random.vec(dim * k))));
    for mut cpu in all_cpus() {
        let parts = stored.each_ref().map(|(format, stored)| {
            let row_bytes = format.bytes_of(k);
            let row = |o: usize| &stored[o * row_bytes..(o + 1) * row_bytes];
            Matrix::pack_integer(cpu.pool(), *format, dim, k, &row).unwrap()
        });
        let linear = Linear::new(parts.into(), Some(random.vec(2 * dim)));
        let mut normed = vec![0.0; x.len()];
        cpu.rms_norm(&x, &gain, 1e-5, &mut normed);
        let apart = product(&mut cpu, &linear, &normed);
        let mut at_once = vec![0.0; apart.len()];
        cpu.matmul(&linear, Rows::normed(&x, &gain, 1e-5), &mut at_once, Store::Replace);
        assert_eq!(bits(&at_once), bits(&apart));
        assert_ne!(bits(&at_once), bits(&product(&mut cpu, &linear, &x)), "the norm shows");
        let mut gated = vec![0.0; 13 * dim];
        cpu.matmul_gated(&linear, Rows::normed(&x, &gain, 1e-5), Activation::Silu, &mut gated);
        let expected = apart.chunks_exact(2 * dim).flat_map(|row| reference::swiglu(&row[..dim], &row[dim..]));
        assert_close(&gated, &expected.collect::<Vec<_>>(), 2e-6);
    }
}

#[test]
fn formats_without_a_packed_form_are_refused() {
    let mut cpu = all_cpus().next().unwrap();
    let none: &[u8] = &[];
    assert!(Matrix::pack_integer(cpu.pool(), QuantFormat::F16, 4, 64, &|_| none).is_none());
    assert!(Matrix::pack_integer(cpu.pool(), QuantFormat::BF16, 4, 64, &|_| none).is_none());
    assert!(Matrix::pack_integer(cpu.pool(), QuantFormat::Q8_0, 4, 33, &|_| none).is_none());
}

#[test]
fn not_a_number_stays_visible() {
    for mut cpu in all_cpus() {
        let stored = quantize(QuantFormat::Q4_1, &Random::new(1).vec(16 * 64));
        let row = |o: usize| &stored[o * 40..(o + 1) * 40];
        let linear =
            Linear::new(vec![Matrix::pack_integer(cpu.pool(), QuantFormat::Q4_1, 16, 64, &row).unwrap()], None);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = Random::new(2).vec(64);
            x[40] = bad;
            assert!(product(&mut cpu, &linear, &x).iter().all(|y| !y.is_finite()), "{bad}");
        }
    }
}
