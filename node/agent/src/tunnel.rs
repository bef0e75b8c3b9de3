//! Tunnels: log bytes for whoever asked a control node for them. They change nothing, so every node may ask.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::time::Duration;

use sandkeeper_proto::v1;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::session::Lease;

/// The most bytes in one message.
const CHUNK: usize = 32 * 1024;
/// How many messages wait at most for the reader: then the tunnel stops reading the file.
const AHEAD: usize = 4;
/// How often a followed file is looked at. Workloads write to it themselves, so nobody tells of it.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a tunnel shows.
#[derive(Debug)]
pub(crate) struct Source {
    /// The log file. It may not be there yet.
    pub(crate) path: PathBuf,
    /// Cancelled when nothing more will be written.
    pub(crate) ended: CancellationToken,
}

/// Dials the control node of `lease` and streams what was asked for. `source`: what to show, or why not.
pub(crate) async fn run(
    lease: &Lease,
    tunnel_id: String,
    source: Result<Source, String>,
    request: v1::LogsRequest,
    token: CancellationToken,
) {
    let (sender, queue) = mpsc::channel(AHEAD);
    let first = v1::TunnelUp { tunnel_id: tunnel_id.clone(), ..v1::TunnelUp::default() };
    if sender.send(first).await.is_err() {
        return;
    }
    let mut client = lease.client();
    let mut down = match timeout(DIAL_TIMEOUT, client.tunnel(ReceiverStream::new(queue))).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => {
            tracing::warn!(tunnel_id, %status, "a tunnel was refused");
            return;
        }
        Err(_) => {
            tracing::warn!(tunnel_id, "a tunnel was not answered within {DIAL_TIMEOUT:?}");
            return;
        }
    };
    let stream = async {
        let result = match source {
            Ok(source) => copy(&source, &request, &sender).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            let _ = sender.send(v1::TunnelUp { error, ..v1::TunnelUp::default() }).await;
        }
        drop(sender);
        // The node ends its half when it has everything.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = token.cancelled() => {}
        () = stream => {}
        // Its end, or an error: nobody reads any more.
        () = async { while let Ok(Some(v1::TunnelDown {})) = down.message().await {} } => {}
    }
}

async fn copy(
    source: &Source,
    request: &v1::LogsRequest,
    sender: &mpsc::Sender<v1::TunnelUp>,
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("can't read the log: {error}");
    let mut file = match File::open(&source.path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err("the sandbox has written nothing, or its log is gone".to_owned());
        }
        Err(error) => return Err(failed(error)),
    };
    if request.tail_lines > 0 {
        let from = start_of_tail(&mut file, request.tail_lines).await.map_err(failed)?;
        file.seek(SeekFrom::Start(from)).await.map_err(failed)?;
    }
    loop {
        // Asked before reading, so that what was written before the end is read after it.
        let last = !request.follow || source.ended.is_cancelled();
        loop {
            let mut data = vec![0; CHUNK];
            let read = file.read(&mut data).await.map_err(failed)?;
            if read == 0 {
                break;
            }
            data.truncate(read);
            if sender.send(v1::TunnelUp { data, ..v1::TunnelUp::default() }).await.is_err() {
                return Ok(());
            }
        }
        if last {
            return Ok(());
        }
        tokio::select! {
            () = source.ended.cancelled() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// Where the last `lines` lines begin. A newline at the very end closes the last line and begins none.
async fn start_of_tail(file: &mut File, lines: u32) -> std::io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0)).await?;
    let length = end;
    let mut found = 0;
    let mut chunk = vec![0; CHUNK];
    while end > 0 {
        let begin = end.saturating_sub(CHUNK as u64);
        let part = &mut chunk[..(end - begin) as usize];
        file.seek(SeekFrom::Start(begin)).await?;
        file.read_exact(part).await?;
        for (at, byte) in part.iter().enumerate().rev() {
            let at = begin + at as u64;
            if *byte == b'\n' && at + 1 != length {
                found += 1;
                if found == lines {
                    return Ok(at + 1);
                }
            }
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn collect(queue: &mut mpsc::Receiver<v1::TunnelUp>) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(up) = queue.recv().await {
            assert!(up.data.len() <= CHUNK);
            all.extend_from_slice(&up.data);
        }
        all
    }

    #[tokio::test]
    async fn a_tail_is_the_last_lines_of_any_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let long = format!("{}\n{}\n", "a".repeat(3 * CHUNK), "b".repeat(2 * CHUNK));
        for (content, lines, tail) in [
            ("one\ntwo\nthree\n", 2, "two\nthree\n"),
            ("one\ntwo\nthree", 2, "two\nthree"),
            ("one\n", 5, "one\n"),
            ("", 1, ""),
            (long.as_str(), 1, &long[3 * CHUNK + 1..]),
            (long.as_str(), 2, &long),
        ] {
            std::fs::write(&path, content).unwrap();
            let source = Source { path: path.clone(), ended: CancellationToken::new() };
            let (sender, mut queue) = mpsc::channel(AHEAD);
            let request = v1::LogsRequest { follow: false, tail_lines: lines };
            let (result, all) = tokio::join!(
                async {
                    let result = copy(&source, &request, &sender).await;
                    drop(sender);
                    result
                },
                collect(&mut queue)
            );
            result.unwrap();
            assert!(all == tail.as_bytes(), "{lines} lines of {} bytes", content.len());
        }
    }

    #[tokio::test]
    async fn a_followed_log_ends_with_the_sandbox_and_misses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = File::create(&path).await.unwrap();
        file.write_all(b"first ").await.unwrap();
        file.flush().await.unwrap();
        let source = Source { path, ended: CancellationToken::new() };
        let (sender, mut queue) = mpsc::channel(AHEAD);
        let ended = source.ended.clone();
        let copying = tokio::spawn(async move {
            copy(&source, &v1::LogsRequest { follow: true, tail_lines: 0 }, &sender).await
        });
        assert_eq!(&queue.recv().await.unwrap().data[..], b"first ");
        file.write_all(b"last").await.unwrap();
        file.flush().await.unwrap();
        ended.cancel();
        assert_eq!(collect(&mut queue).await, b"last");
        copying.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_log_that_is_not_there_is_said_so() {
        let source = Source { path: "/nonexistent/log".into(), ended: CancellationToken::new() };
        let (sender, _queue) = mpsc::channel(AHEAD);
        let error = copy(&source, &v1::LogsRequest::default(), &sender).await.unwrap_err();
        assert!(error.contains("written nothing"), "{error}");
    }
}
