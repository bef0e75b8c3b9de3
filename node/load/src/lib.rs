//! Callers that put a load on a server, and what they measure: in a closed loop, or in an open one without coordinated omission (a
//! request that had to wait for others is measured from when it was due). `sandkeeper bench` and the comparison with peers
//! measure with the same callers.

mod load;
mod rounds;

pub use load::{Found, Load, connections};
pub use rounds::{Row, Summary};
