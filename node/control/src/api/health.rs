//! `grpc.health.v1` for each service, and reflection of what is public.

use std::time::Duration;

use prost::Message;
use prost_types::FileDescriptorSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::raft::RaftNode;

/// The services that clients and agents may know of. Health is told for each of them, and for "" (all).
pub const PUBLIC_SERVICES: [&str; 5] = [
    "sandkeeper.v1.SandboxService",
    "sandkeeper.v1.EventService",
    "sandkeeper.v1.FleetService",
    "sandkeeper.v1.AgentService",
    "sandkeeper.v1.ClusterService",
];

/// What peers say among themselves is nobody else's business.
const PRIVATE_PACKAGE: &str = "sandkeeper.internal.v1";

/// How often it is looked whether there is a leader.
const LOOK: Duration = Duration::from_millis(500);
/// How long a leader that is known may take to confirm it.
const CONFIRM: Duration = Duration::from_secs(1);

/// The descriptors of the public packages, for reflection.
///
/// # Panics
/// If the descriptor set that this build made is not valid, which its test excludes.
pub fn public_descriptors() -> FileDescriptorSet {
    let mut set = FileDescriptorSet::decode(sandkeeper_proto::FILE_DESCRIPTOR_SET)
        .expect("the build wrote a valid descriptor set");
    set.file.retain(|file| file.package() != PRIVATE_PACKAGE);
    set
}

/// Tells the health of this node until it stops: NOT_SERVING without a leader that a majority confirms. The leader that
/// a node knows of may be long dead, so each look asks for a read index.
pub(super) async fn tell(raft: RaftNode, reporter: HealthReporter, stop: CancellationToken) {
    let mut told = None;
    let looks = async {
        loop {
            let serves = raft.leader().is_some() && raft.read_index(Instant::now() + CONFIRM).await.is_ok();
            if told != Some(serves) {
                told = Some(serves);
                let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
                tell_all(&reporter, status).await;
            }
            sleep(LOOK).await;
        }
    };
    stop.run_until_cancelled(looks).await;
    tell_all(&reporter, ServingStatus::NotServing).await;
}

/// Sets the status of all services.
pub(super) async fn tell_all(reporter: &HealthReporter, status: ServingStatus) {
    for service in std::iter::once("").chain(PUBLIC_SERVICES) {
        reporter.set_service_status(service, status).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reflection_shows_what_is_public_and_nothing_else() {
        let set = public_descriptors();
        let services: Vec<String> = set
            .file
            .iter()
            .flat_map(|file| {
                file.service.iter().map(|service| format!("{}.{}", file.package(), service.name()))
            })
            .collect();
        for service in PUBLIC_SERVICES {
            assert!(services.iter().any(|found| found == service), "{service} is missing in {services:?}");
        }
        assert_eq!(services.len(), PUBLIC_SERVICES.len(), "{services:?}");
        assert!(
            set.file.iter().any(|file| file.name() == "google/protobuf/duration.proto"),
            "imports are there"
        );
    }
}
