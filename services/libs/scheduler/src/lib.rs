//! Which sequences a worker computes next, and with which blocks.
//!
//! A deterministic state machine: calls come in with the time (a `Duration` since some start), a step
//! comes out as a plain value. It counts tokens and owns the block pool; it knows no token ids, no
//! engine, no clock and no task. `worker` drives it.
//!
//! - [`Scheduler::plan`] gives the next [`Step`]; [`Scheduler::complete`] is told how it went.
//! - Every step carries every sequence that is one token behind (a running decode); what is left of the
//!   token budget goes to prompts in chunks.
//! - Blocks are promised at admission for the worst case, with new tokens counted up to a cap. Who
//!   outgrows its promise takes what is free, preempting younger sequences: their blocks are freed and
//!   their KV is computed again later, which no token shows.
//! - Blocks that are named ([`Scheduler::name_blocks`]) are sealed when full and shared by all sequences that begin
//!   alike; a sequence starts behind those that it finds. Sealed blocks without owner count as available.
//!
//! Begin at [`Scheduler`], then `plan.rs`.
//!
//! **Invariant** The blocks promised and not yet allocated are never more than those without an owner.
//! **Invariant** The oldest sequence that can be computed is never preempted by another.

mod admit;
mod config;
mod id;
mod landing;
mod plan;
mod prefix;
mod scheduler;
mod sequence;
mod step;

pub use config::{Config, ConfigError};
pub use id::{HoldId, LandingId, ReservationId, SeqId};
pub use landing::Claimed;
pub use plan::{Plan, Start};
pub use scheduler::{Cancelled, Expired, Refusal, Scheduler, Stats};
pub use sequence::{Kind, Submission};
pub use step::{Slice, Step, Verdict};
