//! `ListSandboxes`: one page after the other.

use prost::Message;
use sandkeeper_proto::v1;
use sandkeeper_statemachine::{SandboxId, State};
use tokio::task::yield_now;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::convert::list::{Filter, checksum, page_size};
use super::convert::sandbox as convert;
use super::pages::PageToken;
use super::status::{Problem, rejected};
use super::{Api, Read};

/// The most bytes of a page (and one sandbox more): what gRPC clients accept by default is 4 MiB.
const MAX_PAGE_BYTES: usize = 3 * 1024 * 1024;
/// Records that are looked at before other requests get a turn: a fraction of a millisecond.
const SCAN_STEP: usize = 2_048;

/// One page: its sandboxes, and the last of them if there may be more.
async fn page(
    state: &State,
    filter: &Filter,
    after: Option<SandboxId>,
    size: usize,
) -> (Vec<v1::Sandbox>, Option<SandboxId>) {
    let mut found = Vec::new();
    let mut bytes = 0;
    let mut after = after;
    loop {
        let mut seen = None;
        let mut count = 0;
        for sandbox in state.sandboxes_after(after.as_ref()).take(SCAN_STEP) {
            count += 1;
            seen = Some(&sandbox.id);
            if !filter.matches(sandbox) {
                continue;
            }
            let wire = convert::sandbox(sandbox, state);
            bytes += wire.encoded_len();
            found.push(wire);
            if found.len() >= size || bytes >= MAX_PAGE_BYTES {
                let more = state.sandboxes_after(seen).next().is_some();
                return (found, seen.filter(|_| more).cloned());
            }
        }
        if count < SCAN_STEP {
            return (found, None);
        }
        after = seen.cloned();
        yield_now().await;
    }
}

impl Api {
    /// One page of a list.
    pub(super) async fn list(
        &self,
        wire: v1::ListSandboxesRequest,
        deadline: Instant,
    ) -> Result<v1::ListSandboxesResponse, Status> {
        let filter = Filter::read(&wire).map_err(|rejection| rejected(&rejection))?;
        let checksum = checksum(&wire);
        let (read, after) = if wire.page_token.is_empty() {
            (self.read(wire.read, deadline).await?, None)
        } else {
            let token =
                PageToken::decode(&wire.page_token, checksum).map_err(|rejection| rejected(&rejection))?;
            (self.go_on(&token)?, Some(token.last))
        };
        let (sandboxes, last) = page(&read.state, &filter, after, page_size(&wire)).await;
        let next_page_token = last.map_or_else(String::new, |last| {
            self.inner.pages.keep(&read.state, Instant::now());
            PageToken { revision: read.state.revision(), filter: checksum, last }.encode()
        });
        Ok(v1::ListSandboxesResponse { header: Some(self.header(&read)), sandboxes, next_page_token })
    }

    /// The state that the pages before were of.
    fn go_on(&self, token: &PageToken) -> Result<Read, Status> {
        let current = self.parts().raft.replica().state();
        let kept = if current.revision() == token.revision {
            Some(current)
        } else {
            self.inner.pages.get(token.revision, Instant::now())
        };
        let state = kept.ok_or_else(|| {
            let text = format!(
                "the list at revision {} is not kept any more on this node: list again",
                token.revision
            );
            Problem::new(Code::Aborted, "LIST_EXPIRED", text).with("revision", &token.revision).status()
        })?;
        // Whatever the first page was, what follows is of the past.
        Ok(Read { state, linearizable: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::World;

    #[tokio::test]
    async fn pages_join_to_the_whole_list() {
        let mut world = World::with_agent();
        let mut names: Vec<String> = (0..7).map(|index| format!("sb-{index}")).collect();
        for name in &names {
            world.create_strong(name);
        }
        for size in 1..=8 {
            let mut seen = Vec::new();
            let mut after = None;
            loop {
                let (found, last) = page(&world.state, &Filter::default(), after, size).await;
                assert!(found.len() <= size && !found.is_empty());
                seen.extend(found.into_iter().map(|sandbox| sandbox.name));
                after = last;
                if after.is_none() {
                    break;
                }
            }
            seen.sort();
            names.sort();
            assert_eq!(seen, names, "pages of {size}");
        }
    }

    #[tokio::test]
    async fn a_page_is_bounded_by_bytes() {
        let mut world = World::with_agent();
        for index in 0..70 {
            world.create_large(&format!("sb-{index}"), 60 * 1024);
        }
        let (found, last) = page(&world.state, &Filter::default(), None, 5000).await;
        assert!(last.is_some());
        let bytes: usize = found.iter().map(Message::encoded_len).sum();
        assert!((MAX_PAGE_BYTES..MAX_PAGE_BYTES + 100 * 1024).contains(&bytes), "{bytes}");
    }
}
