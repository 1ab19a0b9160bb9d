//! The same sequences computed together, cut, moved, dropped and begun again at random.

use engine::Engine;
use types::BlockIdx;

use crate::blocks::{Blocks, export, import};
use crate::random::Random;
use crate::reference::Expected;
use crate::sabotage::Sabotage;

/// Events of a case beside plain steps.
const DISTURBANCES: usize = 8;

/// An engine and who owns its blocks.
pub(crate) struct Player {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) blocks: Blocks,
}

impl Player {
    pub(crate) fn new(engine: Box<dyn Engine>) -> Self {
        let blocks = Blocks::new(engine.arena());
        Self { engine, blocks }
    }
}

/// A sequence on its way.
pub(crate) struct Sequence<'a> {
    pub(crate) expected: &'a Expected,
    pub(crate) player: usize,
    pub(crate) blocks: Vec<BlockIdx>,
    pub(crate) done: usize,
}

impl Sequence<'_> {
    pub(crate) fn left(&self) -> usize {
        self.expected.tokens.len() - self.done
    }
}

/// Bits that are not the plain way's.
#[derive(Clone)]
pub(crate) enum Difference {
    /// Of a token's logits.
    Logits { sequence: usize, position: usize, largest: f32 },
    /// Of a block.
    Kv { sequence: usize, block: usize },
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Logits { sequence, position, largest } => {
                write!(f, "logits of token {position} of sequence {sequence} differ by up to {largest:e}")
            }
            Self::Kv { sequence, block } => write!(f, "keys or values of block {block} of sequence {sequence} differ"),
        }
    }
}

pub(crate) struct Play<'a> {
    pub(crate) players: [Player; 2],
    pub(crate) sequences: Vec<Sequence<'a>>,
    pub(crate) random: Random,
    /// Still to be done.
    pub(crate) sabotage: Option<Sabotage>,
    planned: Option<Sabotage>,
}

impl<'a> Play<'a> {
    pub(crate) fn new(
        players: [Player; 2],
        expected: &'a [Expected],
        mut random: Random,
        planned: Option<Sabotage>,
    ) -> Self {
        let begin = |expected| Sequence { expected, player: random.below(2), blocks: Vec::new(), done: 0 };
        let sequences = expected.iter().map(begin).collect();
        Self { players, sequences, random, sabotage: planned.filter(|&s| s != Sabotage::Compute), planned }
    }

    /// Computes all, and says where it first differs.
    pub(crate) fn run(&mut self) -> Option<Difference> {
        let mut disturbances = DISTURBANCES;
        while let Some(index) = self.any_unfinished() {
            let event = if disturbances == 0 { usize::MAX } else { self.random.below(12) };
            disturbances -= usize::from(event < 4);
            let found = match event {
                0 => self.forget(index),
                1 => self.migrate(index),
                2 => self.tree(index),
                3 => self.step(self.sequences[index].player, true),
                _ => self.step(self.sequences[index].player, false),
            };
            if found.is_some() {
                return found;
            }
        }
        // With something broken on purpose, the logits have to show it.
        if self.planned.is_none() { self.compare_kv() } else { None }
    }

    /// Whether what was to be broken is.
    pub(crate) fn sabotaged(&self) -> bool {
        self.planned.is_some() && self.sabotage.is_none()
    }

    /// The players, for the next case.
    pub(crate) fn end(self) -> [Player; 2] {
        self.players
    }

    fn any_unfinished(&mut self) -> Option<usize> {
        let unfinished: Vec<_> = (0..self.sequences.len()).filter(|&i| self.sequences[i].left() > 0).collect();
        if unfinished.is_empty() { None } else { Some(*self.random.pick(&unfinished)) }
    }

    /// A preemption: some or all blocks are given back, what they held is to be computed again.
    fn forget(&mut self, index: usize) -> Option<Difference> {
        let sequence = &mut self.sequences[index];
        let block_tokens = self.players[sequence.player].engine.arena().block_tokens();
        let kept = self.random.between(0, sequence.done / block_tokens);
        self.players[sequence.player].blocks.release(sequence.blocks.drain(kept..));
        sequence.done = kept * block_tokens;
        None
    }

