//! What every request brings beside its message: until when, and who asks.

use std::time::Duration;

use sandkeeper_statemachine::Actor;
use tokio::time::Instant;
use tonic::Request;
use tonic::metadata::MetadataMap;

use super::convert::invalid;
use super::status::rejected;

/// A request without a deadline of its own gets this: longer than an election, shorter than patience.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// The same for requests that wait for an agent: STRONG creates, WaitSandbox.
pub const DEFAULT_LONG_DEADLINE: Duration = Duration::from_mins(1);
/// The longest that a request may ask for.
pub const MAX_DEADLINE: Duration = Duration::from_hours(24);
/// The metadata key with which a gateway says for whom it asks.
pub const ACTOR_KEY: &str = "sandkeeper-actor";
/// The most bytes of its value: it stands in every event that the request causes.
pub const MAX_ACTOR_BYTES: usize = 128;

/// The answer has to be on its way before the caller's deadline, or the caller learns nothing.
const MARGIN: Duration = Duration::from_millis(50);

/// What a request brings beside its message.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Until when it has to be answered.
    pub deadline: Instant,
    /// Who asks.
    pub actor: Actor,
}

impl Call {
    /// Reads it. `default`: how long a request without a deadline may take.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the metadata is not what it should be.
    pub(crate) fn of<T>(request: &Request<T>, default: Duration) -> Result<Self, tonic::Status> {
        let timeout = match request.metadata().get("grpc-timeout") {
            Some(value) => value
                .to_str()
                .ok()
                .and_then(parse_timeout)
                .ok_or_else(|| rejected(&invalid("grpc-timeout", "is not a timeout of gRPC")))?,
            None => default,
        };
        let timeout = timeout.min(MAX_DEADLINE);
        let deadline = Instant::now() + timeout.saturating_sub(MARGIN.min(timeout / 10));
        let peer = request.remote_addr().map(|address| address.ip().to_string());
        Ok(Self { deadline, actor: actor(request.metadata(), peer)? })
    }
}

fn actor(metadata: &MetadataMap, peer: Option<String>) -> Result<Actor, tonic::Status> {
    let Some(value) = metadata.get(ACTOR_KEY) else {
        return Ok(Actor::Client(peer.unwrap_or_else(|| "unknown".to_owned())));
    };
    // HTTP/2 lets no control character through that `to_str` would take.
    match value.to_str() {
        Ok(name) if !name.is_empty() && name.len() <= MAX_ACTOR_BYTES => Ok(Actor::Client(name.to_owned())),
        _ => {
            let rule = format!("must have 1 to {MAX_ACTOR_BYTES} printable ASCII characters");
            Err(rejected(&invalid(ACTOR_KEY, rule)))
        }
    }
}

/// At most eight digits and a unit, says the gRPC specification.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let good = [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ];
        for (text, duration) in good {
            assert_eq!(parse_timeout(text), Some(duration), "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1ü", "ü"] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_deadline_is_never_unbounded() {
        let within = |timeout: Option<&'static str>| {
            let mut request = Request::new(());
            if let Some(timeout) = timeout {
                request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
            }
            Call::of(&request, DEFAULT_DEADLINE).unwrap().deadline - Instant::now()
        };
        assert!(within(None) <= DEFAULT_DEADLINE);
        assert!(within(Some("99999999H")) <= MAX_DEADLINE);
        assert!(within(Some("1S")) < Duration::from_secs(1), "the answer needs time to travel");
        assert!(within(Some("1S")) > Duration::from_millis(800));
    }

    #[test]
    fn an_actor_is_bounded_and_printable() {
        let actor = |value: &[u8]| {
            let mut request = Request::new(());
            let value = tonic::metadata::MetadataValue::try_from(value).unwrap();
            request.metadata_mut().insert(ACTOR_KEY, value);
            Call::of(&request, DEFAULT_DEADLINE).map(|call| call.actor)
        };
        assert_eq!(actor(b"alice@example.com").unwrap(), Actor::Client("alice@example.com".into()));
        assert!(actor(&[b'a'; 129]).is_err());
        assert!(actor(b"").is_err());
        assert!(actor("ü".as_bytes()).is_err());
        let unnamed = Call::of(&Request::new(()), DEFAULT_DEADLINE).unwrap();
        assert_eq!(unnamed.actor, Actor::Client("unknown".into()));
    }
}
