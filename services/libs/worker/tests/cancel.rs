//! Cancelling at any moment gives everything back within a second and disturbs nobody.

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use engine::EngineError;
use engine::sim::SimConfig;
use futures::FutureExt;
use futures::future::join_all;
use support::{Random, Worker, collect, hooked, plain, sim, slow};
use tokio::time::{Instant, sleep};
use types::Code;
use worker::{Started, WorkerConfig};

fn config() -> WorkerConfig {
    WorkerConfig { max_step_tokens: 32, max_running: 8, reserve_cap_tokens: 16, ..WorkerConfig::default() }
}

/// Queued, in prefill, in transfer, in decode, with preemptions; by a call, by dropping, by both.
#[tokio::test(flavor = "multi_thread")]
async fn after_300_random_cancellations_nothing_is_owned_and_a_bystander_saw_nothing() {
    let engine = SimConfig { kv_blocks: 120, ..slow(Duration::from_micros(400)) };
    let prefill = Worker::new(engine.clone(), config());
    let decode = Worker::new(engine, config());
    let bystander = plain(9999, 150, 700);
    let expected = {
        let alone = Worker::new(sim(), WorkerConfig::default());
        bystander.whole(&alone.handle).await.unwrap()
    };
    let undisturbed = async {
        let found = bystander.whole(&decode.handle).await.unwrap();
        assert_eq!(found, expected);
    };
    let cancelled = AtomicUsize::new(0);
    let storm = async {
        let mut random = Random::new(1);
        for wave in 0..30 {
            let victims = (0..10).map(|i| {
                let request = plain(wave * 10 + i, 1 + random.below(250), 1 + random.below(80) as u32);
                let patience = Duration::from_micros(random.below(40_000) as u64);
                let way = random.below(3);
                let (prefill, decode, cancelled) = (&prefill.handle, &decode.handle, &cancelled);
                async move {
                    let split = request.split(prefill, decode, |_, _| ());
                    tokio::pin!(split);
                    tokio::select! {
                        // It may be done before, or be told that it was cancelled.
                        _ = &mut split => return,
                        () = sleep(patience) => {}
                    }
                    cancelled.fetch_add(1, Ordering::Relaxed);
                    if way > 0 {
                        decode.cancel(request.key.request, (way == 1).then_some(0)).await;
                        prefill.cancel(request.key.request, None).await;
                    }
                    if way == 1 {
                        let failed = split.await;
                        assert!(
                            failed.as_ref().is_ok_and(|t| t.last().is_some_and(|t| t.finish.is_some()))
                                || failed.is_err_and(|f| f.code == Code::Cancelled || f.code == Code::NotFound)
                        );
                    }
                }
            });
            join_all(victims.collect::<Vec<_>>()).await;
            prefill.at_rest().await;
        }
    };
    tokio::join!(undisturbed, storm);
    let n = cancelled.into_inner();
    assert!(n > 200, "only {n} were cancelled in the middle");
    prefill.stop().await;
    decode.stop().await;
}

/// An engine of 100 layers of 20 ms each.
fn long_steps(seen: Arc<AtomicUsize>) -> support::Hook {
    Box::new(move |_, on_layer| {
        for layer in 0..100 {
            std::thread::sleep(Duration::from_millis(20));
            seen.fetch_add(1, Ordering::Relaxed);
            if on_layer(layer) == ControlFlow::Break(()) {
                return Err(EngineError::Aborted);
            }
        }
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_nobody_wants_is_aborted_and_commands_do_not_wait_for_steps() {
    let layers = Arc::new(AtomicUsize::new(0));
    let worker = Worker::with(hooked(sim(), long_steps(layers.clone())), WorkerConfig::default());
    let mut one = worker.handle.prefill(plain(1, 40, 4).prefill_job(&worker.handle)).await.unwrap();
    let two = worker.handle.prefill(plain(2, 40, 4).prefill_job(&worker.handle)).await.unwrap();
    let started = one.started().await.unwrap();
    sleep(Duration::from_millis(30)).await;
    let asked = Instant::now();
    assert!(worker.handle.accounting().await.request > 0);
    worker.handle.reserve(plain(3, 8, 4).key, 8, 4, Duration::from_millis(50)).await.unwrap();
    assert!(worker.handle.cancel(plain(1, 40, 4).key.request, None).await);
    assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
    assert_eq!(one.first_token().await.unwrap_err().code, Code::Cancelled);
    assert!(worker.handle.accounting().await.request > 0, "the engine still writes into them");
    drop((started, two, one));
    worker.at_rest().await;
    assert!(layers.load(Ordering::Relaxed) < 50);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_outlives_its_run_and_its_request() {
    let worker = Worker::new(slow(Duration::from_millis(2)), config());
    let request = plain(1, 500, 4);
    let mut run = worker.handle.prefill(request.prefill_job(&worker.handle)).await.unwrap();
    let Started { hold, .. } = run.started().await.unwrap();
    let mut progress = hold.progress();
    drop(run);
    while progress.changed().await.is_ok() {}
    let found = worker.handle.accounting().await;
    assert_eq!((found.request, found.transfer, found.n_requests), (0, 32, 0), "computing ended, the reader did not");
    assert!(!worker.handle.cancel(request.key.request, None).await);
    drop(hold);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_tells_a_landing_and_keeps_its_blocks_until_it_is_dropped() {
    let worker = Worker::new(sim(), config());
    let request = plain(1, 40, 4);
    let landing = request.land(&worker.handle).await.unwrap();
    assert!(worker.handle.cancel(request.key.request, Some(0)).await);
    landing.cancelled().await;
    let found = worker.handle.accounting().await;
    assert_eq!((found.request, found.transfer), (0, 3));
    let start = worker::DecodeStart::Recompute { landing, generated: vec![] };
    assert_eq!(
        worker.handle.decode(request.decode_job(&worker.handle, start)).await.unwrap_err().code,
        Code::Cancelled
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_one_choice_leaves_the_others() {
    let worker = Worker::new(slow(Duration::from_millis(1)), config());
    let (zero, mut one) = (plain(1, 40, 30), plain(1, 40, 30));
    one.key.choice = 1;
    let kept = zero.start_whole(&worker.handle, vec![]).await.unwrap();
    let mut gone = one.start_whole(&worker.handle, vec![]).await.unwrap();
    assert!(worker.handle.cancel(one.key.request, Some(1)).await);
    let last = loop {
        match gone.next().await.expect("never just ends") {
            Ok(token) => assert_eq!(token.finish, None),
            Err(failure) => break failure,
        }
    };
    assert_eq!(last.code, Code::Cancelled);
    assert!(gone.next().await.is_none());
    assert_eq!(collect(kept).await.unwrap().len(), 30);
    worker.stop().await;
}

/// On one thread, so that no answer can come between a command and the caller's going.
#[tokio::test]
async fn callers_that_go_before_their_answer_leave_nothing() {
    let worker = Worker::new(slow(Duration::from_millis(5)), config());
    for id in 0..50 {
        let request = plain(id, 40, 30);
        // Polled once: the command is sent, the answer is never seen.
        let reserve = worker.handle.reserve(request.key, 40, 30, Duration::from_secs(60));
        assert!(reserve.now_or_never().is_none());
        assert!(worker.handle.prefill(request.prefill_job(&worker.handle)).now_or_never().is_none());
        let reserved = worker.handle.reserve(request.key, 40, 30, Duration::from_secs(60)).await.unwrap();
        assert!(worker.handle.claim(reserved.id, request.key, None).now_or_never().is_none());
        worker.at_rest().await;
    }
    worker.stop().await;
}
