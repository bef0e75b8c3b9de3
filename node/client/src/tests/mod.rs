//! The client against in-process servers that fail on command.

mod creating;
mod failover;
mod fake;
mod watching;
