//! A control node: Raft log, state, gRPC API, decider, applier.

pub mod raft;
pub mod storage;
