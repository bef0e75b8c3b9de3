//! The numbers of a node's `/metrics`.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The answer to a GET over HTTP/1.0: the status code and the body.
///
/// # Errors
/// A text, if there is no answer in time, or it is not HTTP.
pub async fn http_get(address: &str, path: &str) -> Result<(u16, String), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
        Ok::<_, String>(answer)
    };
    let answer =
        timeout(PATIENCE, exchange).await.map_err(|_| format!("{address}{path}: no answer in time"))??;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("not HTTP: {answer:?}"))?;
    let code = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    Ok((code.ok_or_else(|| format!("not HTTP: {head:?}"))?, body.to_owned()))
}

/// Every sample of `/metrics`, by its name with labels.
///
/// # Errors
/// A text, if the node does not answer, or not with metrics.
pub async fn scrape(address: &str) -> Result<BTreeMap<String, f64>, String> {
    let (code, body) = http_get(address, "/metrics").await?;
    if code != 200 {
        return Err(format!("{address}/metrics: {code}: {body}"));
    }
    body.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').ok_or_else(|| format!("not a sample: {line:?}"))?;
            let value = value.parse().map_err(|_| format!("not a number: {line:?}"))?;
            Ok((name.to_owned(), value))
        })
        .collect()
}
