//! Whole nodes in one process: real sockets on loopback, real logs in temporary folders.

mod bootstrap;
mod group;
mod history;
mod million;
mod replay;
mod rig;
mod snapshots;
mod types;
