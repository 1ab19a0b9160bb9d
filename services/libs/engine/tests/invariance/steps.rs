//! Steps of a play: slices of several sequences together, and trees of drafts.

use std::ops::{ControlFlow, Range};

use engine::{EngineError, LogitRows, Mask, Slice};
use types::{BlockIdx, TokenId};

use crate::blocks::export;
use crate::play::{Difference, Play, Sequence};
use crate::sabotage::{Sabotage, flip};

/// Rows of a sequence in a step.
struct Part {
    index: usize,
    rows: Range<usize>,
    tokens: Vec<TokenId>,
    positions: Vec<u32>,
    blocks: Vec<BlockIdx>,
    logits: LogitRows,
}

impl Part {
    fn slice(&self, max_tokens: u32) -> Slice<'_> {
        Slice {
            tokens: &self.tokens,
            positions: &self.positions,
            first_row: self.rows.start as u32,
            max_tokens,
            blocks: &self.blocks,
            mask: Mask::Causal,
            logits: self.logits,
        }
    }
}

impl Play<'_> {
    /// Some of a player's sequences go on together by some tokens; `aborted`: the step ends within a layer.
    pub(crate) fn step(&mut self, player: usize, aborted: bool) -> Option<Difference> {
        let on = |s: &Sequence<'_>| s.player == player && s.left() > 0;
        let mut together: Vec<_> = (0..self.sequences.len()).filter(|&i| on(&self.sequences[i])).collect();
        self.random.shuffle(&mut together);
        together.truncate(self.random.between(1, together.len()));
        let mut parts: Vec<_> = together.into_iter().map(|index| self.part(index)).collect();
        if !aborted {
            self.break_something(&mut parts);
        }
        let max_tokens = self.sequences[0].expected.max_tokens;
        let slices: Vec<_> = parts.iter().map(|p| p.slice(max_tokens)).collect();
        let engine = &mut self.players[player].engine;
        let last_layer = if aborted { self.random.below(engine.arena().n_layers()) } else { usize::MAX };
        let mut end = |layer| if layer == last_layer { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let mut logits = Vec::new();
        let result = engine.forward(&slices, &mut logits, &mut end);
        if aborted {
            assert_eq!(result, Err(EngineError::Aborted));
            parts.iter().for_each(|p| self.roll_back(p.index, true, &[]));
            return None;
        }
        result.unwrap();
        let mut rows = logits.chunks_exact(self.players[player].engine.model().n_vocab);
        for part in parts {
            let end = part.rows.end;
            self.sequences[part.index].done = end;
            for position in end - part.logits.count(part.rows.len())..end {
                let row = rows.next().expect("a row for each that is wanted");
                if let Some(difference) = self.compare(part.index, position, row) {
                    return Some(difference);
                }
            }
        }
        assert!(rows.next().is_none(), "no row that nobody wanted");
        None
    }

    fn part(&mut self, index: usize) -> Part {
        self.adopt(index);
        let left = self.sequences[index].left();
        let n = match self.random.below(5) {
            0 => left,
            1 => 1,
            2 => self.random.between(1, left.min(4)),
            _ => self.random.between(1, left),
        };
        self.grow(index, n);
        let Sequence { expected, ref blocks, done, .. } = self.sequences[index];
        let rows = done..done + n;
        let wanted = [LogitRows::None, LogitRows::Last, LogitRows::All];
        let all = self.sabotage.is_some() || self.sabotaged();
        Part {
            index,
            tokens: expected.tokens[rows.clone()].to_vec(),
            positions: rows.clone().map(|p| p as u32).collect(),
            rows,
            blocks: blocks.clone(),
            logits: if all { LogitRows::All } else { *self.random.pick(&wanted) },
        }
    }

    /// Does what is planned if these slices allow it.
    fn break_something(&mut self, parts: &mut [Part]) {
        let engine = &*self.players[self.sequences[parts[0].index].player].engine;
        let (n_vocab, block_tokens) = (engine.model().n_vocab as u32, engine.arena().block_tokens());
        // What lies before a window shows in nothing.
        let all_seen = engine.model().compatibility.geometry.layers.iter().all(|l| l.window.is_none());
        let element_bytes = engine.model().compatibility.geometry.element.size();
        for part in parts {
            let last = *part.positions.last().expect("a slice has tokens") as usize;
            let before = part.rows.start;
            match self.sabotage {
                Some(Sabotage::Token) => part.tokens[0] = (part.tokens[0] + 1) % n_vocab,
                Some(Sabotage::Position) if before > 0 && last + 1 < engine.model().max_context => {
                    part.positions.iter_mut().for_each(|p| *p += 1);
                }
                // In float32: rounding to 8 bits on the way may hide so small a difference.
                Some(Sabotage::Order)
                    if all_seen && element_bytes == 4 && before >= 2 * block_tokens && part.rows.len() == 1 =>
                {
                    part.blocks.swap(0, 1);
                }
                Some(Sabotage::Bit) if all_seen && before > 0 => {
                    let block = self.random.below(before.div_ceil(block_tokens));
                    let n_rows = block_tokens.min(before - block * block_tokens);
                    flip(engine, part.blocks[block], n_rows, element_bytes, &mut self.random);
                }
                _ => continue,
            }
            self.sabotage = None;
            return;
        }
    }

    /// Drafts: the next tokens stand somewhere in a tree of others, then all rows are taken back.
    pub(crate) fn tree(&mut self, index: usize) -> Option<Difference> {
        let Sequence { expected, done, player, .. } = self.sequences[index];
        let engine = &self.players[player].engine;
        let (n_vocab, block_tokens) = (engine.model().n_vocab, engine.arena().block_tokens());
        let room = (expected.max_tokens as usize).min(engine.model().max_context) - done;
        let path = &expected.tokens[done..done + self.random.between(1, self.sequences[index].left().min(4))];
        let (mut tokens, mut parents, mut depths, mut on_path) = (vec![], vec![], vec![], vec![]);
        while on_path.len() < path.len() {
            let here = tokens.len();
            let real = here + path.len() - on_path.len() >= room.min(10) || self.random.one_in(2);
            let parent =
                if real { on_path.last().copied() } else { Some(self.random.below(here + 1)).filter(|&p| p < here) };
            tokens.push(if real { path[on_path.len()] } else { self.random.below(n_vocab) as u32 });
            parents.push(parent.map(|p| p as u32));
            depths.push(parent.map_or(0, |p| depths[p] + 1));
            if real {
                on_path.push(here);
            }
        }
        if self.sabotage == Some(Sabotage::Parent) && path.len() > 1 {
            // As if the path's second token followed what comes before the tree.
            parents[on_path[1]] = None;
            self.sabotage = None;
        }
        let before = match done % block_tokens {
            0 => Vec::new(),
            rest => export(&**engine, self.sequences[index].blocks[done / block_tokens], rest),
        };
        self.grow(index, tokens.len());
        let positions: Vec<_> = depths.iter().map(|d: &usize| (done + d) as u32).collect();
        let slice = Slice {
            tokens: &tokens,
            positions: &positions,
            first_row: done as u32,
            max_tokens: expected.max_tokens,
            blocks: &self.sequences[index].blocks,
            mask: Mask::Ancestors(&parents),
            logits: LogitRows::All,
        };
        let mut logits = Vec::new();
        let engine = &mut self.players[player].engine;
        engine.forward(&[slice], &mut logits, &mut |_| ControlFlow::Continue(())).unwrap();
        self.roll_back(index, false, &before);
        let differs =
            |(depth, &i): (usize, &usize)| self.compare(index, done + depth, &logits[i * n_vocab..][..n_vocab]);
        on_path.iter().enumerate().find_map(differs)
    }

    fn compare(&self, sequence: usize, position: usize, found: &[f32]) -> Option<Difference> {
        let expected = &self.sequences[sequence].expected.logits[position];
        if found.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits())) {
            return None;
        }
        let largest = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        Some(Difference::Logits { sequence, position, largest })
    }
}
