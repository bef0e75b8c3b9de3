//! Values as people read them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use sandkeeper_client::v1;

/// What stands for "nothing" in a table.
pub const NONE: &str = "-";

/// This machine's time, unix nanoseconds. Only for showing ages and for `--ttl` of an update.
pub fn now_nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// A duration in at most two units, as `kubectl` writes ages: `850ms`, `12s`, `3m12s`, `2h5m`, `3d4h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |big: u64, big_unit: char, small: u64, small_unit: char| match small {
        0 => format!("{big}{big_unit}"),
        small => format!("{big}{big_unit}{small}{small_unit}"),
    };
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => two(seconds / 60, 'm', seconds % 60, 's'),
        3600..86_400 => two(seconds / 3600, 'h', seconds / 60 % 60, 'm'),
        _ => two(seconds / 86_400, 'd', seconds / 3600 % 24, 'h'),
    }
}

/// A short time with the precision that a stopwatch has: `850 µs`, `12.3 ms`, `1.24 s`.
pub fn stopwatch(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        seconds if seconds < 0.001 => format!("{:.0} µs", seconds * 1e6),
        seconds if seconds < 0.1 => format!("{:.1} ms", seconds * 1e3),
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}

/// How long ago a moment (unix nanoseconds; 0: never) was.
pub fn age(nanos: i64, now: i64) -> String {
    if nanos == 0 {
        return NONE.to_owned();
    }
    let seconds = now.saturating_sub(nanos).max(0) / 1_000_000_000;
    duration_or_zero(seconds)
}

/// How long it is until a moment (unix nanoseconds; 0: never).
pub fn until(nanos: i64, now: i64) -> String {
    match nanos {
        0 => "never".to_owned(),
        nanos if nanos <= now => "over".to_owned(),
        nanos => format!("in {}", duration_or_zero((nanos - now) / 1_000_000_000)),
    }
}

fn duration_or_zero(seconds: i64) -> String {
    if seconds == 0 { "0s".to_owned() } else { duration(Duration::from_secs(seconds.unsigned_abs())) }
}

/// A moment (unix nanoseconds), UTC, to the millisecond.
pub fn moment(nanos: i64) -> String {
    Timestamp::from_nanosecond(i128::from(nanos))
        .map_or_else(|_| format!("{nanos}ns"), |time| time.strftime("%Y-%m-%d %H:%M:%S%.3fZ").to_string())
}

/// How far a clock is ahead, or behind: `+43.0ms`, `-3m12s`.
pub fn skew(seconds: f64) -> String {
    // Beyond the range it is the largest that there is.
    let ahead = delta((seconds.abs() * 1e9) as i64);
    if seconds < 0.0 { ahead.replacen('+', "-", 1) } else { ahead }
}

/// The time between two events, in the unit in which it is at least 1: `+12µs`, `+43.0ms`, `+1.250s`, `+3m12s`.
pub fn delta(nanos: i64) -> String {
    let nanos = nanos.max(0);
    match nanos {
        // Also those that share an entry, which are 1 ns apart.
        0..1_000_000 => format!("+{}µs", nanos / 1000),
        1_000_000..1_000_000_000 => format!("+{:.1}ms", nanos as f64 / 1e6),
        1_000_000_000..60_000_000_000 => format!("+{:.3}s", nanos as f64 / 1e9),
        _ => format!("+{}", duration_or_zero(nanos / 1_000_000_000)),
    }
}

/// Thousandths of a CPU as CPUs: `0.5`, `2`.
pub fn cpu(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Bytes in the largest binary unit that leaves a number of at least 1: `64MiB`, `1.5GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = UNITS.len().min((63 - bytes.max(1).leading_zeros() as usize) / 10 + 1) - 1;
    let value = bytes as f64 / (1_u64 << (10 * unit)) as f64;
    if value.fract() == 0.0 {
        format!("{value:.0}{}", UNITS[unit])
    } else {
        format!("{value:.1}{}", UNITS[unit])
    }
}

/// The phase without the prefix that the wire gives it.
pub fn phase(sandbox: &v1::Sandbox) -> &'static str {
    sandbox.phase().as_str_name().trim_start_matches("PHASE_")
}

/// The kind of an event as words: `sandbox created`.
pub fn event_type(event: &v1::Event) -> String {
    event.r#type().as_str_name().trim_start_matches("EVENT_TYPE_").to_lowercase().replace('_', " ")
}

/// `-` for an empty text.
pub fn or_none(text: &str) -> String {
    if text.is_empty() { NONE.to_owned() } else { text.to_owned() }
}

/// `-` for 0.
pub fn number_or_none(number: u64) -> String {
    if number == 0 { NONE.to_owned() } else { number.to_string() }
}

/// `a=1,b=2`, or `-`.
pub fn pairs(pairs: &BTreeMap<String, String>) -> String {
    let all: Vec<_> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
    or_none(&all.join(","))
}

/// The first characters of a digest: enough to compare by eye.
pub fn short(digest: &str) -> String {
    or_none(&digest.chars().take(16).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_ages() {
        let texts =
            [0, 12, 60, 192, 7500, 7200, 273_600].map(|seconds| duration(Duration::from_secs(seconds)));
        assert_eq!(texts, ["0ms", "12s", "1m", "3m12s", "2h5m", "2h", "3d4h"]);
        assert_eq!(age(0, 5), "-");
        assert_eq!(age(2_000_000_000, 1_000_000_000), "0s", "clocks may differ");
        assert_eq!(age(1, 90_000_000_001), "1m30s");
        assert_eq!((until(0, 5).as_str(), until(4, 5).as_str()), ("never", "over"));
        assert_eq!(until(61_000_000_000, 0), "in 1m1s");
        let deltas = [1, 400_000, 43_000_000, 237_000_000, 1_250_000_000, 192_000_000_000].map(delta);
        assert_eq!(deltas, ["+0µs", "+400µs", "+43.0ms", "+237.0ms", "+1.250s", "+3m12s"]);
    }

    #[test]
    fn amounts() {
        assert_eq!([0, 500, 2000, 1250].map(cpu), ["0", "0.5", "2", "1.25"]);
        assert_eq!(
            [0, 1, 1023, 64 << 20, 3 << 29, 1 << 60].map(bytes),
            ["0B", "1B", "1023B", "64MiB", "1.5GiB", "1048576TiB"]
        );
    }

    #[test]
    fn moments_are_utc() {
        assert_eq!(moment(1_700_000_000_123_456_789), "2023-11-14 22:13:20.123Z");
    }
}
