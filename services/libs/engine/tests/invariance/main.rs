//! A token's logits and KV are the same bits however they are computed: random cases against the plain way.
//!
//! Each case draws a model, a compute mode, a block size and some sequences, computes each by itself on one engine, and
//! then all of them on two others with threads and instructions of their own: together in batches, cut into any chunks,
//! over blocks in any order, sharing the blocks of equal beginnings, moved cell by cell from engine to engine, dropped
//! and begun again, with steps that abort and with trees of drafts. Every bit of logits and KV must be equal.
//!
//! `BATON_INVARIANCE_CASES` sets how many; `BATON_INVARIANCE_SEED` plays one again.

#![allow(missing_docs, clippy::print_stdout, reason = "a test; it says what it left out")]

mod blocks;
mod case;
#[path = "../common/mod.rs"]
mod common;
mod engines;
mod play;
mod random;
mod reference;
mod sabotage;
mod steps;

use crate::engines::Engines;
use crate::play::Difference;
use crate::sabotage::Sabotage;

/// Cases unless the environment says otherwise.
const CASES: u64 = 500;
/// Cases of each way to break something.
const BROKEN: usize = 12;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|e| panic!("{name}={v}: {e}")))
}

#[test]
fn random_ways_of_computing_give_the_bits_of_the_plain_way() {
    let mut engines = Engines::new();
    let seeds = match from_environment("BATON_INVARIANCE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("BATON_INVARIANCE_CASES").unwrap_or(CASES),
    };
    for seed in seeds {
        let outcome = case::run(&mut engines, seed, None);
        if let Some(difference) = outcome.difference {
            panic!("{difference}; {}; BATON_INVARIANCE_SEED={seed} plays it again", outcome.about);
        }
    }
}

/// The comparison sees each way to compute something else.
#[test]
fn what_is_broken_on_purpose_shows() {
    let mut engines = Engines::new();
    for sabotage in Sabotage::ALL {
        let (mut broken, mut seed) = (0, 0);
        while broken < BROKEN {
            assert!(seed < 1_000, "{sabotage:?}: too few cases allow it");
            let outcome = case::run(&mut engines, seed, Some(sabotage));
            if outcome.sabotaged {
                broken += 1;
                let Some(difference) = outcome.difference else {
                    panic!("{sabotage:?} does not show: seed {seed}, {}", outcome.about);
                };
                // The same keys and values in another order: nothing but the order of the sums is different.
                if let (Sabotage::Order, Difference::Logits { largest, .. }) = (sabotage, difference) {
                    assert!(largest < 1e-3, "{largest} is more than rounding: seed {seed}, {}", outcome.about);
                }
            } else if let Some(difference) = outcome.difference {
                panic!("{difference} with nothing broken: seed {seed}, {}", outcome.about);
            }
            seed += 1;
        }
    }
}
