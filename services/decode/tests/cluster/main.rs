//! Prefill and decode workers in one process, over real sockets, with the simulated engine: its next token is a hash
//! of everything before it, so KV that is lost, foreign or damaged shows in the tokens.

mod cancel;
mod fence;
mod handoff;
mod leave;
mod prefix;
mod support;
