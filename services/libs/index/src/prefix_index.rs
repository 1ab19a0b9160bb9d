//! The index of all workers.

use std::collections::BTreeMap;
use std::time::Duration;

use types::{BlockHash, KvEvent, KvEventBatch, WorkerId, WorkerRef};

use crate::error::ApplyError;
use crate::guesses::Guesses;
use crate::stream::{Stream, Verdict};
use crate::tree::{Tree, WORD};

/// Sizes and times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Memory for blocks: half of it for what workers say, half for what was chosen. Allocated at once, never exceeded
    /// (48 bytes are the least).
    pub bytes: usize,
    /// A choice counts as a sign of what a worker holds for this long at most, for half as long at least.
    pub guess_lifetime: Duration,
    /// Any number; whoever does not know it cannot choose hashes that make the index slow.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { bytes: 128 << 20, guess_lifetime: Duration::from_secs(1800), seed: 0 }
    }
}

/// Which worker holds how much of a prompt. Times are since an origin that the caller keeps.
///
/// Workers that send events are known exactly, within the memory given; of the others it is known what the router gave
/// them a while ago ([`chosen`](Self::chosen)). A block counts only if its worker holds all before it.
#[derive(Debug)]
pub struct PrefixIndex {
    config: Config,
    /// 64-bit words of workers.
    words: usize,
    workers: Vec<Option<Worker>>,
    numbers: BTreeMap<WorkerId, usize>,
    told: Tree,
    guesses: Guesses,
    n_unattached: u64,
    n_resyncs: u64,
}

#[derive(Debug)]
struct Worker {
    who: WorkerRef,
    stream: Stream,
}

/// What a worker holds of a prompt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Match<'a> {
    /// Which worker.
    pub worker: &'a WorkerRef,
    /// Leading blocks, at least 1.
    pub n_blocks: u32,
}

/// What a batch changed, blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// Named by stores and taken.
    pub stored: usize,
    /// Lost by removals, with what followed them.
    pub removed: usize,
    /// Named by stores and left out: their beginning is not known (it may have been evicted here), or there is no room.
    pub unattached: usize,
}

/// Counts and sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Bytes allocated.
    pub bytes: usize,
    /// Distinct blocks that workers told of.
    pub told_blocks: usize,
    /// Blocks of the two generations of choices.
    pub guessed_blocks: usize,
    /// Blocks given up for lack of room, since the beginning.
    pub evicted: u64,
    /// Blocks that could not be attached, since the beginning.
    pub unattached: u64,
    /// Snapshots wanted, since the beginning.
    pub resyncs: u64,
}

impl PrefixIndex {
    /// Without workers.
    pub fn new(config: Config) -> Self {
        Self::with_words(config, 1)
    }

    fn with_words(config: Config, words: usize) -> Self {
        let half = config.bytes / 2;
        Self {
            config,
            words,
            workers: Vec::new(),
            numbers: BTreeMap::new(),
            told: Tree::new(half, words, config.seed),
            guesses: Guesses::new(half, words, config.seed, config.guess_lifetime),
            n_unattached: 0,
            n_resyncs: 0,
        }
    }

    /// A worker is there. A new incarnation of a known one holds nothing.
    ///
    /// Blocks have a bit for each of 64 workers; when one more comes they get 64 further ones, and the index begins
    /// anew: snapshots are wanted.
    pub fn join(&mut self, who: &WorkerRef) {
        if let Some(&number) = self.numbers.get(&who.id) {
            if self.worker(number).who.epoch >= who.epoch {
                return;
            }
            self.forget(number);
        }
        let number = self.workers.iter().position(Option::is_none).unwrap_or(self.workers.len());
        if number == self.words * WORD {
            let present: Vec<_> = self.workers.iter().flatten().map(|w| w.who.clone()).collect();
            let (unattached, resyncs) = (self.n_unattached, self.n_resyncs);
            *self = Self::with_words(self.config, self.words + 1);
            (self.n_unattached, self.n_resyncs) = (unattached, resyncs);
            present.iter().for_each(|who| self.join(who));
        }
        let worker = Worker { who: who.clone(), stream: Stream::Silent };
        if number == self.workers.len() {
            self.workers.push(Some(worker));
        } else {
            self.workers[number] = Some(worker);
        }
        self.numbers.insert(who.id.clone(), number);
    }

    /// A worker is gone, and with it what it held.
    pub fn leave(&mut self, who: &WorkerRef) {
        if let Some(number) = self.number(who) {
            self.forget(number);
        }
    }

    /// The batch after which a worker's events are wanted on a new connection; `None`: a snapshot, and then all.
    pub fn resume_after(&self, who: &WorkerRef) -> Option<u64> {
        self.number(who).and_then(|number| self.worker(number).stream.last())
    }

