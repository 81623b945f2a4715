//! Prometheus' text form (version 0.0.4): `vmm_block_bytes_in_total{id="rootfs"} 512`. Pure.
//!
//! Source: prometheus.io, "Exposition formats". Totals since the VM began; sums over members are left to who reads.

use std::fmt::Write;
use std::time::Duration;

use devices::tally::{RANGES, Times, Value};

use super::Source;

/// One metric of all members of a group.
struct Family {
    name: String,
    help: String,
    kind: &'static str,
    lines: String,
}

/// All that the sources have counted. Those of a group follow each other.
pub fn text<'a>(sources: impl Iterator<Item = &'a Source>) -> String {
    let mut families: Vec<Family> = Vec::new();
    for source in sources.filter(|source| !source.is_shy || has_counted(source)) {
        let label = source.member.as_deref().map(|member| label(source.group, member)).unwrap_or_default();
        source.tally.each(&mut |metric| {
            let (suffix, kind) = match metric.value {
                Value::Span(_) => return, // a histogram beside it says more
                Value::Counter(_) => ("_total", "counter"),
                Value::Gauge(_) => ("", "gauge"),
                Value::Times(_) => ("_seconds", "histogram"),
            };
            let name = format!("vmm_{}_{}{suffix}", source.group, metric.name);
            let place = families.iter().position(|family| family.name == name).unwrap_or_else(|| {
                families.push(Family { name: name.clone(), help: metric.help.into(), kind, lines: String::new() });
                families.len() - 1
            });
            let lines = &mut families[place].lines;
            let _ = match metric.value {
                Value::Counter(value) | Value::Gauge(value) => writeln!(lines, "{name}{} {value}", in_braces(&label)),
                Value::Times(times) => histogram(lines, &name, &label, times),
                Value::Span(_) => Ok(()),
            };
        });
    }
    let mut text = String::new();
    for Family { name, help, kind, lines } in families {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}");
    }
    text
}

fn has_counted(source: &Source) -> bool {
    let mut has = false;
    source.tally.each(&mut |metric| {
        has |= match metric.value {
            Value::Counter(count) => count > 0,
            Value::Gauge(_) => true,
            Value::Times(times) => times.ranges().iter().any(|count| *count > 0),
            Value::Span(span) => !span.get().iter().all(Duration::is_zero),
        }
    });
    has
}

/// `id="rootfs"`; an endpoint is a method and a path.
fn label(group: &str, member: &str) -> String {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    match member.split_once(' ').filter(|_| group == "api") {
        Some((method, path)) => format!("method=\"{}\",path=\"{}\"", escaped(method), escaped(path)),
        None => format!("id=\"{}\"", escaped(member)),
    }
}

fn in_braces(label: &str) -> String {
    if label.is_empty() { String::new() } else { format!("{{{label}}}") }
}

/// Each bucket counts what took at most so long: those before it are in it.
fn histogram(lines: &mut String, name: &str, label: &str, times: &Times) -> std::fmt::Result {
    let comma = if label.is_empty() { "" } else { "," };
    let ranges: [u64; RANGES] = times.ranges();
    let mut sum = 0;
    for (range, count) in ranges.iter().enumerate() {
        sum += count;
        let end = Times::end_of(range).map_or("+Inf".to_owned(), |micros| (micros as f64 / 1e6).to_string());
        writeln!(lines, "{name}_bucket{{{label}{comma}le=\"{end}\"}} {sum}")?;
    }
    let label = in_braces(label);
    writeln!(lines, "{name}_sum{label} {}\n{name}_count{label} {sum}", times.sum().as_secs_f64())
}
