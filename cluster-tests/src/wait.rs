//! Waiting for conditions.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long a condition may take before the test has failed: far longer than it ever takes, on a busy machine too.
pub const LONG: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until the condition yields something.
///
/// # Panics
/// If it has not after [`LONG`], with the last reason why not.
pub async fn eventually<T, F>(what: &str, look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    eventually_for(LONG, what, look).await
}

/// Looks until the condition yields something.
///
/// # Panics
/// If it has not after `patience`, with the last reason why not.
pub async fn eventually_for<T, F>(patience: Duration, what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let start = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(why) => {
                assert!(start.elapsed() < patience, "not within {patience:?}: {what}; the last look: {why}")
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
