//! What is printed: JSON for machines, a table for people.

use engine::cpu::StepCost;
use serde::Serialize;

use super::measure::Case;
use super::roofs::Roofs;

/// Middle and ends of some measurements.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// Of at least one number; the upper of two middle ones.
    pub(super) fn of(numbers: &[f64]) -> Self {
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1).expect("something was measured");
        Self { median: sorted[sorted.len() / 2], min: sorted[0], max: sorted[last] }
    }

    pub(super) fn scaled(self, factor: f64) -> Self {
        Self { median: self.median * factor, min: self.min * factor, max: self.max * factor }
    }
}

/// A case and its speed.
pub(super) struct Line {
    pub(super) case: Case,
    /// Tokens of all sequences together.
    pub(super) tokens_per_s: Spread,
}

/// Everything measured.
pub(super) struct Report<'a> {
    pub(super) model: &'a str,
    pub(super) isa: engine::Isa,
    pub(super) compute: &'static str,
    pub(super) threads: usize,
    pub(super) repeats: usize,
    pub(super) cost: StepCost,
    pub(super) lines: Vec<Line>,
    pub(super) roofs: &'a Roofs,
}

impl Report<'_> {
    pub(super) fn to_json(&self) -> serde_json::Value {
        let result = |line: &Line| {
            let (kind, tokens, context, batch) = match line.case {
                Case::Prefill { tokens } => ("prefill", tokens, 0, 1),
                Case::Decode { context, batch, steps } => ("decode", steps, context, batch),
            };
            let (read, int8) = self.shares(line);
            serde_json::json!({
                "kind": kind, "tokens": tokens, "context": context, "batch": batch, "tokens_per_s": line.tokens_per_s,
                "share_of_roof": { "read_weights": read, "int8": int8 },
            })
        };
        serde_json::json!({
            "threads": self.threads,
            "results": self.lines.iter().map(result).collect::<Vec<_>>(),
            "roofs": self.roofs.to_json(),
            "model": self.model, "isa": self.isa.name(), "compute": self.compute, "repeats": self.repeats,
            "cost": {
                "weight_bytes": self.cost.weight_bytes,
                "layer_macs_per_token": self.cost.layer_macs,
                "head_macs_per_row": self.cost.head_macs,
            },
        })
    }

    #[allow(clippy::print_stdout, reason = "the command's answer")]
    pub(super) fn print(&self) {
        let Self { model, isa, compute, threads, repeats, .. } = self;
        println!("{model}, {threads} threads, {isa}, --compute {compute}, medians of {repeats} (least to most)\n");
        println!("{:<34} {:>8}  {:^17}  {:>6}  {:>6}", "", "tok/s", "", "read", "int8");
        for line in &self.lines {
            let name = match line.case {
                Case::Prefill { tokens } => format!("prefill {tokens}"),
                Case::Decode { context, batch, .. } => format!("decode at {context}, batch {batch}"),
            };
            let Spread { median, min, max } = line.tokens_per_s;
            let (read, int8) = self.shares(line);
            let range = format!("({min:.0} to {max:.0})");
            println!("{name:<34} {median:>8.1}  {range:^17}  {:>5.1}%  {:>5.1}%", 100.0 * read, 100.0 * int8);
        }
        let roof = |name: &str, numbers: &[f64], unit: &str| {
            let Spread { median, min, max } = Spread::of(numbers).scaled(1e-9);
            println!("{name:<34} {median:>8.1}  {:^17}  {unit}", format!("({min:.1} to {max:.1})"));
        };
        println!("\nroofs of this machine, same threads");
        let megabytes = self.cost.weight_bytes as f64 / 1e6;
        roof(&format!("reading {megabytes:.0} MB, as the weights"), &self.roofs.read_weights, "GB/s");
        roof("reading more than any cache holds", &self.roofs.read_memory, "GB/s");
        roof("8-bit dot products", &self.roofs.int8, "GOP/s");
        println!(
            "\nread: weight bytes per second as a share of the first roof; int8: products with weights as one of the last"
        );
    }

    /// Shares of the reading and of the multiplying roof that a line's medians reach. Weights are read once a step; a
    /// product with a weight counts as two operations however many the engine makes of it.
    fn shares(&self, line: &Line) -> (f64, f64) {
        let StepCost { weight_bytes, layer_macs, head_macs } = self.cost;
        let (n_tokens, n_steps) = (line.case.n_tokens() as f64, line.case.n_steps() as f64);
        let seconds = n_tokens / line.tokens_per_s.median;
        let rows = if matches!(line.case, Case::Prefill { .. }) { 1.0 } else { n_tokens };
        let read = weight_bytes as f64 * n_steps / seconds;
        let multiplied = 2.0 * (layer_macs as f64 * n_tokens + head_macs as f64 * rows) / seconds;
        (read / Spread::of(&self.roofs.read_weights).median, multiplied / Spread::of(&self.roofs.int8).median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_middle_and_the_ends() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(&[4.0]).scaled(0.5), Spread { median: 2.0, min: 2.0, max: 2.0 });
    }
}
