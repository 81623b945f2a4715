//! A line of metrics in Firecracker's shape: `{"utc_timestamp_ms": ..., "block": {...}, "block_rootfs": {...}, ...}`. Counters
//! are since the line before, gauges are as they are now. Pure but for the clock.
//!
//! Source of the names: Firecracker, src/vmm/src/logger/metrics.rs and the metrics.rs of each device.

use devices::tally::{RANGES, Times, Value as Measured, micros};
use serde_json::{Map, Value};

use super::Source;
use crate::journal::utc_ms;

/// What Firecracker calls what is counted here: group, our name, its name.
const NAMES: [(&str, &str, &str); 24] = [
    ("balloon", "bytes_out", "freed_bytes"),
    ("block", "bytes_in", "read_bytes"),
    ("block", "bytes_out", "write_bytes"),
    ("block", "failed", "execute_fails"),
    ("block", "flushes", "flush_count"),
    ("block", "kicks", "queue_event_count"),
    ("block", "moves_in", "read_count"),
    ("block", "moves_out", "write_count"),
    ("block", "refused", "invalid_reqs_count"),
    ("entropy", "bytes_in", "entropy_bytes"),
    ("entropy", "failed", "entropy_event_fails"),
    ("entropy", "requests", "entropy_event_count"),
    ("net", "bytes_in", "rx_bytes_count"),
    ("net", "bytes_out", "tx_bytes_count"),
    ("net", "frames_waited", "no_rx_avail_buffer"),
    ("net", "moves_in", "rx_packets_count"),
    ("net", "moves_out", "tx_packets_count"),
    ("pmem", "kicks", "queue_event_count"),
    ("uart", "bytes_in", "read_count"),
    ("uart", "bytes_lost", "missed_write_count"),
    ("uart", "bytes_out", "write_count"),
    ("vsock", "bytes_in", "rx_bytes_count"),
    ("vsock", "bytes_out", "tx_bytes_count"),
    ("vsock", "moves_in", "rx_packets_count"),
];

/// What Firecracker calls the endpoints in its counts of requests, by the first part of their paths.
const ENDPOINTS: [(&str, &str); 6] = [
    ("", "instance_info"),
    ("drives", "drive"),
    ("machine-config", "machine_cfg"),
    ("network-interfaces", "network"),
    ("version", "vmm_version"),
    ("vm", "vm"),
];

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
        put_in(&mut line, "interrupts", "triggers", interrupts);
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
        let known = NAMES.iter().find(|(group, ours, _)| *group == source.group && *ours == metric.name);
        let name = known.map_or(metric.name, |(_, _, theirs)| theirs);
        let value = match metric.value {
            Measured::Counter(total) => since(total).into(),
            Measured::Gauge(now) => now.into(),
            Measured::Times(times) => spread(times, &mut since),
        };
        object.insert(name.to_owned(), value);
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
    serde_json::json!({ "count": ranges.iter().sum::<u64>(), "sum_us": sum, "le_us": named })
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
        if let Some(value) = value.as_u64() {
            put_in(line, source.group, name, value);
        }
    }
    line.insert(format!("{}_{member}", source.group), object.into());
}

/// `PUT /drives/{drive_id}` is `drive_count` and `drive_fails` of `put_api_requests`.
fn put_endpoint(line: &mut Map<String, Value>, endpoint: &str, object: &Map<String, Value>) {
    let (method, path) = endpoint.split_once(" /").unwrap_or((endpoint, ""));
    let part = path.split('/').next().unwrap_or_default();
    let known = ENDPOINTS.iter().find(|(ours, _)| *ours == part);
    let name = known.map_or_else(|| part.replace('-', "_"), |(_, theirs)| (*theirs).to_owned());
    for (count, suffix) in [("requests", "count"), ("failed", "fails")] {
        let value = object.get(count).and_then(Value::as_u64).unwrap_or(0);
        put_in(line, &format!("{}_api_requests", method.to_lowercase()), &format!("{name}_{suffix}"), value);
    }
}

fn put_in(line: &mut Map<String, Value>, group: &str, name: &str, value: u64) {
    let group = line.entry(group).or_insert_with(|| Map::new().into());
    if let Some(group) = group.as_object_mut() {
        let sum = group.get(name).and_then(Value::as_u64).unwrap_or(0);
        group.insert(name.to_owned(), sum.wrapping_add(value).into());
    }
}
