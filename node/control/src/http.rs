//! The HTTP port: `/metrics`, `/healthz`, `/readyz`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use futures::FutureExt;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::agents::Sessions;
use crate::decider::QueueSender;
use crate::metrics::{Metrics, Sources};
use crate::raft::{REMOVED, RaftNode};
use crate::storage::log::LogStore;

/// What `/readyz` may take: orchestrators ask with a second or more of patience.
const READY_TIMEOUT: Duration = Duration::from_secs(1);
/// After the stop, connections are closed, ready or not.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// The content type of OpenMetrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pages are made of.
#[derive(Clone)]
pub struct Pages {
    /// This node's member of the Raft group.
    pub raft: RaftNode,
    /// Its log.
    pub log: LogStore,
    /// The agents' sessions.
    pub sessions: Sessions,
    /// Commands that wait for the decider.
    pub queue: QueueSender,
    /// What is counted as it happens.
    pub metrics: Arc<Metrics>,
}

/// Serves the HTTP port until `stop`.
///
/// # Errors
/// If accepting connections fails for good.
pub async fn serve(listener: TcpListener, pages: Pages, stop: CancellationToken) -> io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(pages);
    let server = axum::serve(listener, routes).with_graceful_shutdown(stop.clone().cancelled_owned());
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        served = &mut server => return served,
        () = stop.cancelled() => {}
    }
    timeout(STOP_TIMEOUT, server).await.unwrap_or(Ok(()))
}

async fn metrics(Shared(pages): Shared<Pages>) -> impl IntoResponse {
    let (status, state) = (pages.raft.status(), pages.raft.replica().state());
    let sources = Sources {
        status: &status,
        state: &state,
        sessions: pages.sessions.count(),
        queue: pages.queue.len(),
        log: pages.log.stats(),
        log_unfinished: pages.log.unfinished_for().unwrap_or_default(),
        room: pages.raft.disk_space().room(),
    };
    let text = pages.metrics.scrape(&sources);
    text.map(|text| ([(header::CONTENT_TYPE, OPENMETRICS)], text)).map_err(|error| {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics could not be written: {error}\n"))
    })
}

/// The process lives, and its Raft has not failed.
async fn healthz(Shared(pages): Shared<Pages>) -> (StatusCode, String) {
    match pages.raft.fatal().now_or_never() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

/// There is a leader, and this node has applied what that leader had when it was asked.
async fn readyz(Shared(pages): Shared<Pages>) -> (StatusCode, String) {
    if pages.raft.is_removed() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{REMOVED}\n"));
    }
    match pages.raft.read_index(Instant::now() + READY_TIMEOUT).await {
        Ok(view) => (StatusCode::OK, format!("ok, at revision {}\n", view.revision())),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}
