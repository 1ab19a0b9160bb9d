//! What handles ask for.

use std::time::Duration;

use scheduler::{HoldId, Kind, SeqId, Submission};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use types::{BlockHash, Failure, PhaseTimes, RequestId};

use super::Driver;
use super::job::{Answer, Job, PhaseClock};
use crate::command::{Command, ReserveAsk};
use crate::guard::{Guard, Release};
use crate::job::check_handoff;
use crate::sequence::{Parts, Sequence};
use crate::{DecodeJob, DecodeRun, DecodeStart, Landing, PrefillJob, PrefillRun, Reserved, SeqKey, fail};

/// A reservation is held no longer, whatever was asked for.
const HOLD_MAX: Duration = Duration::from_secs(3600);

impl Driver {
    pub(super) fn command(&mut self, command: Command) {
        // An answer that nobody waits for any more is dropped, and its guard with it.
        match command {
            Command::Reserve { ask, reply } => {
                let answer = self.reserve(ask);
                if let Err(Ok(unheard)) = reply.send(answer) {
                    self.cancel_reservation(unheard.id);
                }
            }
            Command::Claim { id, key, hashes, reply } => drop(reply.send(self.claim(id, key, &hashes))),
            Command::Prefill { job, reply } => drop(reply.send(self.prefill(job))),
            Command::Decode { job, reply } => drop(reply.send(self.decode(*job))),
            Command::Cancel { request, choice, reply } => drop(reply.send(self.cancel(request, choice))),
            Command::Accounting { reply } => drop(reply.send(self.accounting())),
            Command::Snapshot { reply } => drop(reply.send(self.snapshot())),
            Command::Drain { reply } => self.drain(reply),
        }
    }

    fn reserve(&mut self, ask: ReserveAsk) -> Result<Reserved, Failure> {
        self.check_open()?;
        let room = self.model.max_context.saturating_sub(ask.n_prompt);
        if ask.n_prompt == 0 || room == 0 {
            let max = self.model.max_context;
            return Err(Failure::invalid("prompt", format!("the prompt must have 1 to {} tokens", max - 1)));
        }
        let deadline = self.now() + ask.hold.min(HOLD_MAX);
        let reserved = self.scheduler.reserve(ask.n_prompt, ask.max_new.clamp(1, room), deadline);
        let (id, n_blocks) = reserved.map_err(|refusal| self.refuse(refusal))?;
        let mut name = [0; 16];
        if let Err(error) = getrandom::fill(&mut name) {
            self.scheduler.cancel_reservation(id);
            return Err(Failure::internal(format!("no randomness: {error}")));
        }
        self.reservations.insert(name, (id, ask.key));
        Ok(Reserved { id: name, n_blocks })
    }

    fn claim(&mut self, name: [u8; 16], key: SeqKey, hashes: &[BlockHash]) -> Result<Landing, Failure> {
        let id = match self.reservations.get(&name) {
            Some(&(id, of)) if of == key => id,
            _ => return Err(fail::unknown_reservation()),
        };
        self.reservations.remove(&name);
        let hashes = if self.config.prefix_cache { hashes } else { &[] };
        let claimed = self.scheduler.claim(id, hashes).ok_or_else(fail::unknown_reservation)?;
        self.metrics.shared(claimed.n_cached);
        for block in &claimed.blocks[claimed.n_cached..] {
            self.arena.reset(block.0);
        }
        let cancelled = CancellationToken::new();
        self.landings.insert(claimed.landing, (key, cancelled.clone()));
        Ok(Landing {
            id: claimed.landing,
            key,
            n_prompt: claimed.n_prompt,
            blocks: claimed.blocks,
            n_cached: claimed.n_cached,
            cancelled,
            request: self.guard(Release::Landing(claimed.landing)),
            _transfer: self.hold_guard(claimed.hold),
        })
    }

    fn prefill(&mut self, job: PrefillJob) -> Result<PrefillRun, Failure> {
        self.check_open()?;
        let mut sequence = self.sequence(Parts {
            max_tokens: self.model.max_tokens(job.prompt.len(), job.stop.max_tokens),
            prompt: job.prompt,
            generated: Vec::new(),
            choice: job.key.choice,
            sampling: job.sampling,
            stop: job.stop,
            names: job.names,
        });
        sequence.progress = Some(tokio::sync::watch::channel(0).0);
        let submission = self.submission(Kind::Prefill, &sequence, job.deadline);
        let seq = self.scheduler.submit(self.now(), submission).map_err(|refusal| self.refuse(refusal))?;
        self.name_blocks(seq, &mut sequence);
        let (started_to, started) = oneshot::channel();
        let (first_to, first) = oneshot::channel();
        let answer = Answer::Prefill { started: Some(started_to), first: first_to };
        let clock = PhaseClock::start(false);
        self.jobs.insert(seq, Job { key: job.key, sequence: Some(sequence), answer, clock, n_cached: 0 });
        Ok(PrefillRun { started: Some(started), first: Some(first), _guard: self.guard(Release::Sequence(seq)) })
    }

