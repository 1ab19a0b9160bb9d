//! Source and reader over real sockets, with a fake of the prefill side's computation. On every transport.

mod corruption;
mod handoff;
mod holds;
mod support;
