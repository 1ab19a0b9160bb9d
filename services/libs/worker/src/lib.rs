//! The driver that prefill and decode workers share: an engine on its thread, fed step by step with
//! what the scheduler decided.
//!
//! One task owns the `scheduler::Scheduler` and everything known about jobs; one OS thread owns the
//! engine. Others hold a [`WorkerHandle`], send commands and get their answers on channels. What a
//! caller holds ([`PrefillRun`], [`DecodeRun`], [`Hold`], [`Landing`]) gives itself back when dropped:
//! dropping is cancelling.
//!
//! It is not the service: it knows no network, no router and no peer. Blocks cross between workers by
//! `transfer`, which reads and writes the arena under the ownership that [`Hold`] and [`Landing`] stand for.
//!
//! - Blocks are shared by name: [`WorkerHandle::names`] gives a prompt's, jobs carry them, [`KvFollower`] tells what is kept.
//! - Policy (who runs, who waits, who is preempted) is all in `scheduler`.
//! - Begin reading at [`WorkerHandle`], then `driver`: commands in `driver/commands.rs`, steps in
//!   `driver/step.rs`.

mod command;
mod config;
mod driver;
mod engine_thread;
mod events;
mod fail;
mod guard;
mod handle;
mod job;
mod metrics;
mod run;
mod sequence;

pub use config::{ConfigError, WorkerConfig};
pub use events::KvFollower;
pub use guard::{Hold, Landing};
pub use handle::{Health, WorkerHandle, spawn};
pub use job::{DecodeJob, DecodeStart, PrefillJob, Reserved, SeqKey, Started};
pub use run::{DecodeRun, PrefillRun};
