//! Real processes of the real binary, on real sockets and disks: what the cluster tests are made of.
//!
//! A test waits for a condition ([`eventually`]), never for a time. Everything that a test starts is killed, and its
//! folder removed, when its [`Cluster`] goes out of scope; the folder stays if the test failed.

// All of this crate is test code: a panic is how it reports.
#![allow(clippy::missing_panics_doc, clippy::print_stderr)]

mod binary;
pub mod chaos;
mod cluster;
pub mod diary;
mod ended;
pub mod faketime;
mod leftovers;
mod links;
pub mod planted;
mod process;
mod proxy;
mod raw;
mod requests;
mod scrape;
mod standing;
mod strace;
mod wait;

pub use binary::binary;
pub use cluster::{AgentOptions, AgentProcess, Cluster, ClusterOptions, NodeProcess};
pub use ended::{Ended, run_program, run_to_end};
pub use links::{Links, Party, Quality, Tally, Weather};
pub use process::{Process, alive, children_of, open_files, peak_resident_bytes, resident_bytes};
pub use proxy::{Cut, Proxy};
pub use raw::{Raw, Refused, refused};
pub use requests::{by_id, by_name, get, shell};
pub use scrape::{http_get, scrape};
pub use standing::Standing;
pub use strace::Strace;
pub use wait::{LONG, eventually, eventually_for};
