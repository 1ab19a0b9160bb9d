//! A man in the middle damages what passes: never sealed wrong, repaired where that is possible.

use std::sync::Arc;

use crate::support::{Bed, handoff, have, holds_prompt};
use transfer::testing::{Fault, Plan};
use transfer::{Checksum, PullError, Pulled};

const N_TOKENS: usize = 21;
const TRIALS: u64 = 12;

/// One pull through a proxy: the result, whether the blocks are right, and how many frames failed their checksum.
/// The reader has the first `n_here` blocks.
async fn pull_through(
    plan: Plan,
    seed: u64,
    checksum: Checksum,
    n_here: usize,
) -> (Result<Pulled, PullError>, bool, u64) {
    let bed = Bed::new(128).await;
    let (offer, computing) = bed.offer(N_TOKENS);
    computing.publish_all();
    offer.finish(handoff(N_TOKENS));
    let (proxy, _stop) = bed.proxy(plan, seed).await;
    let mut pull = bed.pull(N_TOKENS);
    pull.address = proxy.to_string();
    pull.checksum = checksum;
    have(&computing, &mut pull, n_here);
    let pulled = bed.puller.pull(&pull).await;
    drop(offer);
    (pulled, holds_prompt(&pull), bed.puller.metrics().checksum_failures())
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

#[tokio::test]
async fn damage_in_one_fetch_is_repaired_or_an_error() {
    for fault in Fault::ALL {
        for seed in 0..TRIALS {
            // Every other time the reader has some of it.
            let n_here = (seed % 2 * 2) as usize;
            let (pulled, right, failures) = pull_through(first_only(fault), seed, Checksum::On, n_here).await;
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
                    assert_eq!(failures > 0, in_frames, "{fault:?}, seed {seed}: counted");
                }
                (_, Err(error)) => panic!("{fault:?}, seed {seed}: not repaired: {error}"),
            }
        }
    }
}

#[tokio::test]
async fn damage_in_every_fetch_is_an_error() {
    for fault in Fault::ALL {
        for seed in 0..TRIALS {
            let (pulled, _, _) = pull_through(always(fault), seed, Checksum::On, (seed % 3) as usize).await;
            match (fault, pulled) {
                (Fault::Reorder, Ok(pulled)) => assert!(is_right(&pulled)),
                (Fault::Truncate | Fault::Disconnect, Err(PullError::PeerLost(_))) => {}
                (_, Err(PullError::Corrupt(_))) => {}
                (_, other) => panic!("{fault:?}, seed {seed}: {other:?}"),
            }
        }
    }
}

/// The positive control: without checksums the same noise goes through, so it is the checksum that stops it.
#[tokio::test]
async fn without_checksums_noise_goes_through() {
    for seed in 0..TRIALS {
        let (pulled, right, failures) = pull_through(always(Fault::NoiseBlock), seed, Checksum::Off, 0).await;
        assert!(is_right(&pulled.unwrap()));
        assert!(!right, "seed {seed}: the noise did not arrive");
        assert_eq!(failures, 0);
    }
}
