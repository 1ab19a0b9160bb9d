//! `baton logits`, `generate`, `perplexity`: the engine without a server.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Context as _;
use engine::Engine;
use types::TokenId;

use crate::cli::{Device, EngineArgs, EngineKind, GenerateArgs, LogitsArgs, OfflineArgs, PerplexityArgs};
use crate::engines::{self, Model};

/// Most tokens of one ids file.
const TOKENS_MAX: usize = 16 << 20;

pub(crate) fn logits(args: &LogitsArgs) -> anyhow::Result<()> {
    anyhow::ensure!(args.chunk != Some(0), "--chunk must be at least 1");
    let prompts = read_prompts(&args.offline.ids)?;
    let mut engine = open(&args.offline, longest(&prompts))?;
    let n_vocab = engine.model().n_vocab;
    let shapes: Vec<_> = prompts.iter().map(|p| [p.len(), n_vocab]).collect();
    let mut out = SafetensorsWriter::create(&args.out, &shapes)?;
    for (index, prompt) in prompts.iter().enumerate() {
        let rows = engine::offline::logits(engine.as_mut(), prompt, args.chunk.unwrap_or(prompt.len()))
            .with_context(|| format!("prompt {index}"))?;
        out.append(&rows)?;
    }
    out.finish()
}

#[allow(clippy::print_stdout, reason = "the command's answer")]
pub(crate) fn generate(args: &GenerateArgs) -> anyhow::Result<()> {
    let prompts = read_prompts(&args.offline.ids)?;
    let mut engine = open(&args.offline, longest(&prompts) + args.max_tokens)?;
    let mut ids = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.iter().enumerate() {
        let generated = engine::offline::greedy(engine.as_mut(), prompt, args.max_tokens)
            .with_context(|| format!("prompt {index}"))?;
        if !args.json {
            let line: Vec<_> = generated.iter().map(ToString::to_string).collect();
            println!("{}", line.join(" "));
        }
        ids.push(generated);
    }
    if args.json {
        println!("{}", serde_json::json!({ "ids": ids }));
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the command's answer")]
pub(crate) fn perplexity(args: &PerplexityArgs) -> anyhow::Result<()> {
    anyhow::ensure!(args.window >= 2, "--window must be at least 2: its first token is not scored");
    let tokens: Vec<TokenId> = read_prompts(&args.offline.ids)?.concat();
    let mut engine = open(&args.offline, args.window)?;
    let progress = bootstrap::progress::bar("scoring", tokens.len() as u64);
    let (mut nll, mut scored) = (0.0, 0_usize);
    for window in tokens.chunks(args.window).filter(|w| w.len() >= 2) {
        nll += engine::offline::nll(engine.as_mut(), window)?;
        scored += window.len() - 1;
        progress.inc(window.len() as u64);
    }
    progress.finish();
    anyhow::ensure!(scored > 0, "the ids file holds no window of at least 2 tokens");
    let per_token = nll / scored as f64;
    if args.json {
        println!(
            "{}",
            serde_json::json!({ "nll_per_token": per_token, "perplexity": per_token.exp(), "tokens": scored })
        );
    } else {
        println!("perplexity {:.4} over {scored} tokens", per_token.exp());
    }
    Ok(())
}

fn longest(prompts: &[Vec<TokenId>]) -> usize {
    prompts.iter().map(Vec::len).max().unwrap_or(0)
}

/// Opens the model with room for one sequence of `n_tokens`.
fn open(args: &OfflineArgs, n_tokens: usize) -> anyhow::Result<Box<dyn Engine>> {
    let Device::Cpu = args.device;
    let block_tokens = engine::EngineConfig::default().block_tokens;
    let engine = EngineArgs {
        engine: EngineKind::Cpu,
        compute: args.compute,
        threads: args.threads,
        kv_blocks: n_tokens.div_ceil(block_tokens) + 1,
        ..EngineArgs::default()
    };
    engines::open(&Model::resolve(&args.model)?, &engine)
}

/// Reads `[[ids], …]`, `[ids]`, or an object that holds one of them under `ids` or `tokens`.
fn read_prompts(path: &Path) -> anyhow::Result<Vec<Vec<TokenId>>> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Ids {
        Many(Vec<Vec<TokenId>>),
        One(Vec<TokenId>),
    }
    let name = path.display();
    let mut json: serde_json::Value = serde_json::from_reader(std::io::BufReader::new(
        File::open(path).with_context(|| format!("cannot open {name}"))?,
    ))
    .with_context(|| format!("{name} is not JSON"))?;
    if let Some(inner) = json.as_object_mut().and_then(|o| o.remove("ids").or_else(|| o.remove("tokens"))) {
        json = inner;
    }
    let ids = serde_json::from_value(json).ok().with_context(|| format!("{name} must hold [[ids], …]"))?;
    let prompts = match ids {
        Ids::Many(prompts) => prompts,
        Ids::One(prompt) => vec![prompt],
    };
    anyhow::ensure!(prompts.iter().all(|p| !p.is_empty()), "{name} holds an empty prompt");
    anyhow::ensure!(prompts.iter().map(Vec::len).sum::<usize>() <= TOKENS_MAX, "{name} holds too many tokens");
    Ok(prompts)
}

/// Writes float32 tensors `logits.<i>` one after the other.
struct SafetensorsWriter {
    out: BufWriter<File>,
}

impl SafetensorsWriter {
    fn create(path: &Path, shapes: &[[usize; 2]]) -> anyhow::Result<Self> {
        let mut header = serde_json::Map::new();
        let mut offset = 0;
        for (index, shape) in shapes.iter().enumerate() {
            let end = offset + 4 * shape[0] * shape[1];
            let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] });
            header.insert(format!("logits.{index}"), entry);
            offset = end;
        }
        let mut text = serde_json::to_vec(&header)?;
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut out = BufWriter::new(File::create(path).with_context(|| format!("cannot create {}", path.display()))?);
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(&text)?;
        Ok(Self { out })
    }

    fn append(&mut self, values: &[f32]) -> anyhow::Result<()> {
        for value in values {
            self.out.write_all(&value.to_le_bytes())?;
        }
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<()> {
        Ok(self.out.flush()?)
    }
}