    fn decode(&mut self, job: DecodeJob) -> Result<DecodeRun, Failure> {
        if self.poisoned {
            return Err(fail::poisoned());
        }
        let (mut landing, generated, n_computed) = match job.start {
            DecodeStart::Handoff { landing, handoff } => {
                check_handoff(&self.arena, &landing, &job.prompt, &job.sampling, &handoff)?;
                (landing, handoff.generated, job.prompt.len())
            }
            DecodeStart::Recompute { landing, generated } => {
                let n_computed = landing.n_cached * self.arena.block_tokens();
                (landing, generated, n_computed)
            }
        };
        if landing.key != job.key || landing.n_prompt != job.prompt.len() {
            return Err(Failure::invalid("reservation", "the reservation is for another sequence"));
        }
        if !self.landings.contains_key(&landing.id) {
            return Err(Failure::cancelled());
        }
        let handed_off = n_computed == job.prompt.len();
        if !handed_off {
            // A pull that failed may have left rows.
            landing.blocks[landing.n_cached..].iter().for_each(|block| self.arena.reset(block.0));
        }
        let n_generated = generated.len();
        let mut sequence = self.sequence(Parts {
            max_tokens: self.model.max_tokens(job.prompt.len(), job.stop.max_tokens),
            prompt: job.prompt,
            generated,
            choice: job.key.choice,
            sampling: job.sampling,
            stop: job.stop,
            names: job.names,
        });
        let submission = self.submission(Kind::Decode, &sequence, job.deadline);
        let submitted = self.scheduler.submit_landed(self.now(), landing.id, n_computed, submission);
        let seq = submitted.ok_or_else(Failure::cancelled)?.map_err(|refusal| self.refuse(refusal))?;
        self.name_blocks(seq, &mut sequence);
        landing.request.disarm();
        self.landings.remove(&landing.id);
        let n_left = sequence.max_tokens() - sequence.tokens().len();
        let (items_to, items) = mpsc::channel(n_left + 1);
        let clock = PhaseClock::start(handed_off);
        tracing::debug!(request = %job.key.request, choice = job.key.choice, n_computed, n_generated, "decode queued");
        let answer = Answer::Decode { items: items_to };
        self.jobs.insert(seq, Job { key: job.key, sequence: Some(sequence), answer, clock, n_cached: 0 });
        let guard = self.guard(Release::Sequence(seq));
        Ok(DecodeRun { items, phases: PhaseTimes::default(), n_cached: 0, ended: false, _guard: guard })
    }

    fn cancel(&mut self, request: RequestId, choice: Option<u32>) -> bool {
        let named = |key: &SeqKey| key.request == request && choice.is_none_or(|choice| key.choice == choice);
        let jobs: Vec<SeqId> = self.jobs.iter().filter(|(_, job)| named(&job.key)).map(|(seq, _)| *seq).collect();
        let landings: Vec<_> = self.landings.iter().filter(|(_, (key, _))| named(key)).map(|(id, _)| *id).collect();
        let reservations: Vec<_> =
            self.reservations.iter().filter(|(_, (_, key))| named(key)).map(|(name, _)| *name).collect();
        let found = !(jobs.is_empty() && landings.is_empty() && reservations.is_empty());
        for seq in jobs {
            self.end(seq, Failure::cancelled());
        }
        for id in landings {
            if let Some((_, cancelled)) = self.landings.remove(&id) {
                cancelled.cancel();
            }
            self.scheduler.cancel_landing(id);
        }
        for name in reservations {
            self.cancel_reservation(name);
        }
        found
    }

    fn cancel_reservation(&mut self, name: [u8; 16]) {
        if let Some((id, _)) = self.reservations.remove(&name) {
            self.scheduler.cancel_reservation(id);
        }
    }

    fn drain(&mut self, reply: oneshot::Sender<()>) {
        self.draining = true;
        self.drains.push(reply);
    }

    /// New work is taken.
    fn check_open(&self) -> Result<(), Failure> {
        match (self.poisoned, self.draining) {
            (true, _) => Err(fail::poisoned()),
            (_, true) => Err(fail::draining()),
            _ => Ok(()),
        }
    }

    fn refuse(&self, refusal: scheduler::Refusal) -> Failure {
        let failure = fail::refusal(refusal);
        self.metrics.refused(&failure);
        failure
    }

    fn sequence(&self, parts: Parts) -> Box<Sequence> {
        let names = parts.names.filter(|_| self.config.prefix_cache);
        Box::new(Sequence::new(Parts { names, ..parts }))
    }

    /// Tells the scheduler what the sequence's blocks are called, as far as it does not know.
    pub(super) fn name_blocks(&mut self, seq: SeqId, sequence: &mut Sequence) {
        if let Some((tenant, hashes)) = sequence.new_names() {
            self.scheduler.name_blocks(seq, tenant, hashes);
        }
    }

    fn submission(&self, kind: Kind, sequence: &Sequence, deadline: tokio::time::Instant) -> Submission {
        Submission {
            kind,
            n_tokens: sequence.tokens().len(),
            max_tokens: sequence.max_tokens(),
            deadline: deadline.saturating_duration_since(self.start),
        }
    }

    fn guard(&self, release: Release) -> Guard {
        Guard::new(release, &self.release)
    }

    pub(super) fn hold_guard(&self, hold: HoldId) -> Guard {
        self.guard(Release::Hold(hold))
    }
}
