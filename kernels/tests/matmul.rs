//! Packed matrix product against the plain one.

mod common;

use common::{Random, all_cpus, assert_close, bits};
use kernels::Isa;
use kernels::cpu::{Cpu, Linear, Matrix, Rows, Store};
use kernels::quant::{QuantFormat, dequantize, encode};
use kernels::reference;

fn pack(cpu: &mut Cpu, weights: &[f32], k: usize) -> Matrix {
    let n_out = weights.len() / k;
    Matrix::pack(cpu.pool(), n_out, k, &|o, row| row.copy_from_slice(&weights[o * k..(o + 1) * k]))
}

fn product(cpu: &mut Cpu, linear: &Linear, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / linear.k() * linear.n_out()];
    cpu.matmul(linear, Rows::new(x), &mut out, Store::Replace);
    out
}

fn check(n_rows: usize, k: usize, parts: &[usize]) {
    let mut random = Random::new((n_rows * 31 + k) as u64);
    let n_out: usize = parts.iter().sum();
    let (x, weights) = (random.vec(n_rows * k), random.vec(n_out * k));
    let bias = random.vec(n_out);
    let expected = reference::matmul(&x, &weights, k);
    let mut first: Option<Vec<u32>> = None;
    for mut cpu in all_cpus() {
        let mut rest = &weights[..];
        let matrices = parts.iter().map(|n| {
            let (part, later) = rest.split_at(n * k);
            rest = later;
            pack(&mut cpu, part, k)
        });
        let linear = Linear::new(matrices.collect(), None);
        let isa = cpu.isa();
        let mut unpacked = vec![0.0; n_out * k];
        unpacked.chunks_exact_mut(k).enumerate().for_each(|(o, out)| linear.read_row(isa, o, out));
        assert_eq!(bits(&unpacked), bits(&weights), "unpacked");
        let out = product(&mut cpu, &linear, &x);
        assert_close(&out, &expected, 2e-6 * (k as f32).sqrt());
        assert_eq!(
            &bits(&out),
            first.get_or_insert_with(|| bits(&out)),
            "{} threads {}",
            cpu.isa(),
            cpu.pool().n_threads()
        );
        for (row, out) in x.chunks_exact(k).zip(out.chunks_exact(n_out)) {
            assert_eq!(bits(&product(&mut cpu, &linear, row)), bits(out), "a row alone");
        }
        let whole = Linear::new(vec![pack(&mut cpu, &weights, k)], Some(bias.clone()));
        let mut added = out.clone();
        cpu.matmul(&whole, Rows::new(&x), &mut added, Store::Add);
        let by_hand = |(i, y): (usize, &f32)| y + (y + bias[i % n_out]);
        assert_eq!(bits(&added), bits(&out.iter().enumerate().map(by_hand).collect::<Vec<_>>()));
    }
}

#[test]
fn equals_the_reference_on_all_levels_threads_and_batches() {
    check(1, 1, &[1]);
    check(1, 64, &[32]);
    check(3, 64, &[64, 16, 16]);
    check(7, 33, &[31, 5]);
    check(8, 160, &[64]);
    check(15, 48, &[33, 100]);
    check(130, 64, &[70]);
}

#[test]
fn the_order_of_k_shows_in_the_bits() {
    let (mut random, k) = (Random::new(3), 96);
    let (x, weights) = (random.vec(k), random.vec(64 * k));
    let reverse = |v: &[f32]| v.chunks_exact(k).flat_map(|r| r.iter().rev().copied()).collect::<Vec<_>>();
    let mut cpu = Cpu::new(2, Isa::detect());
    let forward = Linear::new(vec![pack(&mut cpu, &weights, k)], None);
    let backward = Linear::new(vec![pack(&mut cpu, &reverse(&weights), k)], None);
    let (a, b) = (product(&mut cpu, &forward, &x), product(&mut cpu, &backward, &reverse(&x)));
    assert_close(&a, &b, 1e-5);
    assert_ne!(bits(&a), bits(&b), "equal bits would mean that the test of equality sees nothing");
}

/// Weights as stored in 16 bits, and the same numbers in float32.
fn pack_both(cpu: &mut Cpu, format: QuantFormat, bytes: &[u8], k: usize) -> [Linear; 2] {
    let row_bytes = format.bytes_of(k);
    let n_out = bytes.len() / row_bytes;
    let row = |o| &bytes[o * row_bytes..(o + 1) * row_bytes];
    let stored = Matrix::pack_stored(cpu.pool(), format, n_out, k, &row).unwrap();
    let widened = Matrix::pack(cpu.pool(), n_out, k, &|o, out| dequantize(format, row(o), out));
    assert_eq!(2 * stored.n_bytes(), widened.n_bytes());
    let mut numbers = vec![0.0; k];
    for o in 0..n_out {
        stored.read_row(cpu.isa(), o, &mut numbers);
        let mut expected = vec![0.0; k];
        dequantize(format, row(o), &mut expected);
        assert_eq!(bits(&numbers), bits(&expected));
    }
    [stored, widened].map(|matrix| Linear::new(vec![matrix], None))
}

#[test]
fn weights_of_16_bits_equal_the_same_numbers_in_float32() {
    for format in [QuantFormat::F16, QuantFormat::BF16] {
        for (n_rows, k, n_out) in [(1, 64, 32), (2, 33, 70), (3, 1, 5), (5, 96, 16), (23, 48, 33), (70, 40, 64)] {
            let mut random = Random::new((n_rows * 7 + n_out) as u64);
            let x = random.vec(n_rows * k);
            // Some of them subnormal in binary16.
            let weights: Vec<f32> = (0..n_out * k).map(|i| random.next() * [1.0, 1e-6][i % 2]).collect();
            let mut bytes = encode::quantize(format, &weights);
            let mut first = None;
            for mut cpu in all_cpus() {
                let [stored, widened] =
                    pack_both(&mut cpu, format, &bytes, k).map(|w| bits(&product(&mut cpu, &w, &x)));
                assert_eq!(stored, widened, "{format:?} {n_rows} x {k} x {n_out}, {}", cpu.isa());
                assert_eq!(&stored, first.get_or_insert_with(|| stored.clone()), "{}", cpu.isa());
            }
            // The comparison would see the lowest bit of one weight.
            bytes[0] ^= 1;
            let mut cpu = Cpu::new(1, Isa::detect());
            let [changed, _] = pack_both(&mut cpu, format, &bytes, k);
            assert_ne!(bits(&product(&mut cpu, &changed, &x)), first.unwrap());
        }
    }
}

#[test]
fn only_formats_of_16_bits_are_kept_as_stored() {
    let mut cpu = Cpu::new(1, Isa::detect());
    for format in QuantFormat::ALL {
        let bytes = vec![0; format.bytes_of(256)];
        let kept = Matrix::pack_stored(cpu.pool(), format, 1, 256, &|_| &bytes).is_some();
        assert_eq!(kept, matches!(format, QuantFormat::F16 | QuantFormat::BF16), "{format:?}");
    }
}
