//! A man in the middle damages what passes: never sealed wrong, repaired where that is possible. On every transport.
//!
//! `BATON_TRANSFER_TRIALS=full` runs the full counts: 10,000 flipped bits, 1,000 truncations, 1,000 swapped blocks and
//! 1,000 stale epochs a transport, and a million clean blocks in all; without it a twentieth of that.

use std::sync::Arc;

use crate::support::{Bed, Trials, handoff, holds_prompt, over_every_transport, source_blocks};
use transfer::testing::{Fault, Plan};
use transfer::{Checksum, PullError, Pulled, TransportKind};
use types::{Epoch, RequestId};

const N_TOKENS: usize = 21;
const CELL_BYTES: usize = 128;
const SEEDS: u64 = 6;

over_every_transport!(
    damage_in_one_fetch_is_repaired_or_an_error,
    damage_in_every_fetch_is_an_error,
    without_checksums_noise_goes_through,
    no_flipped_bit_is_sealed,
    no_truncation_is_sealed,
    no_swapped_block_is_sealed,
    no_stale_epoch_is_sealed,
    clean_blocks_raise_no_alarm,
);

/// A bed whose prompt is computed, to be pulled again and again.
struct Target {
    bed: Bed,
    kind: TransportKind,
}

/// What came of one pull.
struct Outcome {
    pulled: Result<Pulled, PullError>,
    /// Whether the blocks hold the prompt.
    right: bool,
    /// Frames that were rejected.
    rejected: u64,
}

impl Target {
    async fn new(kind: TransportKind) -> Self {
        let bed = Bed::new(kind, CELL_BYTES).await;
        let (offer, computing) = bed.offer(N_TOKENS);
        computing.publish_all();
        drop(offer);
        Self { bed, kind }
    }

    async fn pull(&self, plan: Plan, seed: u64, checksum: Checksum) -> Outcome {
        let request = RequestId(u128::from(seed) + 1);
        let (offer, _computing) = self.bed.offer_as(request, source_blocks(N_TOKENS), N_TOKENS);
        offer.finish(handoff(N_TOKENS));
        let mut pull = self.bed.pull(N_TOKENS);
        (pull.request, pull.checksum) = (request, checksum);
        let _stop = self.bed.proxy(self.kind, plan, seed, &mut pull).await;
        let before = self.bed.puller.metrics().rejected_frames();
        let pulled = self.bed.puller.pull(&pull).await;
        drop(offer);
        let rejected = self.bed.puller.metrics().rejected_frames() - before;
        Outcome { pulled, right: holds_prompt(&pull), rejected }
    }
}

fn first_only(fault: Fault) -> Plan {
    Arc::new(move |n| (n == 0).then_some(fault))
}

fn always(fault: Fault) -> Plan {
    Arc::new(move |_| Some(fault))
}

fn is_right(pulled: &Pulled) -> bool {
    pulled.handoff == handoff(N_TOKENS)
}

async fn damage_in_one_fetch_is_repaired_or_an_error(kind: TransportKind) {
    let target = Target::new(kind).await;
    for (number, fault) in Fault::ALL.into_iter().enumerate() {
        for seed in 0..SEEDS {
            let seed = number as u64 * SEEDS + seed;
            let Outcome { pulled, right, rejected } = target.pull(first_only(fault), seed, Checksum::On).await;
            match (fault, pulled) {
                (Fault::Truncate | Fault::Disconnect, Err(PullError::PeerLost(_)))
                | (Fault::DuplicateFrame, Err(PullError::Corrupt(_))) => {}
                (Fault::Truncate | Fault::Disconnect | Fault::DuplicateFrame, other) => {
                    panic!("{fault:?}, seed {seed}: {other:?}")
                }
                (Fault::Reorder, Ok(pulled)) => {
                    assert!(is_right(&pulled) && right && pulled.refetched == 0, "order does not matter");
                }
                (_, Ok(pulled)) => {
                    assert!(is_right(&pulled) && right, "{fault:?}, seed {seed}: sealed wrong");
                    assert!(pulled.refetched > 0, "{fault:?}, seed {seed}: not noticed");
                    let in_frames = !matches!(fault, Fault::DropFrame | Fault::ManifestBit);
                    assert_eq!(rejected > 0, in_frames, "{fault:?}, seed {seed}: counted");
                }
                (_, Err(error)) => panic!("{fault:?}, seed {seed}: not repaired: {error}"),
            }
        }
    }
}

async fn damage_in_every_fetch_is_an_error(kind: TransportKind) {
    let target = Target::new(kind).await;
    for (number, fault) in Fault::ALL.into_iter().enumerate() {
        for seed in 0..SEEDS {
            let seed = number as u64 * SEEDS + seed;
            match (fault, target.pull(always(fault), seed, Checksum::On).await.pulled) {
                (Fault::Reorder, Ok(pulled)) => assert!(is_right(&pulled)),
                (Fault::Truncate | Fault::Disconnect, Err(PullError::PeerLost(_))) => {}
                (_, Err(PullError::Corrupt(_))) => {}
                (_, other) => panic!("{fault:?}, seed {seed}: {other:?}"),
            }
        }
    }
}

