//! How workers are compared: the policies, by name.

use std::fmt;
use std::str::FromStr;

use types::{RequestId, Role};

use crate::estimate::Pace;
use crate::score::Score;
use crate::{Predicted, Work};

/// A way of choosing workers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Policy {
    /// One after the other, in the order of ids.
    RoundRobin,
    /// Prefill: fewest queued prompt tokens. Decode: smallest part of the pool in use. Then fewest sequences.
    LeastLoaded,
    /// The less loaded of two workers drawn by the request's id.
    PowerOfTwo,
    /// The longest cached beginning, unless the load has become uneven: then the least loaded.
    PrefixAware,
    /// The least predicted time to the first token, and what the request costs those that are decoding.
    #[default]
    Cost,
}

/// Not a policy's name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("must be one of round-robin, least-loaded, power-of-two, prefix-aware, cost")]
pub struct UnknownPolicy;

/// Load is uneven if the fullest worker has so many more sequences than the emptiest, and so many times as many. The
/// rule is that of SGLang's cache-aware router; the numbers are ours.
const UNEVEN_BY: u64 = 8;
const UNEVEN_TIMES: f64 = 1.5;
/// Makes a second criterion smaller than any difference in the first.
const SECOND: f64 = 1e-6;
/// And a third one smaller than any in that.
const THIRD: f64 = 1e-7;
/// Put on workers that were not drawn: they come after the others.
const NOT_DRAWN: f64 = 1e12;
/// Tokens of the answer for which a decode worker's pace counts as much as the time to the first token.
const PACE_TOKENS: u32 = 16;
/// From this part of the pool on, sequences are likely to be preempted.
const FULL: f64 = 0.8;
/// Equal costs are told apart by the request's id, by at most so many seconds.
const SPREAD: f64 = 1e-6;

/// What is known about a candidate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) role: Role,
    /// Place among the candidates of its role, in the order of ids.
    pub(crate) place: usize,
    pub(crate) predicted: Predicted,
    /// Tokens of the prompt that it need not compute.
    pub(crate) cached: u32,
    /// Blocks that the request takes there at most.
    pub(crate) blocks: u64,
    pub(crate) block_tokens: u32,
    pub(crate) pace: Pace,
}

/// What is known about all candidates of a role.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    n: usize,
    drawn: [usize; 2],
    uneven: bool,
}

/// What is asked for, as far as policies look at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) work: Work,
    pub(crate) draw: u64,
    pub(crate) turn: u64,
}

impl Policy {
    /// All, in the order of their subtlety.
    pub const ALL: [Self; 5] = [Self::RoundRobin, Self::LeastLoaded, Self::PowerOfTwo, Self::PrefixAware, Self::Cost];

    /// Name in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastLoaded => "least-loaded",
            Self::PowerOfTwo => "power-of-two",
            Self::PrefixAware => "prefix-aware",
            Self::Cost => "cost",
        }
    }

    /// Whether it looks at what workers hold.
    pub const fn is_prefix_aware(self) -> bool {
        matches!(self, Self::PrefixAware | Self::Cost)
    }

    /// Whether the scores of a pair's workers are in one unit, so that their sum ranks the pair. Otherwise the decode
    /// worker is chosen first.
    pub(crate) const fn adds_up(self) -> bool {
        matches!(self, Self::Cost)
    }

    /// What it costs to give the request to a worker in its own role: prefill computes the prompt, decode goes on.
    pub(crate) fn score(self, asked: &Asked, field: &Field, view: &View) -> Score {
        let n = field.n.max(1);
        match self {
            Self::RoundRobin => {
                let turn = (asked.turn % n as u64) as usize;
                Score::of("turn", ((view.place + n - turn) % n) as f64)
            }
            Self::LeastLoaded => least_loaded(view),
            Self::PowerOfTwo => {
                let drawn = match view.place {
                    place if place == field.drawn[0] => 0.0,
                    place if place == field.drawn[1] => THIRD,
                    _ => NOT_DRAWN,
                };
                least_loaded(view).and("drawn", drawn)
            }
            Self::PrefixAware if field.uneven || view.role == Role::Decode => least_loaded(view),
            Self::PrefixAware => {
                let uncached = asked.work.n_prompt.saturating_sub(view.cached);
                Score::of("uncached", f64::from(uncached))
                    .and("queued", view.predicted.queued_tokens as f64 * SECOND)
                    .and("sequences", view.predicted.sequences as f64 * SECOND)
            }
            Self::Cost if view.role == Role::Decode => decode_cost(asked, view),
            Self::Cost => prompt_cost(asked, view).and("spread", spread(asked, view)),
        }
    }

    /// What it costs a decode worker to compute the prompt itself, for a policy whose scores add up.
    pub(crate) fn local(self, asked: &Asked, view: &View) -> Score {
        if self.adds_up() { prompt_cost(asked, view) } else { Score::default() }
    }

    /// What it costs to move the prompt's blocks to a decode worker, for a policy whose scores add up.
    pub(crate) fn transfer(self, asked: &Asked, view: &View) -> Score {
        if !self.adds_up() {
            return Score::default();
        }
        let tokens = asked.work.n_prompt.saturating_sub(view.cached);
        Score::of("transfer", view.pace.transfer(u64::from(tokens)))
    }
}

