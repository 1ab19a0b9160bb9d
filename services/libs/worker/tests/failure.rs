//! Limits, deadlines, engine failures, drain and shutdown: each an early or prompt, typed failure.

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::sim::SimConfig;
use engine::{EngineError, SliceProblem};
use futures::future::join_all;
use support::{Request, Worker, collect, hooked, plain, sim, slow};
use tokio::time::{Instant, sleep, timeout};
use types::{Code, Failure, Retry, SamplingParams, StopParams};
use worker::{ConfigError, DecodeStart, Health, PrefillJob, WorkerConfig, spawn};

async fn prefill(worker: &Worker, job: PrefillJob) -> Failure {
    match worker.handle.prefill(job).await {
        Err(failure) => failure,
        Ok(mut run) => run.first_token().await.expect_err("must fail"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_and_the_field_named() {
    let worker = Worker::new(SimConfig { max_context: 200, kv_blocks: 8, ..sim() }, WorkerConfig::default());
    assert_eq!(worker.handle.max_sequence(), 128);
    type Change = fn(&mut Request);
    let cases: [(&str, Change); 9] = [
        ("prompt", |r| r.prompt = Arc::from([])),
        ("prompt", |r| r.prompt = vec![1; 200].into()),
        ("prompt", |r| r.prompt = Arc::from([512])),
        ("temperature", |r| r.sampling.temperature = f32::NAN),
        ("logit_bias", |r| r.sampling.logit_bias = vec![(512, 0.0)]),
        ("max_tokens", |r| r.stop = StopParams::default()),
        ("min_tokens", |r| r.stop.min_tokens = 99),
        ("stop_token_ids", |r| r.stop.stop_token_ids = vec![512]),
        ("max_tokens", |r| r.prompt = vec![1; 129].into()),
    ];
    for (param, change) in cases {
        let mut request = plain(1, 20, 10);
        change(&mut request);
        let failure = prefill(&worker, request.prefill_job(&worker.handle)).await;
        assert_eq!((failure.code, failure.param.as_deref()), (Code::InvalidArgument, Some(param)), "{failure}");
    }
    let reserve = |n_prompt, max_new| worker.handle.reserve(plain(1, 1, 1).key, n_prompt, max_new, Duration::ZERO);
    for (n_prompt, max_new) in [(0, 1), (200, 1), (100, 30), (129, 1), (usize::MAX, usize::MAX)] {
        assert_eq!(reserve(n_prompt, max_new).await.unwrap_err().code, Code::InvalidArgument, "{n_prompt}");
    }
    reserve(100, 29).await.expect("128 rows are what the pool holds");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once_and_safely() {
    let config = WorkerConfig { max_running: 1, max_waiting: 3, ..WorkerConfig::default() };
    let worker = Worker::new(slow(Duration::from_millis(400)), config);
    let mut runs = vec![];
    let refused = loop {
        assert!(runs.len() < 5);
        match worker.handle.prefill(plain(1, 40, 4).prefill_job(&worker.handle)).await {
            Ok(run) => runs.push(run),
            Err(failure) => break failure,
        }
    };
    assert_eq!((refused.code, refused.reason), (Code::ResourceExhausted, "QUEUE_FULL"));
    assert!(matches!(refused.retry, Retry::Safe(_)));
    let load = *worker.handle.load().borrow();
    assert_eq!((load.n_waiting, load.n_waiting_tokens), (3, 120));
    drop(runs);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reservations_are_refused_without_room_and_expire() {
    let worker = Worker::new(SimConfig { kv_blocks: 10, ..sim() }, WorkerConfig::default());
    let key = plain(1, 1, 1).key;
    let reserve = |n_prompt, hold| worker.handle.reserve(key, n_prompt, 16, Duration::from_millis(hold));
    let short = reserve(80, 300).await.unwrap();
    assert_eq!(short.n_blocks, 6);
    let refused = reserve(80, 300).await.unwrap_err();
    assert_eq!((refused.code, refused.reason), (Code::ResourceExhausted, "NO_KV_BLOCKS"));
    assert!(matches!(refused.retry, Retry::Safe(_)));
    sleep(Duration::from_millis(400)).await;
    let late = worker.handle.claim(short.id, key, None).await.unwrap_err();
    assert_eq!((late.code, late.reason), (Code::NotFound, "RESERVATION_NOT_FOUND"));
    let again = reserve(80, 60_000).await.unwrap();
    let other = worker::SeqKey { choice: 1, ..key };
    assert_eq!(worker.handle.claim(again.id, other, None).await.unwrap_err().code, Code::NotFound);
    let landing = worker.handle.claim(again.id, key, None).await.unwrap();
    assert_eq!(worker.handle.claim(again.id, key, None).await.unwrap_err().code, Code::NotFound);
    assert_eq!((landing.blocks().len(), landing.n_prompt()), (5, 80));
    drop(landing);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_end_what_waits_and_what_runs() {
    let worker = Worker::new(
        slow(Duration::from_millis(20)),
        WorkerConfig { max_running: 1, max_step_tokens: 16, ..WorkerConfig::default() },
    );
    let mut running = plain(1, 400, 4);
    let mut waiting = plain(2, 400, 4);
    (running.deadline, waiting.deadline) = (Duration::from_millis(100), Duration::from_millis(50));
    let begun = Instant::now();
    let jobs = [running, waiting];
    let failures = join_all(jobs.iter().map(|request| prefill(&worker, request.prefill_job(&worker.handle)))).await;
    assert!(failures.iter().all(|failure| failure.code == Code::DeadlineExceeded), "{failures:?}");
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    let mut decoding = plain(3, 10, 500);
    decoding.deadline = Duration::from_millis(150);
    assert_eq!(decoding.whole(&worker.handle).await.unwrap_err().code, Code::DeadlineExceeded);
    let mut past = plain(4, 10, 5);
    past.deadline = Duration::ZERO;
    assert_eq!(past.whole(&worker.handle).await.unwrap_err().code, Code::DeadlineExceeded);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_the_engine_refuses_fails_alone() {
    let bad = 333;
    let hook = move |slices: &[engine::Slice<'_>], _: &mut dyn FnMut(usize) -> ControlFlow<()>| {
        let slice = slices.iter().position(|slice| slice.tokens.contains(&bad));
        slice.map_or(Ok(()), |slice| Err(EngineError::Slice { slice, problem: SliceProblem::Empty }))
    };
    let worker = Worker::with(hooked(sim(), Box::new(hook)), WorkerConfig::default());
    let mut good: Vec<Request> = (0..16).map(|id| plain(id, 30, 20)).collect();
    for request in &mut good {
        request.prompt = request.prompt.iter().map(|&token| token % 300).collect();
        request.sampling.logit_bias = vec![(bad, -100.0)];
    }
    let mut poisonous = plain(99, 30, 20);
    poisonous.prompt = vec![bad; 30].into();
    let (found, failed) =
        tokio::join!(join_all(good.iter().map(|r| r.whole(&worker.handle))), poisonous.whole(&worker.handle));
    assert!(found.iter().all(Result::is_ok), "{found:?}");
    let failed = failed.unwrap_err();
    assert_eq!((failed.code, failed.reason), (Code::Internal, "ENGINE_FAILED"));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_fails_its_sequences_and_the_worker_goes_on() {
    let broken = Arc::new(AtomicBool::new(false));
    let seen = broken.clone();
    let hook = move |_: &[engine::Slice<'_>], _: &mut dyn FnMut(usize) -> ControlFlow<()>| {
        if seen.swap(false, Ordering::Relaxed) { Err(EngineError::Aborted) } else { Ok(()) }
    };
    let worker = Worker::with(hooked(sim(), Box::new(hook)), WorkerConfig::default());
    let request = plain(1, 30, 20);
    let expected = request.whole(&worker.handle).await.unwrap();
    broken.store(true, Ordering::Relaxed);
    let failure = request.whole(&worker.handle).await.unwrap_err();
    assert_eq!((failure.code, failure.reason), (Code::Internal, "ENGINE_FAILED"));
    assert_eq!(request.whole(&worker.handle).await.unwrap(), expected);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_sampling_fails_alone() {
    let worker = Worker::new(SimConfig { n_vocab: 20, eos: vec![], ..sim() }, WorkerConfig::default());
    // Every token would end the choice, and none may yet.
    let mut request = plain(1, 4, 8);
    request.prompt = Arc::from([1, 2, 3]);
    request.stop = StopParams { min_tokens: 4, stop_token_ids: (0..20).collect(), ..request.stop };
    let failure = request.whole(&worker.handle).await.unwrap_err();
    assert_eq!((failure.code, failure.reason), (Code::Internal, "SAMPLING_FAILED"));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_poisons_the_worker_and_nothing_hangs() {
    let hook = |slices: &[engine::Slice<'_>], _: &mut dyn FnMut(usize) -> ControlFlow<()>| {
        std::thread::sleep(Duration::from_millis(30));
        let crash = slices.iter().any(|slice| slice.tokens.contains(&333));
        if crash { panic!("a fault for the test") } else { Ok(()) }
    };
    let worker = Worker::with(hooked(sim(), Box::new(hook)), WorkerConfig::default());
    let mut crash = plain(1, 30, 20);
    crash.prompt = vec![333; 30].into();
    let bystander = plain(2, 5, 500).start_whole(&worker.handle, vec![]).await.unwrap();
    let mut health = worker.handle.health();
    let landing = plain(3, 40, 5).land(&worker.handle).await.unwrap();
    let reserved = worker.handle.reserve(crash.key, 9, 9, Duration::from_secs(60)).await.unwrap();
    let all = async { tokio::join!(crash.whole(&worker.handle), collect(bystander), landing.cancelled()) };
    let (crash_end, bystander_end, ()) = timeout(Duration::from_secs(5), all).await.expect("nothing hangs");
    for failure in [crash_end.unwrap_err(), bystander_end.unwrap_err()] {
        assert_eq!((failure.code, failure.reason), (Code::Unavailable, "WORKER_POISONED"));
    }
    timeout(Duration::from_secs(1), health.wait_for(|health| *health == Health::Poisoned)).await.unwrap().unwrap();
    assert!(!worker.handle.ready());
    let request = plain(4, 30, 5);
    assert_eq!(worker.handle.prefill(request.prefill_job(&worker.handle)).await.unwrap_err().reason, "WORKER_POISONED");
    assert_eq!(worker.handle.claim(reserved.id, crash.key, None).await.unwrap_err().code, Code::NotFound);
    let start = DecodeStart::Recompute { landing, generated: vec![] };
    let failure = worker.handle.decode(plain(3, 40, 5).decode_job(&worker.handle, start)).await.unwrap_err();
    assert_eq!(failure.reason, "WORKER_POISONED");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_fails_what_is_left_and_ends() {
    let worker =
        Worker::new(slow(Duration::from_millis(20)), WorkerConfig { max_running: 2, ..WorkerConfig::default() });
    let requests: Vec<Request> = (0..6).map(|id| plain(id, 30, 1000)).collect();
    let runs = join_all(requests.iter().map(|r| r.whole(&worker.handle)));
    let stop = async {
        sleep(Duration::from_millis(100)).await;
        worker.shutdown.cancel();
    };
    let (failures, ()) = timeout(Duration::from_secs(5), async { tokio::join!(runs, stop) }).await.unwrap();
    for failure in failures {
        assert_eq!(failure.unwrap_err().code, Code::Unavailable);
    }
    timeout(Duration::from_secs(5), worker.task).await.unwrap().unwrap();
    let handle = worker.handle;
    assert_eq!(*handle.health().borrow(), Health::Stopped);
    let failure = handle.prefill(requests[0].prefill_job(&handle)).await.unwrap_err();
    assert_eq!((failure.code, failure.reason), (Code::Unavailable, "WORKER_STOPPED"));
    let last = handle.accounting().await;
    assert_eq!((last.free + last.cached, last.request, last.transfer), (last.total, 0, 0));
    assert!(!handle.cancel(requests[0].key.request, None).await);
    handle.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_refuses_the_new_and_waits_for_the_old() {
    let worker = Worker::new(slow(Duration::from_millis(2)), WorkerConfig::default());
    let (running, reserved) = (plain(1, 30, 60), plain(2, 30, 20));
    let run = running.start_whole(&worker.handle, vec![]).await.unwrap();
    let room = worker.handle.reserve(reserved.key, 30, 20, Duration::from_secs(60)).await.unwrap();
    let done = AtomicBool::new(false);
    let drain = async {
        worker.handle.drain().await;
        assert!(done.load(Ordering::Relaxed), "drained with work left");
    };
    let work = async {
        let mut health = worker.handle.health();
        health.wait_for(|health| *health == Health::Draining).await.unwrap();
        assert!(worker.handle.load().borrow().draining);
        let refused = worker.handle.prefill(plain(3, 30, 5).prefill_job(&worker.handle)).await.unwrap_err();
        assert_eq!((refused.code, refused.reason), (Code::Unavailable, "WORKER_DRAINING"));
        let refused = worker.handle.reserve(reserved.key, 30, 20, Duration::ZERO).await.unwrap_err();
        assert_eq!(refused.reason, "WORKER_DRAINING");
        assert_eq!(collect(run).await.unwrap().len(), 60);
        let landing = worker.handle.claim(room.id, reserved.key, None).await.expect("promised before");
        let start = DecodeStart::Recompute { landing, generated: vec![] };
        let run = worker.handle.decode(reserved.decode_job(&worker.handle, start)).await.unwrap();
        done.store(true, Ordering::Relaxed);
        assert_eq!(collect(run).await.unwrap().len(), 20);
    };
    timeout(Duration::from_secs(10), async { tokio::join!(drain, work) }).await.unwrap();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_does_not_end_shows_in_the_health() {
    let config = WorkerConfig { stall_after: Duration::from_millis(60), ..WorkerConfig::default() };
    let worker = Worker::new(slow(Duration::from_millis(800)), config);
    let mut health = worker.handle.health();
    let run = worker.handle.prefill(plain(1, 30, 5).prefill_job(&worker.handle)).await.unwrap();
    timeout(Duration::from_millis(700), health.wait_for(|h| *h == Health::Stalled)).await.unwrap().unwrap();
    timeout(Duration::from_secs(5), health.wait_for(|h| *h == Health::Ready)).await.unwrap().unwrap();
    drop(run);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_by_itself_when_every_handle_is_gone() {
    let Worker { handle, shutdown: _keep, task } = Worker::new(slow(Duration::from_millis(1)), WorkerConfig::default());
    let run = plain(1, 30, 20).start_whole(&handle, vec![]).await.unwrap();
    drop(handle);
    assert_eq!(collect(run).await.unwrap().len(), 20, "work is finished first");
    timeout(Duration::from_secs(1), task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_of_tokens_holds_nobody_up() {
    let worker = Worker::new(sim(), WorkerConfig::default());
    let unread = plain(1, 30, 1500).start_whole(&worker.handle, vec![]).await.unwrap();
    assert_eq!(plain(2, 30, 1500).whole(&worker.handle).await.unwrap().len(), 1500);
    assert_eq!(collect(unread).await.unwrap().len(), 1500);
    worker.stop().await;
}

#[tokio::test]
async fn limits_that_cannot_be_are_refused() {
    let config = WorkerConfig { max_running: 300, ..WorkerConfig::default() };
    let engine = Box::new(engine::sim::SimEngine::new(sim()).unwrap());
    let refused = spawn(engine, config, tokio_util::sync::CancellationToken::new()).unwrap_err();
    assert!(matches!(refused, ConfigError::Scheduler(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn phases_are_timed() {
    use types::Phase::{DecodeQueue, FirstStep, Prefill, PrefillQueue};
    let step = Duration::from_millis(20);
    let worker =
        Worker::new(slow(step), WorkerConfig { max_step_tokens: 32, max_running: 2, ..WorkerConfig::default() });
    let request = Request { sampling: SamplingParams::default(), ..plain(1, 64, 3) };
    let mut run = request.start_whole(&worker.handle, vec![]).await.unwrap();
    while run.next().await.is_some() {}
    let phases = run.phases();
    assert!(phases.get(Prefill) >= 2 * step && phases.get(FirstStep) >= step, "{phases:?}");
    assert_eq!(phases.get(DecodeQueue), Duration::ZERO);
    let mut first = worker.handle.prefill(plain(2, 64, 3).prefill_job(&worker.handle)).await.unwrap();
    let mut second = worker.handle.prefill(plain(3, 64, 3).prefill_job(&worker.handle)).await.unwrap();
    let (_, _) = (first.started().await.unwrap(), second.started().await.unwrap());
    let (_, phases) = second.first_token().await.unwrap();
    assert!(phases.get(PrefillQueue) > Duration::ZERO && phases.get(Prefill) >= step, "{phases:?}");
    drop((first, second, run));
    worker.stop().await;
}
