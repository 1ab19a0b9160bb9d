//! Normalisation and gate against their plain versions.

mod common;

use common::{Random, all_cpus, assert_close, bits};
use kernels::reference;

fn check(n_rows: usize, dim: usize) {
    let mut random = Random::new((n_rows * 1_000 + dim) as u64);
    let (x, weight) = (random.vec(n_rows * dim), random.vec(dim));
    let gate_up: Vec<f32> = random.vec(n_rows * 2 * dim).iter().map(|x| x * 12.0).collect();
    let expected_norm = reference::rms_norm(&x, &weight, 1e-5);
    let expected_gate: Vec<f32> =
        gate_up.chunks_exact(2 * dim).flat_map(|row| reference::swiglu(&row[..dim], &row[dim..])).collect();
    let mut first: Option<(Vec<u32>, Vec<u32>)> = None;
    for mut cpu in all_cpus() {
        let (mut norm, mut gate) = (vec![0.0; n_rows * dim], vec![0.0; n_rows * dim]);
        cpu.rms_norm(&x, &weight, 1e-5, &mut norm);
        cpu.swiglu(&gate_up, dim, &mut gate);
        assert_close(&norm, &expected_norm, 2e-6);
        assert_close(&gate, &expected_gate, 2e-6);
        let found = (bits(&norm), bits(&gate));
        assert_eq!(&found, first.get_or_insert_with(|| found.clone()), "{}", cpu.isa());
    }
}

#[test]
fn equal_the_reference_on_all_levels_and_threads() {
    check(1, 64);
    check(5, 576);
    check(40, 96);
    check(3, 33);
    check(17, 7);
}
