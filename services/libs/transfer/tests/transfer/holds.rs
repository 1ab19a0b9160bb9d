//! Who may have the blocks when: a hold ends by the reader's word or its connection's end, and whoever has the blocks
//! next finds no trace of the transfer. On every transport.
//!
//! `BATON_TRANSFER_TRIALS=full` runs 10,000 holds that end within a pull and 5,000 aborts a transport; without it a
//! twentieth of that.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use kernels::kv::KvArena;
use tokio::time::timeout;
use transfer::{EndCause, Pull, PullError, SourceConfig, TransportKind};
use types::{BlockIdx, RequestId};

use crate::support::{BLOCK_TOKENS, Bed, CONFIG, N_LAYERS, Trials, arena, fill, handoff, holds, over_every_transport};

const SECOND: Duration = Duration::from_secs(1);
/// Large enough that a pull takes a while.
const CELL_BYTES: usize = 32 << 10;
const N_BLOCKS: usize = 8;
const N_TOKENS: usize = N_BLOCKS * BLOCK_TOKENS;
/// Of which a random part passes before a pull is disturbed: about what one takes.
const DISTURB_MICROS: u64 = 1_500;

over_every_transport!(
    a_hold_that_ends_within_a_pull_is_never_read_stale,
    aborts_leave_nothing_in_the_next_owners_blocks,
    a_reader_that_is_busy_keeps_its_hold,
    a_silent_reader_is_fenced,
    giving_up_ends_the_hold_at_once,
);

/// SplitMix64 of the trial's number.
fn random(trial: u64, below: u64) -> u64 {
    let mut z = trial.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) % below
}

/// A sleep that is not rounded to the timer's milliseconds.
async fn disturb_after(trial: u64) {
    let time = Duration::from_micros(random(trial, DISTURB_MICROS));
    tokio::task::spawn_blocking(move || std::thread::sleep(time)).await.expect("sleeping does not panic");
}

fn blocks(set: u64) -> Vec<BlockIdx> {
    (0..N_BLOCKS as u32).map(|block| BlockIdx(set as u32 * N_BLOCKS as u32 + block)).collect()
}

/// Takes blocks over for a prompt with this salt. Panics if somebody still reads or writes them.
fn take_over(arena: &KvArena, blocks: &[BlockIdx], salt: usize) {
    blocks.iter().for_each(|block| arena.reset(block.0));
    for layer in 0..N_LAYERS {
        for (index, block) in blocks.iter().enumerate() {
            let mut append = arena.append(layer, block.0, 0, BLOCK_TOKENS).expect("just emptied");
            let row_bytes = CELL_BYTES / BLOCK_TOKENS;
            for (row, bytes) in append.cell_mut().chunks_exact_mut(row_bytes).enumerate() {
                fill(bytes, layer, index * BLOCK_TOKENS + row + salt);
            }
            append.publish();
        }
    }
}

fn pull_of(bed: &Bed, trial: u64, into: &Arc<KvArena>) -> Pull {
    let mut pull = bed.pull(N_TOKENS);
    (pull.request, pull.arena) = (RequestId(u128::from(trial) + 1), into.clone());
    pull.blocks = blocks(trial % 2);
    pull
}

