//! Models that open here, and engines of them, kept for the next case.

use std::path::PathBuf;

use engine::{Compute, Engine, EngineConfig};
use kernels::Isa;

use crate::common::{config, demo_model, file_name, golden_cases, open, try_open};
use crate::random::Random;

/// Blocks of every arena.
const KV_BLOCKS: usize = 256;
/// Engines of a large model that are kept.
const LARGE_MAX: usize = 4;
/// Engines of small models that are kept.
const SMALL_MAX: usize = 32;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Setting {
    pub(crate) model: usize,
    pub(crate) compute: Compute,
    pub(crate) block_tokens: usize,
    pub(crate) threads: usize,
    pub(crate) isa: Isa,
}

pub(crate) struct Model {
    pub(crate) path: PathBuf,
    /// Too slow for many tokens and for plain scalar code.
    pub(crate) large: bool,
}

pub(crate) struct Engines {
    pub(crate) models: Vec<Model>,
    open: Vec<(Setting, Box<dyn Engine>)>,
}

impl Engines {
    /// Small models of all families that the engine reads, and the demo model if it is there.
    pub(crate) fn new() -> Self {
        let file = |case: PathBuf| Some(case.join("model.gguf")).filter(|p| p.is_file()).unwrap_or(case);
        let reads = |path: &PathBuf| match try_open(path, &config(Compute::F32)) {
            Ok(_) => true,
            Err(why) => {
                // The families that have to open do so in golden.rs.
                println!("SKIPPED: {}: {why}", file_name(path));
                false
            }
        };
        let small = golden_cases("").into_iter().map(file).filter(reads);
        let small = small.map(|path| Model { path, large: false });
        let large = demo_model().map(|path| Model { path, large: true });
        let models: Vec<_> = small.chain(large).collect();
        assert!(models.iter().any(|m| !m.large), "no small model opens");
        Self { models, open: Vec::new() }
    }

    pub(crate) fn setting(&self, model: usize, compute: Compute, block_tokens: usize, random: &mut Random) -> Setting {
        // Plain scalar code is slow.
        let slower = random.one_in(6) && !self.models[model].large;
        let isa = if slower { *random.pick(&Isa::available()) } else { Isa::detect() };
        Setting { model, compute, block_tokens, threads: random.between(1, 3), isa }
    }

    /// Lends an engine; give it back with [`Engines::put`].
    pub(crate) fn take(&mut self, setting: &Setting) -> Box<dyn Engine> {
        if let Some(found) = self.open.iter().position(|(s, _)| s == setting) {
            return self.open.remove(found).1;
        }
        let Setting { model, compute, block_tokens, threads, isa } = *setting;
        let config = EngineConfig { kv_blocks: KV_BLOCKS, block_tokens, threads, isa: Some(isa), ..config(compute) };
        open(&self.models[model].path, &config)
    }

    /// Keeps it, and lets the oldest go if there are many.
    pub(crate) fn put(&mut self, setting: Setting, engine: Box<dyn Engine>) {
        self.open.push((setting, engine));
        for (large, max) in [(true, LARGE_MAX), (false, SMALL_MAX)] {
            let mut kept = self.open.iter().enumerate().filter(|(_, (s, _))| self.models[s.model].large == large);
            if let (Some((oldest, _)), true) = (kept.next(), kept.count() >= max) {
                self.open.remove(oldest);
            }
        }
    }
}
