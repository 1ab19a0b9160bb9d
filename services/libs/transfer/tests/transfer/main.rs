//! Source and reader over real sockets, with a fake of the prefill side's computation.

mod corruption;
mod handoff;
mod support;
