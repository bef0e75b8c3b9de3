//! Creates, one after another by each of a few callers, and what was acknowledged of them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cluster_tests::{Cluster, eventually, shell};
use sandkeeper_client::{Client, v1};
use tokio::task::JoinSet;

const CALLERS: usize = 4;

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    acknowledged: Mutex<BTreeSet<String>>,
}

pub struct Load {
    shared: Arc<Shared>,
    callers: JoinSet<()>,
}

impl Load {
    /// Begins.
    pub fn start(client: &Client) -> Self {
        let (shared, mut callers) = (Arc::new(Shared::default()), JoinSet::new());
        for caller in 0..CALLERS {
            let (shared, client) = (Arc::clone(&shared), client.clone());
            callers.spawn(async move {
                for number in 0.. {
                    if shared.ends.load(Ordering::SeqCst) {
                        return;
                    }
                    // What is not acknowledged may have been made all the same; the next one has another name.
                    if let Ok(made) = client.create(shell(&format!("c{caller}-{number}"), "true")).await {
                        shared.acknowledged.lock().unwrap().insert(made.sandbox.unwrap().sandbox_id);
                    }
                }
            });
        }
        Self { shared, callers }
    }

    /// How many are acknowledged.
    pub fn count(&self) -> usize {
        self.shared.acknowledged.lock().unwrap().len()
    }

    /// Waits until so many more creates are acknowledged.
    pub async fn goes_on(&self, more: usize) {
        let wanted = self.count() + more;
        eventually("creates are acknowledged", || async {
            let count = self.count();
            if count >= wanted { Ok(()) } else { Err(format!("{count} of {wanted}")) }
        })
        .await;
    }

    /// Ends.
    pub async fn end(mut self) -> Acknowledged {
        self.shared.ends.store(true, Ordering::SeqCst);
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
        Acknowledged(std::mem::take(&mut *self.shared.acknowledged.lock().unwrap()))
    }
}

/// The ids of the sandboxes of which somebody was told that they are made.
pub struct Acknowledged(BTreeSet<String>);

impl Acknowledged {
    pub async fn assert_all_in(&self, cluster: &Cluster, index: usize) {
        let read = Some(v1::ReadOptions { consistency: v1::Consistency::Local.into(), min_revision: 0 });
        let request = v1::ListSandboxesRequest { read, ..v1::ListSandboxesRequest::default() };
        let all = cluster.client_of(&[index]).list_all(request).await.unwrap().sandboxes;
        let there: BTreeSet<_> = all.into_iter().map(|sandbox| sandbox.sandbox_id).collect();
        let lost: Vec<_> = self.0.difference(&there).collect();
        assert!(
            lost.is_empty(),
            "{} of {} acknowledged creates are lost: {lost:?}",
            lost.len(),
            self.0.len()
        );
    }
}
