//! How people write amounts, times and pairs on the command line and in settings files.

use std::time::Duration;

/// Thousandths of a CPU, as `500m`, `0.5` or `2`.
pub fn cpu(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not an amount of CPU; write 500m (thousandths), 0.5 or 2 (CPUs)");
    if let Some(millis) = text.strip_suffix('m') {
        return digits(millis).ok_or_else(wrong);
    }
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    if part.len() > 3 {
        return Err(format!("`{text}` is finer than a thousandth of a CPU"));
    }
    let part = digits(part).map(|value| value * 10_u64.pow(3 - part.len() as u32)).ok_or_else(wrong)?;
    let whole = digits(whole).and_then(|whole| whole.checked_mul(1000)).ok_or_else(wrong)?;
    whole.checked_add(part).ok_or_else(wrong)
}

/// Bytes, as `64MiB`, `64Mi`, `64MB`, `64M` or `67108864`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("`{text}` is not an amount of memory; write 64MiB, 1GiB, 500MB or a number of bytes");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "k" | "K" | "kB" | "KB" => 1000,
        "M" | "MB" => 1000_u64.pow(2),
        "G" | "GB" => 1000_u64.pow(3),
        "T" | "TB" => 1000_u64.pow(4),
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        "Ti" | "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    digits(number).and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

/// A duration, as `10m`, `1h 30m` or `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("`{text}` is not a duration, such as 30s, 10m or 1h 30m: {error}"))
}

/// `KEY=VALUE`; the value may be empty and may contain `=`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not KEY=VALUE")),
    }
}

/// A TCP port other than 0.
pub fn port(text: &str) -> Result<i32, String> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port.into()),
        _ => Err(format!("`{text}` is not a port, 1 to 65535")),
    }
}

/// The bounds of a random time, `150-300`, in milliseconds.
pub fn range_millis(text: &str) -> Result<(Duration, Duration), String> {
    let bounds = text.split_once('-').and_then(|(low, high)| Some((digits(low)?, digits(high)?)));
    match bounds {
        Some((low, high)) if 0 < low && low < high => {
            Ok((Duration::from_millis(low), Duration::from_millis(high)))
        }
        _ => Err(format!("`{text}` is not a range of milliseconds, LOW-HIGH, such as 150-300")),
    }
}

/// A share, 0 to 1.
pub fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("`{text}` is not a share, 0 to 1")),
    }
}

/// A whole number of nothing but digits: `parse` would take a sign.
fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_in_thousandths_and_in_cpus() {
        for (text, millis) in
            [("500m", 500), ("0.5", 500), ("2", 2000), ("1.25", 1250), ("0.001", 1), ("0", 0)]
        {
            assert_eq!(cpu(text), Ok(millis), "{text}");
        }
        for text in ["", "m", "-1", "+1", "1.2345", "1.", ".5", "one", "1e3", "0.-1", "18446744073709551615"]
        {
            assert!(cpu(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_in_binary_and_decimal_units() {
        for (text, value) in [
            ("0", 0),
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("64Mi", 64 << 20),
            ("1GiB", 1 << 30),
            ("1G", 1_000_000_000),
            ("5 kB", 5000),
        ] {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GiB", "1PB", "64mib", "99999999TiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_pairs_ports_and_ranges() {
        assert_eq!(duration("1h 30m"), Ok(Duration::from_mins(90)));
        assert!(duration("10").is_err(), "a number without a unit says nothing");
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("=a").is_err() && pair("a").is_err());
        assert_eq!(port("8080"), Ok(8080));
        assert!(port("0").is_err() && port("65536").is_err() && port("http").is_err());
        assert_eq!(range_millis("150-300"), Ok((Duration::from_millis(150), Duration::from_millis(300))));
        assert!(
            range_millis("300-150").is_err() && range_millis("0-5").is_err() && range_millis("300").is_err()
        );
        assert_eq!(share("0.25"), Ok(0.25));
        assert!(share("1.1").is_err() && share("NaN").is_err());
    }
}