    /// A transfer: cells are exported here and imported into any blocks of the other engine.
    fn migrate(&mut self, index: usize) -> Option<Difference> {
        let Self { players, sequences, random, .. } = self;
        let sequence = &mut sequences[index];
        let [first, second] = players;
        let (from, to) = if sequence.player == 0 { (first, second) } else { (second, first) };
        let block_tokens = from.engine.arena().block_tokens();
        let n_blocks = sequence.done.div_ceil(block_tokens);
        let mut order: Vec<_> = (0..n_blocks).collect();
        random.shuffle(&mut order);
        let mut arrived = vec![BlockIdx(0); n_blocks];
        for i in order {
            let n_rows = block_tokens.min(sequence.done - i * block_tokens);
            arrived[i] = to.blocks.take(to.engine.arena(), random);
            import(&*to.engine, arrived[i], n_rows, &export(&*from.engine, sequence.blocks[i], n_rows));
        }
        from.blocks.release(std::mem::replace(&mut sequence.blocks, arrived));
        sequence.player = 1 - sequence.player;
        None
    }

    /// Takes over full blocks of another sequence that begins with the same tokens.
    pub(crate) fn adopt(&mut self, index: usize) {
        let one = &self.sequences[index];
        if one.done > 0 || !self.random.one_in(2) {
            return;
        }
        let block_tokens = self.players[one.player].engine.arena().block_tokens();
        let shared = |other: &Sequence<'_>| {
            let same = one.expected.tokens.iter().zip(&other.expected.tokens).take_while(|(a, b)| a == b).count();
            let here = if other.player == one.player { same } else { 0 };
            // At least one token is left to compute.
            here.min(other.done).min(one.expected.tokens.len() - 1) / block_tokens
        };
        let others = (0..self.sequences.len()).filter(|&i| i != index);
        let best = others.map(|i| (shared(&self.sequences[i]), i)).max().filter(|&(n, _)| n > 0);
        if let Some((n, other)) = best {
            let blocks = self.sequences[other].blocks[..n].to_vec();
            let one = &mut self.sequences[index];
            let owners = &mut self.players[one.player].blocks;
            owners.share(&blocks);
            owners.release(std::mem::replace(&mut one.blocks, blocks));
            one.done = n * block_tokens;
        }
    }

    /// Goes back to `done` rows, as after drafts that were not accepted: rows of a block cannot be taken away, so its
    /// earlier ones move to another block, or are computed again if they are `lost`.
    pub(crate) fn roll_back(&mut self, index: usize, lost: bool, before: &[Vec<u8>]) {
        let sequence = &mut self.sequences[index];
        let player = &mut self.players[sequence.player];
        let block_tokens = player.engine.arena().block_tokens();
        let (full, rest) = (sequence.done / block_tokens, sequence.done % block_tokens);
        player.blocks.release(sequence.blocks.drain(full..));
        if lost {
            sequence.done = full * block_tokens;
        } else if rest > 0 {
            let block = player.blocks.take(player.engine.arena(), &mut self.random);
            import(&*player.engine, block, rest, before);
            sequence.blocks.push(block);
        }
    }

    /// Takes blocks until the sequence has room for `n` more rows.
    pub(crate) fn grow(&mut self, index: usize, n: usize) {
        let sequence = &mut self.sequences[index];
        let player = &mut self.players[sequence.player];
        let arena = player.engine.arena();
        while sequence.blocks.len() * arena.block_tokens() < sequence.done + n {
            sequence.blocks.push(player.blocks.take(arena, &mut self.random));
        }
    }

    fn compare_kv(&self) -> Option<Difference> {
        for (i, sequence) in self.sequences.iter().enumerate() {
            let engine = &*self.players[sequence.player].engine;
            let block_tokens = engine.arena().block_tokens();
            for (b, (&block, expected)) in sequence.blocks.iter().zip(&sequence.expected.kv).enumerate() {
                let n_rows = block_tokens.min(sequence.done - b * block_tokens);
                if &export(engine, block, n_rows) != expected {
                    return Some(Difference::Kv { sequence: i, block: b });
                }
            }
        }
        None
    }
}
