//! The wire: everything here is made from the .proto files beside `src`.
//!
//! Architecture invariant: no logic. Conversions to the core's types are the control node's (`api/convert.rs`).

/// What clients and agents speak with control nodes.
pub mod v1 {
    #![allow(missing_docs, clippy::pedantic, clippy::large_enum_variant, unused_qualifications)]
    tonic::include_proto!("sandkeeper.v1");
}

/// What control nodes speak among themselves.
pub mod internal {
    pub use v1::*;

    /// As deep as its package, so that what it takes from the other one is found.
    mod v1 {
        #![allow(missing_docs, clippy::pedantic, clippy::large_enum_variant, unused_qualifications)]
        tonic::include_proto!("sandkeeper.internal.v1");
    }
}

/// The encoded `FileDescriptorSet` of all .proto files, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The largest gRPC message that a client or agent may send, bytes: a request (1 MiB) and its envelope.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024 + 64 * 1024;

/// The descriptors as a pool, for printing messages as canonical JSON.
///
/// # Panics
/// If the descriptor set that this build made is not valid, which its test excludes.
pub fn descriptor_pool() -> prost_reflect::DescriptorPool {
    prost_reflect::DescriptorPool::decode(FILE_DESCRIPTOR_SET)
        .expect("the build wrote a valid descriptor set")
}

#[cfg(test)]
mod tests {
    #[test]
    fn descriptors_name_every_service() {
        let pool = super::descriptor_pool();
        let names: Vec<_> = pool.services().map(|service| service.full_name().to_owned()).collect();
        for name in ["SandboxService", "EventService", "FleetService", "AgentService", "ClusterService"] {
            assert!(names.contains(&format!("sandkeeper.v1.{name}")), "{name} is missing in {names:?}");
        }
        assert!(names.contains(&"sandkeeper.internal.v1.PeerService".to_owned()));
    }
}