    /// The connection that carries a worker's events was lost. What comes next must follow what was applied
    /// ([`resume_after`](Self::resume_after)), or be a snapshot.
    pub fn reconnected(&mut self, who: &WorkerRef) {
        if let Some(number) = self.number(who) {
            self.worker_mut(number).stream.reconnected();
        }
    }

    /// Takes what a worker says; joins it if need be. A batch that was applied before changes nothing.
    ///
    /// # Errors
    /// Batches are missing, or the incarnation is gone. What was known stays until the snapshot comes.
    pub fn apply(&mut self, who: &WorkerRef, batch: &KvEventBatch) -> Result<Applied, ApplyError> {
        if let Some(&number) = self.numbers.get(&who.id) {
            let present = self.worker(number).who.epoch;
            if present > who.epoch {
                return Err(ApplyError::OlderEpoch { worker: who.clone(), present });
            }
        }
        self.join(who);
        let number = self.number(who).expect("it has just joined");
        match self.worker_mut(number).stream.take(batch) {
            Verdict::Seen => return Ok(Applied::default()),
            Verdict::Refuse(why) => {
                self.n_resyncs += 1;
                return Err(ApplyError::ResyncWanted { worker: who.clone(), why });
            }
            Verdict::Apply => {}
        }
        let mut applied = Applied::default();
        for event in &batch.events {
            match event {
                KvEvent::Stored { parent, hashes } => {
                    let n = self.told.insert(number, *parent, hashes);
                    applied.stored += n;
                    applied.unattached += hashes.len() - n;
                }
                KvEvent::Removed { hashes } => {
                    applied.removed += hashes.iter().map(|hash| self.told.remove(number, hash)).sum::<usize>();
                }
                KvEvent::Cleared => {
                    applied.removed += self.told.n_held(number);
                    self.told.remove_all(number);
                }
            }
        }
        self.n_unattached += applied.unattached as u64;
        Ok(applied)
    }

    /// The router gives a worker a prompt with these blocks.
    pub fn chosen(&mut self, who: &WorkerRef, hashes: &[BlockHash], now: Duration) {
        self.guesses.age(now);
        if let Some(number) = self.number(who) {
            self.guesses.insert(number, hashes);
            self.told.use_prefix(hashes);
        }
    }

    /// Who holds how many of the leading blocks, in no particular order; those who hold none are left out.
    pub fn lookup(&mut self, hashes: &[BlockHash], now: Duration) -> Vec<Match<'_>> {
        self.guesses.age(now);
        let mut counts = vec![0; self.words * WORD];
        self.guesses.lookup(hashes, &mut counts);
        for (count, worker) in counts.iter_mut().zip(&self.workers) {
            if worker.as_ref().is_none_or(|w| w.stream != Stream::Silent) {
                *count = 0;
            }
        }
        self.told.lookup(hashes, &mut counts);
        let matches = self.workers.iter().zip(counts).filter(|(_, n)| *n > 0);
        matches.filter_map(|(w, n_blocks)| w.as_ref().map(|w| Match { worker: &w.who, n_blocks })).collect()
    }

    /// Blocks that a worker told of and holds.
    pub fn n_told(&self, who: &WorkerRef) -> usize {
        self.number(who).map_or(0, |number| self.told.n_held(number))
    }

    /// Distinct blocks that fit into the part for what workers say.
    pub fn n_told_max(&self) -> usize {
        self.told.n_max()
    }

    /// Counts and sizes.
    pub fn stats(&self) -> Stats {
        Stats {
            bytes: self.told.bytes() + self.guesses.bytes(),
            told_blocks: self.told.n_blocks(),
            guessed_blocks: self.guesses.n_blocks(),
            evicted: self.told.n_evicted() + self.guesses.n_evicted(),
            unattached: self.n_unattached,
            resyncs: self.n_resyncs,
        }
    }

    fn number(&self, who: &WorkerRef) -> Option<usize> {
        self.numbers.get(&who.id).copied().filter(|&number| self.worker(number).who == *who)
    }

    fn worker(&self, number: usize) -> &Worker {
        self.workers[number].as_ref().expect("a number in use has a worker")
    }

    fn worker_mut(&mut self, number: usize) -> &mut Worker {
        self.workers[number].as_mut().expect("a number in use has a worker")
    }

    fn forget(&mut self, number: usize) {
        self.told.remove_all(number);
        self.guesses.remove_all(number);
        if let Some(worker) = self.workers[number].take() {
            self.numbers.remove(&worker.who.id);
        }
    }
}
