//! What must hold, one file each. Each looks at what it is given, and keeps what it has to remember; `Oracle` gives.

pub mod capacity;
pub mod convergence;
pub mod digests;
pub mod durable;
pub mod linearizable;
pub mod progress;
pub mod request_ids;
pub mod single_life;
#[cfg(test)]
pub(crate) mod testing;
pub mod watches;
