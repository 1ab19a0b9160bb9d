//! Tests that look at the whole project: its structure (`tidy.rs`), its processes from outside (`e2e/`,
//! Python clients against real processes) and small reference data of its own (`golden/`).
//!
//! Not here: tests of one crate, which live in that crate.
