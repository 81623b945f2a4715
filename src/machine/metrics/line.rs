//! A line of metrics in Firecracker's shape: `{"utc_timestamp_ms": ..., "block": {...}, "block_rootfs": {...}, ...}`. Counters
//! are since the line before, gauges are as they are now. Pure but for the clock.

use devices::tally::{RANGES, Span, Times, Value as Measured, micros};
use serde_json::{Map, Value, json};

use super::{Source, firecracker};
use crate::journal::utc_ms;

/// What the last line said, so that the next one tells what has changed.
#[derive(Debug, Default)]
pub struct Line {
    /// Of each source, in order, what it had counted.
    seen: Vec<Vec<u64>>,
}

impl Line {
    /// Only the first sources are still there.
    pub fn forget(&mut self, keep: usize) {
        self.seen.truncate(keep);
    }

    /// The line of now, with `head` in it; its last byte is a line feed.
    pub fn next<'a>(&mut self, head: Map<String, Value>, sources: impl Iterator<Item = &'a Source>) -> Vec<u8> {
        let mut line = head;
        line.insert("utc_timestamp_ms".into(), utc_ms().into());
        let mut interrupts = 0;
        for (index, source) in sources.enumerate() {
            if self.seen.len() <= index {
                self.seen.push(Vec::new());
            }
            let object = object(source, &mut self.seen[index]);
            interrupts += object.get("interrupts").and_then(Value::as_u64).unwrap_or(0);
            put(&mut line, source, object);
        }
        put_in(&mut line, "interrupts", "triggers", &interrupts.into());
        firecracker::complete(&mut line);
        let mut line = Value::from(line).to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

/// What a source has counted since `seen`, which becomes what it has counted by now.
fn object(source: &Source, seen: &mut Vec<u64>) -> Map<String, Value> {
    let mut object = Map::new();
    let mut place = 0;
    let mut since = |total: u64| {
        if seen.len() == place {
            seen.push(0);
        }
        let before = std::mem::replace(&mut seen[place], total);
        place += 1;
        total.wrapping_sub(before)
    };
    source.tally.each(&mut |metric| {
        let value = match metric.value {
            Measured::Counter(total) => since(total).into(),
            Measured::Gauge(now) => now.into(),
            Measured::Times(times) => spread(times, &mut since),
            Measured::Span(span) => ends(span, &mut since),
        };
        for name in firecracker::names(source.group, metric.name) {
            object.insert(name.to_owned(), value.clone());
        }
    });
    object
}

/// `{"count": 3, "sum_us": 70, "le_us": {"16": 1, "32": 2}}`: how many took at most so long, range by range.
fn spread(times: &Times, since: &mut impl FnMut(u64) -> u64) -> Value {
    let ranges: [u64; RANGES] = times.ranges().map(&mut *since);
    let sum = since(micros(times.sum()));
    let named = ranges.iter().enumerate().filter(|(_, count)| **count > 0).map(|(range, count)| {
        let end = Times::end_of(range).map_or("inf".to_owned(), |end| end.to_string());
        (end, Value::from(*count))
    });
    let named: Map<_, _> = named.collect();
    json!({ "count": ranges.iter().sum::<u64>(), "sum_us": sum, "le_us": named })
}

/// `{"min_us": 3, "max_us": 70, "sum_us": 73}`: the ends since the beginning, the sum since the last line.
fn ends(span: &Span, since: &mut impl FnMut(u64) -> u64) -> Value {
    let [shortest, longest, sum] = span.get().map(micros);
    json!({ "min_us": shortest, "max_us": longest, "sum_us": since(sum) })
}

/// Puts what a source has counted where it belongs: a member under its own name, and into its group's sum.
fn put(line: &mut Map<String, Value>, source: &Source, object: Map<String, Value>) {
    let Some(member) = &source.member else {
        line.insert(source.group.to_owned(), object.into());
        return;
    };
    if source.group == "api" {
        return put_endpoint(line, member, &object);
    }
    for (name, value) in &object {
        put_in(line, source.group, name, value);
    }
    line.insert(format!("{}_{member}", source.group), object.into());
}

/// `PUT /drives/{drive_id}` is `drive_count` and `drive_fails` of `put_api_requests`.
fn put_endpoint(line: &mut Map<String, Value>, endpoint: &str, object: &Map<String, Value>) {
    let (method, path) = endpoint.split_once(" /").unwrap_or((endpoint, ""));
    let name = firecracker::endpoint(path);
    for (count, suffix) in [("requests", "count"), ("failed", "fails")] {
        let value = object.get(count).cloned().unwrap_or_default();
        put_in(line, &format!("{}_api_requests", method.to_lowercase()), &format!("{name}_{suffix}"), &value);
    }
}

/// Adds to what a group has: numbers are added up, of spans the ends are those of all.
fn put_in(line: &mut Map<String, Value>, group: &str, name: &str, value: &Value) {
    let group = line.entry(group).or_insert_with(|| Map::new().into());
    let Some(group) = group.as_object_mut() else { return };
    let before = group.get(name).cloned().unwrap_or_default();
    let number = |value: &Value, key: &str| value[key].as_u64().unwrap_or(0);
    let sum = match value.as_u64() {
        Some(value) => before.as_u64().unwrap_or(0).wrapping_add(value).into(),
        None if value.get("max_us").is_some() => {
            let least = [&before, value].map(|it| number(it, "min_us")).into_iter().filter(|min| *min > 0).min();
            let longest = number(&before, "max_us").max(number(value, "max_us"));
            let sum = number(&before, "sum_us").wrapping_add(number(value, "sum_us"));
            json!({ "min_us": least.unwrap_or(0), "max_us": longest, "sum_us": sum })
        }
        None => return, // a spread is that of one
    };
    group.insert(name.to_owned(), sum);
}
