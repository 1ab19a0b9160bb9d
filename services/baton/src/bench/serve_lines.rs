//! Measurements on demand: a line asks, a line answers, so that another program can take turns with this one.
//!
//! `prefill TOKENS` or `decode CONTEXT BATCH STEPS`; the answer is `{"tokens_per_s": X}` or `{"error": "…"}`. Ends
//! with standard input.

use std::io::{BufRead as _, Write as _};

use anyhow::Context as _;
use engine::Engine as _;

use super::measure::{Bench, Case};

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let answer = match answer(bench, &line.context("standard input")?) {
            Ok(speed) => serde_json::json!({ "tokens_per_s": speed }),
            Err(error) => serde_json::json!({ "error": format!("{error:#}") }),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn answer(bench: &mut Bench, line: &str) -> anyhow::Result<f64> {
    let case = line.parse::<Case>()?;
    let arena = bench.engine().arena();
    let (needed, there) = (case.n_blocks(arena.block_tokens()), arena.n_blocks());
    anyhow::ensure!(needed <= there, "{case} takes {needed} KV blocks, the flags made {there}");
    Ok(case.n_tokens() as f64 / bench.time(case)?.as_secs_f64())
}

impl std::str::FromStr for Case {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let usage = "expected `prefill TOKENS` or `decode CONTEXT BATCH STEPS`";
        let words: Vec<_> = line.split_whitespace().collect();
        let (kind, numbers) = words.split_first().context(usage)?;
        // 32 bits, so that no sum or product of them overflows.
        let number = |n: &&str| n.parse::<u32>().map(|n| n as usize);
        let numbers = numbers.iter().map(number).collect::<Result<Vec<_>, _>>().context(usage)?;
        match (*kind, numbers.as_slice()) {
            ("prefill", &[tokens]) if tokens > 0 => Ok(Self::Prefill { tokens }),
            ("decode", &[context, batch, steps]) if batch > 0 && steps > 0 => {
                Ok(Self::Decode { context, batch, steps })
            }
            _ => anyhow::bail!("{usage}, not {line:?}"),
        }
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prefill { tokens } => write!(f, "prefill {tokens}"),
            Self::Decode { context, batch, steps } => write!(f, "decode {context} {batch} {steps}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_cases_are_each_others_text() {
        for text in ["prefill 512", "decode 0 1 48", "decode 64 32 1"] {
            assert_eq!(text.parse::<Case>().unwrap().to_string(), text);
        }
        for text in ["", "prefill", "prefill 0", "prefill x", "decode 1 2", "decode 0 0 1", "decode 0 1 0", "stop"] {
            assert!(text.parse::<Case>().is_err(), "{text}");
        }
        assert!("decode 4294967295 4294967295 1".parse::<Case>().is_ok(), "refused later, by the number of blocks");
    }
}
