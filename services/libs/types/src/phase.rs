//! The named phases of a request. One enum feeds the timeline, metrics and traces.

use std::time::Duration;

/// In order of occurrence.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Reading and validating the request.
    Accept,
    /// Chat template and tokenizer.
    Tokenize,
    /// Waiting for admission at the router.
    Queue,
    /// Choosing workers and reserving room.
    Route,
    /// Waiting for a prefill step.
    PrefillQueue,
    /// Computing the prompt and sampling the first token.
    Prefill,
    /// From the first token to the last KV block sealed at decode.
    Handoff,
    /// Waiting for a decode step.
    DecodeQueue,
    /// The first decode step.
    FirstStep,
    /// From a token's arrival at the router to its bytes handed to the client's connection.
    Flush,
}

impl Phase {
    /// All, in order.
    pub const ALL: [Self; 10] = [
        Self::Accept,
        Self::Tokenize,
        Self::Queue,
        Self::Route,
        Self::PrefillQueue,
        Self::Prefill,
        Self::Handoff,
        Self::DecodeQueue,
        Self::FirstStep,
        Self::Flush,
    ];

    /// Name in metrics, traces and timelines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Tokenize => "tokenize",
            Self::Queue => "queue",
            Self::Route => "route",
            Self::PrefillQueue => "prefill_queue",
            Self::Prefill => "prefill",
            Self::Handoff => "handoff",
            Self::DecodeQueue => "decode_queue",
            Self::FirstStep => "first_step",
            Self::Flush => "flush",
        }
    }
}

/// Time spent in each phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PhaseTimes([Duration; Phase::ALL.len()]);

impl PhaseTimes {
    /// Adds `time` to `phase`.
    pub fn add(&mut self, phase: Phase, time: Duration) {
        self.0[phase as usize] += time;
    }

    /// Time spent in `phase`.
    pub fn get(&self, phase: Phase) -> Duration {
        self.0[phase as usize]
    }

    /// Adds every phase of `other`.
    pub fn merge(&mut self, other: &Self) {
        for phase in Phase::ALL {
            self.add(phase, other.get(phase));
        }
    }

    /// Phases with time in them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Phase, Duration)> + '_ {
        Phase::ALL.into_iter().map(|p| (p, self.get(p))).filter(|(_, d)| !d.is_zero())
    }
}
