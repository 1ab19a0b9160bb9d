//! The wire format: types generated from `baton/v1/*.proto`, nothing else.
//!
//! Not here: conversion to domain types and error mapping (crate `rpc`). Start at `worker.proto`.

/// Package `baton.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("baton.v1");
}

/// Encoded `FileDescriptorSet` of all files, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
