//! Bytes on their way.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Party, Quality, Shared, Tally};

/// Bytes that are carried at once.
const BUFFER: usize = 16 * 1024;
/// Of these, so many may be on their way.
const ON_THE_WAY: usize = 256;
/// What a lost packet costs at least: the kernel's shortest retransmission timeout.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// What is sent in one packet on loopback is sent in so many bytes elsewhere.
const PACKET: usize = 1_448;

/// One direction of a connection.
pub(super) struct Way {
    way: Option<(Party, Party)>,
    shared: Arc<Shared>,
}

impl Way {
    pub(super) fn new(way: Option<(Party, Party)>, shared: Arc<Shared>) -> Self {
        Self { way, shared }
    }

    fn quality(&self) -> Quality {
        let Some(way) = self.way else { return Quality::default() };
        self.shared.weather.borrow().get(&way).copied().unwrap_or_default()
    }

    /// Waits while it is cut. False: everything ends.
    async fn opened(&self) -> bool {
        let Some(way) = self.way else { return true };
        if !self.quality().cut {
            return true;
        }
        Tally::count(&self.shared.tally.held);
        let mut weather = self.shared.weather.subscribe();
        weather.wait_for(|weather| !weather.get(&way).is_some_and(|quality| quality.cut)).await.is_ok()
    }

    /// How long so many bytes are held up by losses.
    fn lost(&self, bytes: usize, loss: f64) -> Duration {
        let packets = bytes.div_ceil(PACKET);
        let lost = (0..packets).filter(|_| rand::rng().random_bool(loss.clamp(0.0, 1.0))).count();
        if lost > 0 {
            Tally::count(&self.shared.tally.lost);
        }
        RETRANSMISSION * u32::try_from(lost).unwrap_or(u32::MAX)
    }
}

/// Carries bytes one way, as the way's quality has it, to the end of the stream.
pub(super) async fn carry(from: OwnedReadHalf, to: OwnedWriteHalf, way: Way) {
    let (queue, waiting) = mpsc::channel(ON_THE_WAY);
    let mut delivering = pin!(deliver(to, waiting, &way));
    tokio::select! {
        () = &mut delivering => return,
        // What is on its way still arrives.
        () = take(from, queue, &way) => {}
    }
    delivering.await;
}

/// Reads, and says when it is to arrive.
async fn take(mut from: OwnedReadHalf, queue: mpsc::Sender<(Instant, Vec<u8>)>, way: &Way) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let quality = way.quality();
        if let Some(rate) = quality.rate {
            Tally::count(&way.shared.tally.throttled);
            sleep(Duration::from_secs_f64(read as f64 / rate as f64)).await;
        }
        let held_up = if quality.loss > 0.0 { way.lost(read, quality.loss) } else { Duration::ZERO };
        if !quality.delay.is_zero() {
            Tally::count(&way.shared.tally.delayed);
        }
        let arrives = Instant::now() + quality.delay + held_up;
        if queue.send((arrives, buffer[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

/// Writes what has arrived, in order.
async fn deliver(mut to: OwnedWriteHalf, mut waiting: mpsc::Receiver<(Instant, Vec<u8>)>, way: &Way) {
    while let Some((arrives, bytes)) = waiting.recv().await {
        sleep_until(arrives).await;
        if !way.opened().await || to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The end of the stream gets through as little as what was said.
    way.opened().await;
}
