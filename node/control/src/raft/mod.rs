//! openraft: the type config, the peer network, the peer service.

pub mod types;
