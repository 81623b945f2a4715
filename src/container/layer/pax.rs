//! What the tar parser leaves of an entry's header: times before 1970 and parts of seconds, and numbers that have to be
//! right. Sources: POSIX.1-2017, pax, "pax Extended Header"; GNU tar, "Basic Tar Format" (base-256 numbers).

use tar_core::PaxExtensions;
use tar_core::parse::ParsedEntry;

use super::Fault;
use crate::erofs::Time;

/// Where a header has the time of the last change.
const MTIME: std::ops::Range<usize> = 136..148;

/// When an entry changed last.
pub fn modified(entry: &ParsedEntry<'_>) -> Result<Time, Fault> {
    let bad = Fault::Field("time of its last change");
    if let Some(value) = last(entry, b"mtime") {
        return decimal(value).ok_or(bad);
    }
    let field = entry.header.as_bytes().get(MTIME).unwrap_or(&[]);
    if field.first() == Some(&0xff) {
        // A negative number, in two's complement.
        let low = field.last_chunk::<8>().map(|bytes| i64::from_be_bytes(*bytes)).filter(|seconds| *seconds < 0);
        return low.map(|seconds| Time { seconds, nanoseconds: 0 }).ok_or(bad);
    }
    i64::try_from(entry.mtime).map(|seconds| Time { seconds, nanoseconds: 0 }).map_err(|_| bad)
}

/// The owner and the group.
pub fn owner(entry: &ParsedEntry<'_>) -> Result<(u32, u32), Fault> {
    // Parsers differ in what they make of a number that is none: it is refused.
    for (key, what) in [(&b"uid"[..], "owner"), (b"gid", "group"), (b"size", "size")] {
        if last(entry, key)
            .is_some_and(|value| std::str::from_utf8(value).ok().and_then(|v| v.parse::<u64>().ok()).is_none())
        {
            return Err(Fault::Field(what));
        }
    }
    let uid = u32::try_from(entry.uid).map_err(|_| Fault::Field("owner"))?;
    let gid = u32::try_from(entry.gid).map_err(|_| Fault::Field("group"))?;
    Ok((uid, gid))
}

/// The value of an extended header's last record of that name.
fn last<'a>(entry: &ParsedEntry<'a>, key: &[u8]) -> Option<&'a [u8]> {
    let records = PaxExtensions::new(entry.pax?).flatten();
    records.filter(|record| record.key_bytes() == key).last().map(|record| record.value_bytes())
}

/// Seconds with a fraction of any length, which is cut to nanoseconds; both may be below zero.
fn decimal(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u32 =
        fraction.bytes().chain([b'0'; 9]).take(9).fold(0, |all, digit| all * 10 + u32::from(digit - b'0'));
    let seconds: i64 = whole.parse().ok()?;
    if !whole.starts_with('-') || nanoseconds == 0 {
        return Some(Time { seconds, nanoseconds });
    }
    // -1.25 is two seconds before, and three quarters.
    Some(Time { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_down() {
        let time = |seconds, nanoseconds| Some(Time { seconds, nanoseconds });
        assert_eq!(decimal(b"12"), time(12, 0));
        assert_eq!(decimal(b"12.5"), time(12, 500_000_000));
        assert_eq!(decimal(b"12.1234567899"), time(12, 123_456_789));
        assert_eq!(decimal(b"-1.25"), time(-2, 750_000_000));
        assert_eq!(decimal(b"-0.5"), time(-1, 500_000_000));
        assert_eq!(decimal(b"-3"), time(-3, 0));
        for wrong in [&b""[..], b".5", b"1.x", b"1.-5", b"x", b"99999999999999999999", b"\xff"] {
            assert_eq!(decimal(wrong), None, "{}", wrong.escape_ascii());
        }
    }
}
