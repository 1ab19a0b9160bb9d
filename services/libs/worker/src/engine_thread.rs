//! The engine's OS thread: one step at a time, forward and sampling.

use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::sampling::{Sampled, SamplingError, sample};
use engine::{Engine, EngineError, LogitRows, Mask, Slice};
use scheduler::SeqId;
use tokio::sync::mpsc;
use types::BlockIdx;

use crate::sequence::Sequence;

/// A step to compute.
pub(crate) struct Work {
    pub(crate) entries: Vec<Entry>,
    /// Set when nobody wants the step any more.
    pub(crate) abort: Arc<AtomicBool>,
}

/// One sequence's part of a step.
pub(crate) struct Entry {
    pub(crate) seq: SeqId,
    pub(crate) sequence: Box<Sequence>,
    pub(crate) blocks: Vec<BlockIdx>,
    /// Indices of the tokens to compute, which are their KV rows and positions.
    pub(crate) rows: Range<usize>,
    pub(crate) samples: bool,
}

/// What became of a step.
pub(crate) enum Report {
    Done(Done),
    /// The engine cannot be used any more; the thread has ended.
    Panicked,
}

pub(crate) struct Done {
    pub(crate) entries: Vec<Entry>,
    pub(crate) result: Result<Vec<Outcome>, EngineError>,
    pub(crate) elapsed: Duration,
}

/// One sequence's outcome; `None`: nothing was to be sampled.
pub(crate) type Outcome = Option<Result<Sampled, SamplingError>>;

/// The driver's end of the thread. Dropping `work` ends it.
pub(crate) struct EngineThread {
    /// One slot: a step is sent only when none runs.
    pub(crate) work: std_mpsc::SyncSender<Work>,
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) thread: JoinHandle<()>,
}

impl EngineThread {
    pub(crate) fn start(engine: Box<dyn Engine>) -> std::io::Result<Self> {
        let (work, inbox) = std_mpsc::sync_channel(1);
        let (outbox, reports) = mpsc::channel(1);
        let thread =
            std::thread::Builder::new().name("baton-engine".into()).spawn(move || run(engine, &inbox, &outbox))?;
        Ok(Self { work, reports, thread })
    }
}

fn run(mut engine: Box<dyn Engine>, inbox: &std_mpsc::Receiver<Work>, outbox: &mpsc::Sender<Report>) {
    if let Err(error) = engine.bind_thread() {
        let reason = error.source.to_string();
        tracing::warn!(%error, reason, "the engine's thread is not bound");
    }
    let mut buffers = Buffers::default();
    while let Ok(work) = inbox.recv() {
        // After a panic the engine is not used again, so what it left half-done is seen by nobody.
        let caught = catch_unwind(AssertUnwindSafe(|| compute(engine.as_mut(), work, &mut buffers)));
        let panicked = caught.is_err();
        let report = caught.map_or(Report::Panicked, Report::Done);
        if outbox.blocking_send(report).is_err() || panicked {
            return;
        }
    }
}

/// Kept from step to step.
#[derive(Default)]
struct Buffers {
    logits: Vec<f32>,
    positions: Vec<u32>,
}

fn compute(engine: &mut dyn Engine, work: Work, buffers: &mut Buffers) -> Done {
    let start = Instant::now();
    let Work { mut entries, abort } = work;
    let result = forward(engine, &entries, &abort, buffers).map(|()| draw(engine, &mut entries, &mut buffers.logits));
    Done { entries, result, elapsed: start.elapsed() }
}

fn forward(
    engine: &mut dyn Engine,
    entries: &[Entry],
    abort: &AtomicBool,
    buffers: &mut Buffers,
) -> Result<(), EngineError> {
    buffers.positions.clear();
    for entry in entries {
        buffers.positions.extend(entry.rows.clone().map(position));
    }
    let mut positions = buffers.positions.as_slice();
    let mut slices = Vec::with_capacity(entries.len());
    for entry in entries {
        let (of_entry, rest) = positions.split_at(entry.rows.len());
        positions = rest;
        slices.push(Slice {
            tokens: &entry.sequence.tokens()[entry.rows.clone()],
            positions: of_entry,
            first_row: position(entry.rows.start),
            max_tokens: position(entry.sequence.max_tokens()),
            blocks: &entry.blocks,
            mask: Mask::Causal,
            logits: if entry.samples { LogitRows::Last } else { LogitRows::None },
        });
    }
    engine.forward(&slices, &mut buffers.logits, &mut |_layer| {
        for progress in entries.iter().filter_map(|entry| entry.sequence.progress.as_ref()) {
            progress.send_modify(|ticks| *ticks += 1);
        }
        if abort.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

fn draw(engine: &dyn Engine, entries: &mut [Entry], logits: &mut [f32]) -> Vec<Outcome> {
    let model = engine.model();
    let mut rows = logits.chunks_exact_mut(model.n_vocab);
    let draw = |entry: &mut Entry| {
        if !entry.samples {
            return None;
        }
        let row = rows.next().expect("the engine gives a row for each that is wanted");
        let sequence = &entry.sequence;
        let (history, draw) = (sequence.history(), sequence.draw());
        Some(sample(row, &sequence.sampling, &sequence.stop, &model.eos, history, draw))
    };
    entries.iter_mut().map(draw).collect()
}

fn position(row: usize) -> u32 {
    u32::try_from(row).expect("a model's context is below 2^32 tokens")
}
