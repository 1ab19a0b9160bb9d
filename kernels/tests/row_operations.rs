//! Normalisation, gates and caps against their plain versions.

mod common;

use common::{Random, all_cpus, assert_close, bits};
use kernels::cpu::{Activation, Cpu, Parts};
use kernels::reference;

/// Runs an operation on all levels and thread numbers: close to `expected`, the same bits everywhere.
fn check(expected: &[f32], operation: impl Fn(&mut Cpu) -> Vec<f32>) {
    let mut first: Option<Vec<u32>> = None;
    for mut cpu in all_cpus() {
        let out = operation(&mut cpu);
        assert_close(&out, expected, 2e-6);
        let found = bits(&out);
        assert_eq!(&found, first.get_or_insert_with(|| found.clone()), "{}", cpu.isa());
    }
}

const SHAPES: [(usize, usize); 5] = [(1, 64), (5, 576), (40, 96), (3, 33), (17, 7)];

#[test]
fn norms_equal_the_reference() {
    for (n_rows, dim) in SHAPES {
        let mut random = Random::new((n_rows * 1_000 + dim) as u64);
        let (x, weight, before) = (random.vec(n_rows * dim), random.vec(dim), random.vec(n_rows * dim));
        let expected = reference::rms_norm(&x, &weight, 1e-5);
        check(&expected, |cpu| {
            let mut out = vec![0.0; n_rows * dim];
            cpu.rms_norm(&x, &weight, 1e-5, &mut out);
            out
        });
        let expected: Vec<f32> = before.iter().zip(expected).map(|(a, b)| a + b).collect();
        check(&expected, |cpu| {
            let mut out = before.clone();
            cpu.rms_norm_add(&x, &weight, 1e-5, &mut out);
            out
        });
    }
}

#[test]
fn norms_of_parts_equal_the_reference_and_leave_the_rest() {
    for (n_rows, dim) in SHAPES {
        let mut random = Random::new((n_rows * 3_000 + dim) as u64);
        let (stride, parts) = (4 * dim + 5, Parts { first: 3, n_parts: 3 });
        let (x, weight) = (random.vec(n_rows * stride), random.vec(dim));
        let mut expected = x.clone();
        for row in expected.chunks_exact_mut(stride) {
            let normed = reference::rms_norm(&row[3..3 + 3 * dim], &weight, 1e-6);
            row[3..3 + 3 * dim].copy_from_slice(&normed);
        }
        check(&expected, |cpu| {
            let mut out = x.clone();
            cpu.rms_norm_parts(&mut out, stride, parts, &weight, 1e-6);
            out
        });
    }
}

#[test]
fn gates_equal_the_reference() {
    for (n_rows, dim) in SHAPES {
        let mut random = Random::new((n_rows * 2_000 + dim) as u64);
        let gate_up: Vec<f32> = random.vec(n_rows * 2 * dim).iter().map(|x| x * 12.0).collect();
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let plain = match activation {
                Activation::Silu => reference::swiglu,
                Activation::GeluTanh => reference::geglu,
            };
            let expected: Vec<f32> =
                gate_up.chunks_exact(2 * dim).flat_map(|row| plain(&row[..dim], &row[dim..])).collect();
            check(&expected, |cpu| {
                let mut out = vec![0.0; n_rows * dim];
                cpu.gate(activation, &gate_up, dim, &mut out);
                out
            });
        }
    }
}

#[test]
fn caps_equal_the_reference() {
    for (n, cap) in [(1, 30.0), (17, 30.0), (70_000, 5.0), (333, 50.0)] {
        let x: Vec<f32> = Random::new(n as u64).vec(n).iter().map(|x| x * 120.0).collect();
        let mut expected = x.clone();
        reference::softcap(&mut expected, cap);
        check(&expected, |cpu| {
            let mut out = x.clone();
            cpu.softcap(&mut out, cap);
            out
        });
    }
}