impl Field {
    pub(crate) fn new(draw: u64, loads: &[Predicted]) -> Self {
        let n = loads.len().max(1);
        let first = (mix(draw) % n as u64) as usize;
        let second = match n {
            1 => 0,
            _ => (first + 1 + (mix(draw ^ 0x5851_f42d_4c95_7f2d) % (n as u64 - 1)) as usize) % n,
        };
        let sequences = || loads.iter().map(|load| load.sequences);
        let (least, most) = (sequences().min().unwrap_or(0), sequences().max().unwrap_or(0));
        let uneven = most - least > UNEVEN_BY && most as f64 > UNEVEN_TIMES * least as f64;
        Self { n, drawn: [first, second], uneven }
    }
}

fn least_loaded(view: &View) -> Score {
    let load = &view.predicted;
    let sequences = load.sequences as f64 * SECOND;
    match view.role {
        Role::Decode => {
            let share = load.blocks_used.saturating_mul(1_000_000) / load.blocks_total.max(1);
            Score::of("pool_used", share as f64).and("sequences", sequences)
        }
        Role::Prefill | Role::Router => Score::of("queued", load.queued_tokens as f64).and("sequences", sequences),
    }
}

/// Seconds until the prompt is computed here.
fn prompt_cost(asked: &Asked, view: &View) -> Score {
    let tokens = asked.work.prompt_cost(view.cached);
    Score::of("queue", view.pace.prompt(view.predicted.queued_tokens)).and("prefill", view.pace.prompt(tokens))
}

/// Seconds that the answer's first tokens will take here, more where the pool is nearly full.
fn decode_cost(asked: &Asked, view: &View) -> Score {
    let load = &view.predicted;
    let context = (load.blocks_used + view.blocks) * u64::from(view.block_tokens);
    let steps = f64::from(asked.work.n_new.clamp(1, PACE_TOKENS));
    let pace = steps * view.pace.step(load.sequences + 1, context);
    let share = match load.blocks_total {
        0 => 0.0,
        total => (load.blocks_used + view.blocks) as f64 / total as f64,
    };
    let room = pace * ((share - FULL) / (1.0 - FULL)).clamp(0.0, 1.0);
    Score::of("pace", pace).and("room", room).and("spread", spread(asked, view))
}

fn spread(asked: &Asked, view: &View) -> f64 {
    let side = u64::from(view.role == Role::Decode) << 32;
    let drawn = mix(asked.draw ^ mix(view.place as u64 ^ side)) >> 11;
    SPREAD * drawn as f64 / (1_u64 << 53) as f64
}

/// The request's own random number: the same for each attempt.
pub(crate) fn draw(request: RequestId, choice: u32) -> u64 {
    let RequestId(id) = request;
    mix((id as u64) ^ mix((id >> 64) as u64) ^ u64::from(choice))
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(s: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == s).ok_or(UnknownPolicy)
    }
}
