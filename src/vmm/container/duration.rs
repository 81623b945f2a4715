//! Times as Docker's flags have them, which are Go's (`time.ParseDuration`): `1.5s`, `1m30s`, `500ms`, `2h`.

use std::time::Duration;

use ::container::size::times;

/// What a text means; none is negative.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text} is no time; 500ms, 1.5s, 1m30s and 2h are");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut nanos = (!rest.is_empty()).then_some(0_u64);
    while !rest.is_empty() {
        let in_number = |sign: char| sign.is_ascii_digit() || sign == '.';
        let (number, after) = rest.split_at(rest.find(|sign| !in_number(sign)).ok_or_else(wrong)?);
        let (unit, next) = after.split_at(after.find(in_number).unwrap_or(after.len()));
        let part = part(number, unit).ok_or_else(wrong)?;
        nanos = nanos.and_then(|nanos| nanos.checked_add(part));
        rest = next;
    }
    nanos.map(Duration::from_nanos).ok_or_else(wrong)
}

/// Nanoseconds of one number with its unit; nothing where it is none, or too much.
fn part(number: &str, unit: &str) -> Option<u64> {
    let unit: u64 = match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    times(number, unit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_s() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("1.5s", 1_500_000_000),
            ("1m30s", 90_000_000_000),
            ("500ms", 500_000_000),
            ("2h", 7_200_000_000_000),
            ("2h0.5m", 7_230_000_000_000),
            ("+5s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("30us", 30_000),
            ("30\u{b5}s1ns", 30_001),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        for wrong in ["", "+", "5", "1.5", "s", ".s", "5x", "-1s", "1s2", "1 s", "1.2.3s", "1d", "6000000h"] {
            assert!(duration(wrong).unwrap_err().contains("is no time; 500ms, 1.5s"), "{wrong}");
        }
    }
}
