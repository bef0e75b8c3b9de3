//! The digests of this node and of others at a revision.

use sandkeeper_proto::internal::{DigestRequest, DigestResponse};
use sandkeeper_statemachine::{DIGEST_FORM, Digest, Revision};
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use super::node::RaftNode;
use super::peers::reason;
use super::types::NodeId;
use crate::history::Digests;

/// Why a node's digests at a revision are not there. It says nothing about what they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoDigests {
    /// It has gone on, and forgot them: at a newer revision it may answer.
    #[error("{0}")]
    Forgotten(String),
    /// It did not answer, and at another revision it would not either.
    #[error("{0}")]
    Silent(String),
}

impl RaftNode {
    /// The digests of this node, once it has reached the revision.
    ///
    /// # Errors
    /// If it has not by `deadline`, or no longer knows them.
    pub async fn own_digests(&self, revision: Revision, deadline: Instant) -> Result<Digests, NoDigests> {
        let reached = self.replica().wait_revision(revision, deadline).await;
        reached.map_err(|error| NoDigests::Silent(error.to_string()))?;
        self.history().digests_at(revision).ok_or_else(|| {
            NoDigests::Forgotten(format!("the digests at revision {revision} are not known any more"))
        })
    }

    /// The digests of another member of this cluster, once it has reached the revision.
    ///
    /// # Errors
    /// If it does not give them by `deadline`, is not that member, or makes its digests in another way.
    pub async fn digests_of(
        &self,
        node: NodeId,
        address: &str,
        revision: Revision,
        deadline: Instant,
    ) -> Result<Digests, NoDigests> {
        let client = self.peers().client(address, Some(node));
        let mut client = client.map_err(|error| NoDigests::Silent(error.to_string()))?;
        match timeout_at(deadline, client.digest(DigestRequest { revision })).await {
            Ok(Ok(answer)) => read(&answer.into_inner()),
            Ok(Err(status)) if status.code() == Code::OutOfRange => {
                Err(NoDigests::Forgotten(status.message().to_owned()))
            }
            Ok(Err(status)) => Err(NoDigests::Silent(reason(&status))),
            Err(_) => Err(NoDigests::Silent("no answer in time".to_owned())),
        }
    }
}

fn read(answer: &DigestResponse) -> Result<Digests, NoDigests> {
    if answer.form != DIGEST_FORM {
        let text = format!("its digests have form {}, this node's have form {DIGEST_FORM}", answer.form);
        return Err(NoDigests::Silent(text));
    }
    let digest = |bytes: &[u8]| {
        bytes.try_into().map(Digest).map_err(|_| NoDigests::Silent("it sent no digest".to_owned()))
    };
    Ok(Digests {
        revision: answer.revision,
        history: digest(&answer.history_digest)?,
        state: digest(&answer.state_digest)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_of_this_form_are_read() {
        let digest = |byte| vec![byte; 32].into();
        let answer = DigestResponse {
            revision: 7,
            history_digest: digest(1),
            state_digest: digest(2),
            form: DIGEST_FORM,
        };
        let expected = Digests { revision: 7, history: Digest([1; 32]), state: Digest([2; 32]) };
        assert_eq!(read(&answer), Ok(expected));
        let other = DigestResponse { form: DIGEST_FORM + 1, ..answer.clone() };
        assert!(matches!(read(&other), Err(NoDigests::Silent(_))));
        let short = DigestResponse { state_digest: vec![2; 31].into(), ..answer };
        assert!(matches!(read(&short), Err(NoDigests::Silent(_))));
    }
}