async fn a_hold_that_ends_within_a_pull_is_never_read_stale(kind: TransportKind) {
    let (mut read, mut lost) = (0, 0);
    let bed = Bed::new(kind, CELL_BYTES).await;
    for trial in 0..Trials::of(10_000).count {
        let (salt, pool) = (trial as usize * 3, blocks(0));
        take_over(&bed.arena, &pool, salt);
        let (offer, computing) = bed.offer_as(RequestId(u128::from(trial) + 1), pool.clone(), N_TOKENS);
        offer.finish(handoff(N_TOKENS));
        let into = arena(CELL_BYTES);
        let pull = pull_of(&bed, trial, &into);
        let end = async {
            disturb_after(trial).await;
            drop(offer);
            while !computing.released() {
                tokio::task::yield_now().await;
            }
            take_over(&bed.arena, &pool, salt + 1);
        };
        let (pulled, ()) = tokio::join!(bed.puller.pull(&pull), end);
        match pulled {
            Ok(_) => {
                read += 1;
                assert!(holds(&pull, salt), "trial {trial}: sealed, and not what was offered");
            }
            Err(PullError::Refused(failure)) => {
                lost += 1;
                assert!(["KV_WITHDRAWN", "KV_NOT_OFFERED"].contains(&failure.reason), "trial {trial}: {failure}");
            }
            Err(other) => panic!("trial {trial}: the reader is to be told why: {other}"),
        }
    }
    assert!(read > 0 && lost > 0, "{read} pulls before the end, {lost} within: times do not fit this machine");

    // Control: an owner that does not wait for the hold is found out, by the arena or by what arrives.
    let mut found = 0;
    for trial in 0..100 {
        let (salt, pool) = (trial as usize * 3, blocks(0));
        take_over(&bed.arena, &pool, salt);
        let (offer, _computing) = bed.offer_as(RequestId(u128::from(trial) + 1_000_000), pool.clone(), N_TOKENS);
        offer.finish(handoff(N_TOKENS));
        let into = arena(CELL_BYTES);
        let mut pull = pull_of(&bed, trial, &into);
        pull.request = RequestId(u128::from(trial) + 1_000_000);
        let steal = async {
            disturb_after(trial).await;
            catch_unwind(AssertUnwindSafe(|| take_over(&bed.arena, &pool, salt + 1))).is_err()
        };
        let (pulled, caught) = tokio::join!(bed.puller.pull(&pull), steal);
        found += u64::from(caught || (pulled.is_ok() && !holds(&pull, salt)));
        drop(offer);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(found > 0, "blocks were taken away under a transfer, and nobody noticed");
}

async fn aborts_leave_nothing_in_the_next_owners_blocks(kind: TransportKind) {
    let bed = Bed::new(kind, CELL_BYTES).await;
    // Room for two requests on either side.
    take_over(&bed.arena, &blocks(0), 0);
    let into = arena(CELL_BYTES);
    let mut aborted = 0;
    let mut before: Option<(Pull, usize)> = None;
    for trial in 0..Trials::of(5_000).count {
        let pull = pull_of(&bed, trial, &into);
        let (offer, computing) = bed.offer_as(pull.request, blocks(0), N_TOKENS);
        offer.finish(handoff(N_TOKENS));
        pull.blocks.iter().for_each(|block| into.reset(block.0));
        tokio::select! {
            pulled = bed.puller.pull(&pull) => drop(pulled.expect("nobody disturbs the source")),
            () = disturb_after(trial) => aborted += 1,
        }
        // The next owner has the reader's blocks at once, and the source's as soon as they are given back.
        let salt = 1 + trial as usize;
        take_over(&into, &pull.blocks, salt);
        if let Some((before, salt)) = before.replace((pull, salt)) {
            assert!(holds(&before, salt), "trial {trial}: something was written after the abort before it");
        }
        timeout(SECOND * 5, offer.ended()).await.expect("the source hears of it");
        timeout(SECOND, async {
            while !computing.released() {
                tokio::task::yield_now().await
            }
        })
        .await
        .unwrap();
    }
    assert!(aborted > 0, "no pull was long enough to be aborted: times do not fit this machine");

    // Control: a pull that goes on after its blocks were given away is found out.
    let mut found = false;
    // As often as it takes to hit the moment.
    for trial in 0..5_000 {
        if found {
            break;
        }
        let mut pull = pull_of(&bed, trial, &into);
        pull.request = RequestId(u128::from(trial) + 1_000_000);
        let (offer, _computing) = bed.offer_as(pull.request, blocks(0), N_TOKENS);
        offer.finish(handoff(N_TOKENS));
        pull.blocks.iter().for_each(|block| into.reset(block.0));
        let (puller, running) = (bed.puller.clone(), pull.clone());
        let running = tokio::spawn(async move { puller.pull(&running).await });
        disturb_after(trial).await;
        let caught = catch_unwind(AssertUnwindSafe(|| take_over(&into, &pull.blocks, 7))).is_err();
        let pulled = running.await.expect("does not panic");
        found = caught || pulled.is_err() || !holds(&pull, 7);
        drop(offer);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(found, "a pull wrote into blocks of somebody else, and nobody noticed");
}

/// The hold is renewed by a task of its own: an engine whose steps are long does not starve it.
async fn a_reader_that_is_busy_keeps_its_hold(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let (offer, computing) = bed.offer(9);
    let pull = bed.pull(9);
    computing.publish(0..4);
    let mut pulling = Box::pin(bed.puller.pull(&pull));
    while pull.arena.rows(0, 0) == 0 {
        assert!(timeout(Duration::from_millis(2), &mut pulling).await.is_err(), "cannot be complete");
    }
    // Nobody looks after the pull.
    tokio::time::sleep(CONFIG.silence * 3).await;
    assert!(!computing.released());
    computing.publish(4..9);
    offer.finish(handoff(9));
    let (pulled, ended) = tokio::join!(pulling, offer.ended());
    pulled.unwrap();
    assert_eq!(ended.cause, EndCause::Fetched);
}

async fn a_silent_reader_is_fenced(kind: TransportKind) {
    let config = SourceConfig { silence: Duration::from_millis(200), ..CONFIG };
    let bed = Bed::with(kind, 256, config).await;
    let (offer, computing) = bed.offer(9);
    computing.publish(0..4);
    let mut pull = bed.pull(9);
    // A reader whose keeper does not run.
    pull.keep_alive = Duration::from_secs(60);
    let ending = async {
        while pull.arena.rows(0, 0) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        timeout(SECOND * 2, offer.ended()).await.expect("does not wait for a reader that says nothing")
    };
    let (pulled, ended) = tokio::join!(bed.puller.pull(&pull), ending);
    assert!(matches!(pulled, Err(PullError::PeerLost(_))), "its connection is closed: {pulled:?}");
    assert_eq!(ended.cause, EndCause::Fenced);
    timeout(SECOND, async {
        while !computing.released() {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
}

async fn giving_up_ends_the_hold_at_once(kind: TransportKind) {
    let config = SourceConfig { silence: SECOND * 60, ..CONFIG };
    let bed = Bed::with(kind, 256, config).await;
    let (offer, computing) = bed.offer(9);
    computing.publish(0..4);
    let mut pull = bed.pull(9);
    pull.deadline = tokio::time::Instant::now() + Duration::from_millis(100);
    let (pulled, ended) = tokio::join!(bed.puller.pull(&pull), timeout(SECOND, offer.ended()));
    assert!(matches!(pulled, Err(PullError::Deadline)));
    assert_eq!(ended.expect("the reader says that it gave up").cause, EndCause::Abandoned);
    timeout(SECOND, async {
        while !computing.released() {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
}