/// Pulls with each of `faults` in turn in every fetch's way: how many were sealed although their blocks are wrong, and
/// how many were sealed at all.
async fn sealed_wrong(kind: TransportKind, faults: &[Fault], trials: u64, checksum: Checksum) -> (u64, u64) {
    let target = Target::new(kind).await;
    let (mut wrong, mut sealed) = (0, 0);
    for trial in 0..trials {
        let fault = faults[trial as usize % faults.len()];
        // In the first fetch only: what is sealed then was repaired, and must be right.
        let Outcome { pulled, right, .. } = target.pull(first_only(fault), trial, checksum).await;
        if let Ok(pulled) = pulled {
            sealed += 1;
            wrong += u64::from(!right || !is_right(&pulled));
        }
    }
    (wrong, sealed)
}

async fn no_flipped_bit_is_sealed(kind: TransportKind) {
    let faults =
        [Fault::PayloadBit, Fault::HeaderBit, Fault::HashBit, Fault::ChecksumBit, Fault::ManifestBit, Fault::WireBit];
    let trials = Trials::of(10_000).count;
    assert_eq!(sealed_wrong(kind, &faults, trials, Checksum::On).await, (0, trials), "all repaired, none wrong");
    // Control: what the checksum stops is there to be stopped.
    let (wrong, _) = sealed_wrong(kind, &[Fault::PayloadBit], 20, Checksum::Off).await;
    // But for the few that hit rows of the last block that the prompt does not have.
    assert!(wrong > 10, "without checksums a flipped bit goes through: {wrong} of 20 did");
}

async fn no_truncation_is_sealed(kind: TransportKind) {
    let trials = Trials::of(1_000).count;
    let faults = [Fault::Truncate, Fault::Disconnect, Fault::DropFrame];
    let (wrong, sealed) = sealed_wrong(kind, &faults, trials, Checksum::On).await;
    assert_eq!((wrong, sealed), (0, trials / 3), "a lost frame is fetched again, a lost end is an error");
    // Control: what was cut off is missed in the blocks, so that sealing would have been wrong.
    let target = Target::new(kind).await;
    for seed in 0..20 {
        let outcome = target.pull(always(Fault::DropFrame), seed, Checksum::On).await;
        assert!(outcome.pulled.is_err() && !outcome.right, "seed {seed}: nothing was lost");
    }
}

async fn no_swapped_block_is_sealed(kind: TransportKind) {
    let trials = Trials::of(1_000).count;
    let faults = [Fault::SwapPayloads, Fault::SwapHeaders, Fault::ForeignRequest];
    assert_eq!(sealed_wrong(kind, &faults, trials, Checksum::On).await, (0, trials));
    let (wrong, _) = sealed_wrong(kind, &[Fault::SwapPayloads], 20, Checksum::Off).await;
    assert_eq!(wrong, 20, "without checksums swapped blocks go through");
}

async fn no_stale_epoch_is_sealed(kind: TransportKind) {
    let trials = Trials::of(1_000).count;
    let target = Target::new(kind).await;
    for trial in 0..trials {
        let Outcome { pulled, right, rejected } = target.pull(first_only(Fault::StaleEpoch), trial, Checksum::On).await;
        let pulled = pulled.expect("repaired");
        assert!(right && is_right(&pulled) && rejected == 1 && pulled.refetched == 1, "trial {trial}");
    }
    // Control: the same frames pass where their epoch is the expected one, so it is the epoch that stops them.
    for trial in 0..20_u64 {
        let request = RequestId(u128::from(trial) + 1_000_000);
        let (offer, _computing) = target.bed.offer_as(request, source_blocks(N_TOKENS), N_TOKENS);
        offer.finish(handoff(N_TOKENS));
        let mut pull = target.bed.pull(N_TOKENS);
        pull.request = request;
        let pulled = target.bed.puller.pull(&pull).await.expect("nothing is wrong");
        assert!(pulled.refetched == 0 && holds_prompt(&pull));
        let mut stale = target.bed.pull(N_TOKENS);
        (stale.request, stale.owner_epoch) = (request, Epoch(4));
        assert!(matches!(target.bed.puller.pull(&stale).await, Err(PullError::Refused(_))));
    }
}

/// The positive control of all: without checksums noise goes through, so it is the checksum that stops it.
async fn without_checksums_noise_goes_through(kind: TransportKind) {
    let target = Target::new(kind).await;
    for seed in 0..SEEDS {
        let Outcome { pulled, right, rejected } = target.pull(always(Fault::NoiseBlock), seed, Checksum::Off).await;
        assert!(is_right(&pulled.unwrap()));
        assert!(!right, "seed {seed}: the noise did not arrive");
        assert_eq!(rejected, 0);
    }
}

async fn clean_blocks_raise_no_alarm(kind: TransportKind) {
    let bed = Bed::new(kind, CELL_BYTES).await;
    let n_tokens = 62 * crate::support::BLOCK_TOKENS - 1;
    let (offer, computing) = bed.offer(n_tokens);
    computing.publish_all();
    drop(offer);
    // A third of them for each transport; a pull has 62 blocks of three layers.
    let n_pulls = Trials::of(1_000_000 / 3 / (62 * 3)).count;
    for n in 0..n_pulls {
        let request = RequestId(u128::from(n) + 1);
        let (offer, _computing) = bed.offer_as(request, source_blocks(n_tokens), n_tokens);
        offer.finish(handoff(n_tokens));
        let mut pull = bed.pull(n_tokens);
        pull.request = request;
        let pulled = bed.puller.pull(&pull).await.unwrap();
        assert!(pulled.refetched == 0 && (n % 16 > 0 || holds_prompt(&pull)));
        drop(offer);
    }
    assert_eq!(bed.puller.metrics().rejected_frames(), 0);
}
