//! The same tokens and logprobs whatever the company, the chunks and the preemptions; and prompt here,
//! rest there, or taken over in the middle.

mod support;

use std::sync::Arc;

use engine::sim::{SimConfig, SimEngine};
use futures::future::join_all;
use support::{Request, Worker, collect, copy, plain, request, sim};
use types::{Code, Token};
use worker::{DecodeStart, Started, WorkerConfig};

const N_REQUESTS: u64 = 48;

/// Each alone, on a worker with nothing else to do.
async fn alone(requests: &[Request]) -> Vec<Vec<Token>> {
    let worker = Worker::new(sim(), WorkerConfig::default());
    let mut all = Vec::new();
    for request in requests {
        all.push(request.whole(&worker.handle).await.unwrap());
    }
    worker.stop().await;
    all
}

fn small_steps(n: usize) -> WorkerConfig {
    WorkerConfig { max_step_tokens: n, max_running: n.min(16), ..WorkerConfig::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_is_what_the_engine_alone_gives() {
    let requests: Vec<Request> = (0..8).map(|id| plain(id, 1 + 37 * id as usize, 30)).collect();
    for (request, tokens) in requests.iter().zip(alone(&requests).await) {
        let mut engine = SimEngine::new(sim()).unwrap();
        // Stops at an end-of-sequence token, which these requests pass over.
        let expected = engine::offline::greedy(&mut engine, &request.prompt, 30).unwrap();
        let ids: Vec<_> = tokens.iter().map(|token| token.id).collect();
        assert_eq!((ids.len(), &ids[..expected.len()]), (30, &expected[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn company_chunks_and_preemption_change_no_token_and_no_logprob() {
    let requests: Vec<Request> = (0..N_REQUESTS).map(request).collect();
    let expected = alone(&requests).await;
    let tight = WorkerConfig { reserve_cap_tokens: 1, ..WorkerConfig::default() };
    let cases = [
        ("together", 1024, WorkerConfig::default(), false),
        ("steps of 1", 1024, small_steps(1), false),
        ("steps of 5", 1024, small_steps(5), false),
        ("steps of 16", 1024, small_steps(16), false),
        ("steps of 512", 1024, small_steps(512), false),
        ("preempted", 60, tight.clone(), true),
        ("preempted, steps of 16", 60, WorkerConfig { max_step_tokens: 16, max_running: 16, ..tight }, true),
    ];
    for (name, kv_blocks, config, preempts) in cases {
        let worker = Worker::new(SimConfig { kv_blocks, ..sim() }, config);
        let found = join_all(requests.iter().map(|request| request.whole(&worker.handle))).await;
        for ((request, found), expected) in requests.iter().zip(found).zip(&expected) {
            assert_eq!(&found.unwrap(), expected, "{name}: {:?}", request.key);
        }
        let n = worker.metric("scheduler_preemptions_total");
        assert_eq!(n > 0.0, preempts, "{name}: {n} preemptions");
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prompt_here_and_rest_there_is_the_same() {
    let requests: Vec<Request> = (0..N_REQUESTS).map(request).collect();
    let expected = alone(&requests).await;
    let prefill = Worker::new(sim(), small_steps(32));
    let decode = Worker::new(SimConfig { kv_blocks: 300, ..sim() }, WorkerConfig::default());
    let found = join_all(requests.iter().map(|r| r.split(&prefill.handle, &decode.handle, |_, _| ()))).await;
    for ((request, found), expected) in requests.iter().zip(found).zip(&expected) {
        assert_eq!(&found.unwrap(), expected, "{:?}", request.key);
    }
    prefill.stop().await;
    decode.stop().await;
}

/// Positive control: the equalities above would notice KV that is not the prompt's.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_cell_changes_the_tokens() {
    let prefill = Worker::new(sim(), WorkerConfig::default());
    let decode = Worker::new(sim(), WorkerConfig::default());
    for id in 0..40 {
        let request = Request { tenant: None, ..plain(id, 100, 12) };
        let expected = request.whole(&decode.handle).await.unwrap();
        let changed = move |block: usize, cell: &mut [u8]| {
            if block == id as usize % 6 {
                cell[id as usize] ^= 1;
            }
        };
        let found = request.split(&prefill.handle, &decode.handle, changed).await.unwrap();
        assert_eq!(found[0], expected[0], "sampled where the KV was whole");
        assert_ne!(found, expected);
    }
    prefill.stop().await;
    decode.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_over_in_the_middle_goes_on_the_same() {
    let worker = Worker::new(sim(), small_steps(64));
    for id in 0..N_REQUESTS {
        let request = request(id);
        let expected = request.whole(&worker.handle).await.unwrap();
        for n in [1, expected.len() / 2, expected.len() - 1] {
            if n == 0 || n == expected.len() {
                continue;
            }
            let generated = expected[..n].iter().map(|token| token.id).collect();
            let run = request.start_whole(&worker.handle, generated).await.unwrap();
            assert_eq!(collect(run).await.unwrap(), expected[n..], "{:?} from {n}", request.key);
        }
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_failed_half_way_is_computed_here_instead() {
    let prefill = Worker::new(sim(), WorkerConfig::default());
    let decode = Worker::new(sim(), WorkerConfig::default());
    let request = Request { tenant: None, ..plain(5, 70, 20) };
    let expected = request.whole(&decode.handle).await.unwrap();
    let landing = request.land(&decode.handle).await.unwrap();
    // Foreign rows in two of the five blocks.
    let junk = vec![0xab; decode.handle.arena().cell_bytes(0)];
    for block in &landing.blocks()[..2] {
        decode.handle.arena().import(0, block.0, 16, &junk).unwrap();
    }
    let start = DecodeStart::Recompute { landing, generated: vec![] };
    let run = decode.handle.decode(request.decode_job(&decode.handle, start)).await.unwrap();
    assert_eq!(collect(run).await.unwrap(), expected);
    prefill.stop().await;
    decode.stop().await;
}

/// "Right or an error": what is not the prompt's KV and record is refused before a token is sampled.
#[tokio::test(flavor = "multi_thread")]
async fn an_incomplete_or_foreign_handoff_is_refused() {
    type Change = fn(&mut types::Handoff);
    let prefill = Worker::new(sim(), WorkerConfig::default());
    let decode = Worker::new(sim(), WorkerConfig::default());
    let cases: [(&str, usize, Change); 7] = [
        ("a block is missing", 64, |_| ()),
        ("a row is missing", 69, |_| ()),
        ("another position", 70, |h| h.position += 1),
        ("another choice", 70, |h| h.choice += 1),
        ("another seed", 70, |h| h.seed += 1),
        ("another token", 70, |h| h.generated = vec![h.first.id ^ 1]),
        ("not the first token", 70, |h| h.first.position = 1),
    ];
    for (name, n_copied, change) in cases {
        let request = plain(5, 70, 20);
        let mut run = prefill.handle.prefill(request.prefill_job(&prefill.handle)).await.unwrap();
        let Started { hold, .. } = run.started().await.unwrap();
        let (first, _) = run.first_token().await.unwrap();
        let landing = request.land(&decode.handle).await.unwrap();
        for (i, (source, target)) in hold.blocks().iter().zip(landing.blocks()).enumerate() {
            let n_rows = 16.min(n_copied - 16 * i.min(n_copied / 16));
            if n_rows == 0 {
                continue;
            }
            let mut cell = vec![0; 256];
            prefill.handle.arena().export(0, source.0, n_rows, &mut cell).unwrap();
            decode.handle.arena().import(0, target.0, n_rows, &cell).unwrap();
        }
        let mut handoff = request.handoff(&first);
        change(&mut handoff);
        let job = request.decode_job(&decode.handle, DecodeStart::Handoff { landing, handoff });
        let failure = decode.handle.decode(job).await.expect_err(name);
        assert_eq!((failure.code, failure.reason), (Code::DataLoss, "HANDOFF_MISMATCH"), "{name}");
    }
    prefill.stop().await;
    decode.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_tells_of_each_chunk_and_closes_with_the_last() {
    let worker = Worker::new(support::slow(std::time::Duration::from_millis(3)), small_steps(16));
    let request = plain(1, 100, 5);
    let mut run = worker.handle.prefill(request.prefill_job(&worker.handle)).await.unwrap();
    let Started { hold, .. } = run.started().await.unwrap();
    let mut progress = hold.progress();
    let arena: Arc<_> = worker.handle.arena().clone();
    let rows = || -> usize { hold.blocks().iter().map(|block| arena.rows(0, block.0)).sum() };
    let mut seen = vec![];
    while progress.changed().await.is_ok() {
        seen.push(rows());
    }
    assert!(seen.len() >= 3 && seen.is_sorted(), "{seen:?}");
    assert_eq!((seen.last(), *progress.borrow()), (Some(&100), 7), "one tick for each chunk");
    run.first_token().await.unwrap();
    drop(run);
    assert_eq!(worker.handle.accounting().await.transfer, 7, "the hold lives on");
    let landing = request.land(&worker.handle).await.unwrap();
    copy(&arena, &hold, &arena, &landing, 100, |_, _| ());
    drop((hold, landing));
    worker.stop().await;
}
