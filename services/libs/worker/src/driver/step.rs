//! A step's way: planned, sent to the engine, and its outcome given out.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use engine::EngineError;
use scheduler::{Start, Verdict};
use tokio::time::Instant;
use types::{Failure, Phase};

use super::job::{Answer, Job};
use super::{Driver, RunningStep};
use crate::engine_thread::{Done, Entry, Outcome, Report, Work};
use crate::{Hold, Started, fail};

impl Driver {
    /// Sends the next step to the engine, if there is anything to compute.
    pub(super) fn start_step(&mut self) {
        if self.poisoned {
            return;
        }
        let plan = self.scheduler.plan(self.now());
        for block in &plan.fresh {
            self.arena.reset(block.0);
        }
        self.metrics.preempted(plan.preempted.len());
        for start in plan.started {
            self.started(start);
        }
        if plan.step.is_empty() {
            return;
        }
        let entries = plan.step.slices.iter().map(|slice| {
            let job = self.jobs.get_mut(&slice.seq).expect("a sequence that is not cancelled has a job");
            Entry {
                seq: slice.seq,
                sequence: job.sequence.take().expect("a sequence is in one step at a time"),
                blocks: self.scheduler.blocks(slice.seq).to_vec(),
                rows: slice.first..slice.first + slice.n_tokens,
                samples: slice.samples,
            }
        });
        let abort = Arc::new(AtomicBool::new(false));
        let work = Work { entries: entries.collect(), abort: abort.clone() };
        // Fails only if the thread has ended, which the report channel tells too.
        let _ = self.engine.work.send(work);
        self.running = Some(RunningStep { abort, started: Instant::now(), stalled: false });
    }

    /// Takes the outcome of the running step; `None`: the engine's thread has ended.
    pub(super) fn finish_step(&mut self, report: Option<Report>) {
        self.running = None;
        let done = match report {
            Some(Report::Done(done)) => done,
            Some(Report::Panicked) | None => {
                self.poison();
                return self.scheduler.abandon_step();
            }
        };
        let n_tokens = done.entries.iter().map(|entry| entry.rows.len()).sum();
        self.metrics.step(done.elapsed, n_tokens);
        let verdicts = self.verdicts(done);
        self.scheduler.complete(&verdicts);
    }

    fn verdicts(&mut self, done: Done) -> Vec<Verdict> {
        let entries = done.entries.into_iter();
        match done.result {
            Ok(outcomes) => entries.zip(outcomes).map(|(entry, outcome)| self.outcome(entry, outcome)).collect(),
            // Nothing was computed, and it is one sequence's fault: the others go on.
            Err(EngineError::Slice { slice, problem }) => {
                let failure = fail::engine(&EngineError::Slice { slice, problem });
                tracing::error!(%failure, "the engine refused a sequence");
                let each = |(i, entry)| if i == slice { self.failed(entry, &failure) } else { self.undone(entry) };
                entries.enumerate().map(each).collect()
            }
            Err(error) => {
                let failure = fail::engine(&error);
                if error != EngineError::Aborted {
                    tracing::error!(%failure, "a step failed");
                }
                entries.map(|entry| self.failed(entry, &failure)).collect()
            }
        }
    }

    fn outcome(&mut self, entry: Entry, outcome: Outcome) -> Verdict {
        let Some(mut job) = self.jobs.remove(&entry.seq) else {
            return Verdict::Ended;
        };
        let mut sequence = entry.sequence;
        let (verdict, job) = match outcome {
            None => (Verdict::Advanced, Some(Job { sequence: Some(sequence), ..job })),
            Some(Ok(sampled)) => {
                let token = sequence.accept(sampled, &self.model.eos);
                self.metrics.token();
                self.name_blocks(entry.seq, &mut sequence);
                job.sequence = Some(sequence);
                let job = job.give(token, &self.metrics);
                (if job.is_some() { Verdict::Sampled } else { Verdict::Ended }, job)
            }
            Some(Err(error)) => {
                let failure = fail::sampling(&error);
                tracing::error!(request = %job.key.request, %failure, "sampling failed");
                self.metrics.failed(&failure);
                job.fail(failure);
                (Verdict::Failed, None)
            }
        };
        if let Some(job) = job {
            self.jobs.insert(entry.seq, job);
        }
        verdict
    }

    fn failed(&mut self, entry: Entry, failure: &Failure) -> Verdict {
        if let Some(job) = self.jobs.remove(&entry.seq) {
            self.metrics.failed(failure);
            job.fail(failure.clone());
        }
        Verdict::Failed
    }

    fn undone(&mut self, entry: Entry) -> Verdict {
        if let Some(job) = self.jobs.get_mut(&entry.seq) {
            job.sequence = Some(entry.sequence);
        }
        Verdict::Undone
    }

    /// A sequence's first step begins.
    fn started(&mut self, start: Start) {
        let guard = start.hold.map(|hold| self.hold_guard(hold));
        let blocks = self.scheduler.blocks(start.seq).to_vec();
        let job = self.jobs.get_mut(&start.seq).expect("a sequence that is not cancelled has a job");
        job.clock.step(&self.metrics);
        if !job.clock.handed_off() {
            let n_prompt = job.sequence.as_ref().expect("a sequence is at home before its first step").n_prompt();
            job.n_cached = u32::try_from(start.n_computed.min(n_prompt)).unwrap_or(u32::MAX);
            self.metrics.cached(job.n_cached);
        }
        let n_cached = job.n_cached;
        let Answer::Prefill { started, .. } = &mut job.answer else { return };
        let (Some(reply), Some(guard)) = (started.take(), guard) else { return };
        let sequence = job.sequence.as_ref().expect("a sequence is at home before its first step");
        let progress = sequence.progress.as_ref().expect("a prefill has somebody who reads its KV").subscribe();
        let hold = Hold { blocks, progress, _guard: guard };
        let queue_time = job.clock.phases.get(Phase::PrefillQueue);
        // If the caller has gone, the hold drops here and gives itself back.
        let _ = reply.send(Ok(Started { hold, queue_time, n_cached }));
    }
}
