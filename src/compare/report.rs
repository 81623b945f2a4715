//! What came of it: rows of numbers with their ratios, rows of facts, and JSON with every sample.

use serde_json::{Map, Value, json};
use subject::{CALLS, CHILDREN, Facts};

use crate::measure::{Column, Measured, Metric};
use crate::statistics::{Verdict, median, quantile};
use crate::world::World;

/// The format of the JSON.
pub const FORMAT: u32 = 1;

/// What a row shows of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// The median.
    Middle,
    /// The quantile by nearest rank.
    P99,
}

impl Shown {
    /// The number.
    fn of(self, samples: &[f64]) -> Option<f64> {
        match self {
            Self::Middle => median(samples),
            Self::P99 => quantile(samples, 0.99),
        }
    }
}

/// A row of numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What they are.
    pub title: String,
    /// By column: the number as text, and what it is beside the first column's.
    pub cells: Vec<Cell>,
    /// The A/A test: the factor between the first column and itself.
    pub noise: Option<f64>,
}

/// One number.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// With its unit; `-` where there is none.
    pub number: String,
    /// `×2.5`, `≈` for no more than noise, `?` where the noise is not known; nothing in the first column.
    pub ratio: String,
}

const ROWS: [(&str, Metric, Shown); 12] = [
    ("start to first output, p50", Metric::StartMs, Shown::Middle),
    ("start to first output, p99", Metric::StartMs, Shown::P99),
    ("start to exit, p50", Metric::ExitMs, Shown::Middle),
    ("CPU loop", Metric::CpuMs, Shown::Middle),
    ("getpid", Metric::GetpidMs, Shown::Middle),
    ("fork+exec", Metric::ForkExecMs, Shown::Middle),
    ("write 8 MiB (to memory)", Metric::WriteMs, Shown::Middle),
    ("read 8 MiB of the image", Metric::ReadMs, Shown::Middle),
    ("memory of an instance", Metric::MemoryKib, Shown::Middle),
    ("memory that a second adds", Metric::SecondKib, Shown::Middle),
    ("files of an instance", Metric::FilesKib, Shown::Middle),
    ("files that all share", Metric::FilesKib, Shown::Middle), // the last row is from Column::files
];

/// What is done how often, with the title before it.
pub fn counted(metric: Metric, title: &str, percent: u64) -> String {
    match metric {
        Metric::GetpidMs => format!("{title}, {} calls", CALLS * percent),
        Metric::ForkExecMs => format!("{title}, {} times", CHILDREN * percent),
        _ => title.to_owned(),
    }
}

/// A number of milliseconds or KiB, for people.
pub fn text(metric: Metric, value: f64) -> String {
    let (value, unit) = match metric {
        Metric::MemoryKib | Metric::SecondKib | Metric::FilesKib if value >= 1024.0 => (value / 1024.0, "MiB"),
        Metric::MemoryKib | Metric::SecondKib | Metric::FilesKib => (value, "KiB"),
        _ if value >= 10_000.0 => (value / 1e3, "s"),
        _ => (value, "ms"),
    };
    let digits = if value >= 100.0 || value == 0.0 { 0 } else { 1 + usize::from(value < 10.0) };
    format!("{value:.digits$} {unit}")
}

/// What was done, in one line after the image's name.
pub fn done(measured: &Measured) -> String {
    let part = if measured.percent == 100 { String::new() } else { format!(", {} % of the work", measured.percent) };
    format!("{}; {} rounds, in turn{part}", measured.command.join(" "), measured.runs)
}

/// The columns' heads.
pub fn heads(measured: &Measured) -> Vec<String> {
    let head = |column: &Column| match column.again {
        true => format!("{} again", column.world.name()),
        false => column.world.name().to_owned(),
    };
    measured.columns.iter().map(head).collect()
}

/// All rows of numbers.
pub fn rows(measured: &Measured) -> Vec<Row> {
    let (last, others) = (ROWS.len() - 1, ROWS.iter().take(ROWS.len() - 1));
    let mut rows: Vec<Row> = others.map(|(title, metric, shown)| row(measured, title, *metric, *shown)).collect();
    let shared = |column: &Column| column.files.iter().map(|(_, bytes)| *bytes).sum::<u64>() as f64 / 1024.0;
    let base = measured.columns.first().map_or(0.0, shared);
    let cell = |(place, column): (usize, &Column)| {
        let ratio = if place > 0 && base > 0.0 { times(shared(column) / base) } else { String::new() };
        Cell { number: text(Metric::FilesKib, shared(column)), ratio }
    };
    let cells = measured.columns.iter().enumerate().map(cell).collect();
    rows.push(Row { title: ROWS.get(last).map_or("", |row| row.0).to_owned(), cells, noise: None });
    rows
}

fn row(measured: &Measured, title: &str, metric: Metric, shown: Shown) -> Row {
    let of = |place: usize| measured.columns.get(place).map_or(&[][..], |column| column.of(metric));
    let cell = |place: usize| {
        let samples = of(place);
        let value = shown.of(samples);
        let verdict = Verdict::of(of(0), of(1), samples);
        let ratio = match (value, shown.of(of(0)), verdict) {
            (None, ..) => String::new(),
            _ if place == 0 => String::new(),
            (_, Some(0.0), _) => String::new(), // nothing is a multiple of nothing
            (_, _, None) => "?".to_owned(),
            (_, _, Some(verdict)) if !verdict.differs() => "≈".to_owned(),
            (Some(value), Some(base), _) if base > 0.0 => times(value / base),
            _ => "?".to_owned(),
        };
        Cell { number: value.map_or_else(|| "-".to_owned(), |value| text(metric, value)), ratio }
    };
    let noise = Verdict::of(of(0), of(0), of(1))
        .map(|verdict| verdict.noise.max(crate::statistics::factor(verdict.ratio, 1.0)));
    let title = counted(metric, title, measured.percent);
    Row { title, cells: (0..measured.columns.len()).map(cell).collect(), noise }
}

fn times(ratio: f64) -> String {
    let digits = if ratio >= 100.0 { 0 } else { 1 + usize::from(ratio < 10.0) };
    format!("×{ratio:.digits$}")
}

/// Rows of facts, each with its title: what is the host's is named so.
pub fn facts(measured: &Measured) -> Vec<Vec<String>> {
    let host = &measured.host;
    let columns: Vec<&Column> = measured.columns.iter().filter(|column| !column.again).collect();
    let all = |title: &str, fact: &dyn Fn(&Facts) -> String| {
        let cells = columns.iter().map(|column| fact(&column.facts));
        std::iter::once(title.to_owned()).chain(cells).collect::<Vec<_>>()
    };
    let limit =
        |name: &'static str| move |facts: &Facts| facts.limits.get(name).cloned().unwrap_or_else(|| "-".to_owned());
    vec![
        all("kernel", &|facts| facts.kernel.clone()),
        all("boot id", &|facts| match facts.boot_id == host.boot_id {
            true => "the host's".to_owned(),
            false => facts.boot_id.chars().take(8).collect(),
        }),
        all("process number", &|facts| facts.pid.to_string()),
        all("processes that it sees", &|facts| facts.processes.to_string()),
        all("host name", &|facts| facts.hostname.clone()),
        all("namespaces of its own", &|facts| own_namespaces(facts, host)),
        all("file systems mounted", &|facts| facts.mounts.to_string()),
        all("control group", &|facts| if facts.cgroup.is_empty() { "-".to_owned() } else { facts.cgroup.clone() }),
        all("memory.max", &limit("memory.max")),
        all("cpu.max", &limit("cpu.max")),
        all("pids.max", &limit("pids.max")),
        all("memory of the system", &|facts| format!("{} MiB", facts.memory_kib / 1024)),
    ]
}

/// Namespaces that are not the host's. Another kernel has all of its own, whatever their numbers.
pub fn own_namespaces(facts: &Facts, host: &Facts) -> String {
    if facts.boot_id != host.boot_id {
        return "all: another kernel".to_owned();
    }
    let own = facts.namespaces.iter().filter(|(kind, name)| host.namespaces.get(*kind) != Some(name));
    let own: Vec<&str> = own.map(|(kind, _)| kind.as_str()).collect();
    if own.is_empty() { "none".to_owned() } else { own.join(" ") }
}

/// One document with everything.
pub fn json(measured: &Measured) -> Value {
    let worlds: Vec<Value> = measured
        .columns
        .iter()
        .map(|column| {
            let samples: Map<String, Value> =
                column.samples.iter().map(|(metric, samples)| (key(*metric), json!(samples))).collect();
            let files: Vec<Value> =
                column.files.iter().map(|(path, bytes)| json!({"path": path, "bytes": bytes})).collect();
            json!({
                "world": column.world.name(), "again": column.again, "samples": samples, "facts": column.facts,
                "shared_files": files,
            })
        })
        .collect();
    let missing: Map<String, Value> =
        measured.missing.iter().map(|(world, why)| (world.name().to_owned(), json!(why))).collect();
    json!({
        "format": FORMAT, "image": measured.image, "command": measured.command, "runs": measured.runs, "percent": measured.percent,
        "host_facts": measured.host, "worlds": worlds, "missing": missing, "summary": summary(measured),
        "environment": measured.environment,
    })
}

/// Medians, and what may be claimed of them.
fn summary(measured: &Measured) -> Value {
    let of = |place: usize, metric: Metric| measured.columns.get(place).map_or(&[][..], |column| column.of(metric));
    let cell = |metric: Metric, place: usize, column: &Column| {
        let verdict = Verdict::of(of(0, metric), of(1, metric), column.of(metric));
        json!({
            "world": column.world.name(), "again": column.again,
            "p50": median(column.of(metric)), "p99": quantile(column.of(metric), 0.99),
            "ratio": verdict.map(|verdict| verdict.ratio), "noise": verdict.map(|verdict| verdict.noise),
            "differs": verdict.filter(|_| place > 0).map(|verdict| verdict.differs()),
        })
    };
    let metric = |metric: Metric| {
        let cells = measured.columns.iter().enumerate().map(|(place, column)| cell(metric, place, column));
        (key(metric), Value::Array(cells.collect()))
    };
    Metric::ALL.map(metric).into_iter().collect::<Map<String, Value>>().into()
}

fn key(metric: Metric) -> String {
    json!(metric).as_str().unwrap_or_default().to_owned()
}

/// The worlds that were asked for and not measured.
pub fn missing(measured: &Measured) -> Vec<String> {
    let line =
        |(world, why): (&World, &String)| format!("{} ({}) was not measured: {why}", world.name(), world.means());
    measured.missing.iter().map(line).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn column(world: World, again: bool, start: &[f64], boot_id: &str) -> Column {
        let samples = [
            (Metric::StartMs, start.to_vec()),
            (Metric::CpuMs, vec![100.0, 101.0, 100.0, 101.0]),
            (Metric::GetpidMs, vec![100.0, 101.0, 100.0, 101.0]),
            (Metric::ForkExecMs, vec![100.0, 101.0, 100.0, 101.0]),
            (Metric::SecondKib, vec![2048.0; 4]),
            (Metric::FilesKib, vec![4.0; 4]),
        ];
        let pid = if world == World::Process || world == World::Vm { 77 } else { 1 };
        let facts = Facts { kernel: format!("k-{boot_id}"), boot_id: boot_id.to_owned(), pid, ..Facts::default() };
        Column { world, again, samples: samples.into(), facts, files: vec![("/image".into(), 8 << 20)] }
    }

    /// Four worlds, four rounds.
    pub fn measured() -> Measured {
        Measured {
            image: "<b>image\u{1b}".to_owned(),
            command: vec!["sh".to_owned(), "-c".to_owned(), "a && b".to_owned()],
            runs: 4,
            percent: 100,
            columns: vec![
                column(World::Process, false, &[1.0, 1.1, 1.0, 1.1], "host"),
                column(World::Process, true, &[1.1, 1.0, 1.1, 1.0], "host"),
                column(World::Container, false, &[1.0, 1.1, 1.1, 1.0], "host"),
                column(World::Vm, false, &[90.0, 91.0, 92.0, 93.0], "guest"),
                column(World::VmContainer, false, &[190.0, 191.0, 192.0, 193.0], "inner"),
            ],
            missing: BTreeMap::new(),
            host: Facts { boot_id: "host".to_owned(), kernel: "k-host".to_owned(), ..Facts::default() },
            environment: json!({"host": {"cpu": "<fast>"}}),
        }
    }

    #[test]
    fn ratios_stand_where_they_are_more_than_noise() {
        let measured = measured();
        let rows = rows(&measured);
        assert_eq!(rows.len(), ROWS.len());
        let ratios: Vec<&str> = rows[0].cells.iter().map(|cell| cell.ratio.as_str()).collect();
        assert_eq!(ratios, ["", "≈", "≈", "×87.1", "×182"]);
        assert_eq!(rows[0].cells[3].number, "91.5 ms", "as the claims have it");
        assert_eq!(rows[1].cells[3].number, "93.0 ms", "p99");
        assert!(rows[0].noise.is_some_and(|noise| (1.0..1.11).contains(&noise)), "{:?}", rows[0].noise);
        assert_eq!(rows[2].cells[0].number, "-", "no sample of this metric");
        assert_eq!(rows[11].cells[0].number, "8.00 MiB");
        assert_eq!((&*rows[4].title, &*rows[5].title), ("getpid, 1000000 calls", "fork+exec, 1000 times"));
    }

    #[test]
    fn a_missing_world_is_named() {
        let mut measured = measured();
        measured.columns.retain(|column| column.world != World::Container);
        measured.missing.insert(World::Container, "no runc".to_owned());
        let lines = missing(&measured);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("container (") && lines[0].ends_with("was not measured: no runc"), "{lines:?}");
        assert_eq!(json(&measured)["missing"], json!({"container": "no runc"}));
    }

    #[test]
    fn the_document_has_every_sample() {
        let document = json(&measured());
        assert_eq!(document["worlds"].as_array().unwrap().len(), 5);
        assert_eq!(document["worlds"][3]["samples"]["start_ms"], json!([90.0, 91.0, 92.0, 93.0]));
        assert_eq!(document["worlds"][1]["again"], true);
        assert_eq!(document["summary"]["start_ms"][3]["p50"], 91.5);
        assert_eq!(document["summary"]["start_ms"][3]["differs"], true);
        assert_eq!(document["summary"]["start_ms"][2]["differs"], false);
        assert_eq!(document["summary"]["read_ms"][2]["p50"], Value::Null);
    }

    #[test]
    fn numbers_have_units_and_three_digits() {
        for (metric, value, wanted) in [
            (Metric::StartMs, 1.234, "1.23 ms"),
            (Metric::StartMs, 12.34, "12.3 ms"),
            (Metric::StartMs, 1234.0, "1234 ms"),
            (Metric::StartMs, 12_340.0, "12.3 s"),
            (Metric::FilesKib, 0.0, "0 KiB"),
            (Metric::MemoryKib, 2048.0, "2.00 MiB"),
        ] {
            assert_eq!(text(metric, value), wanted);
        }
    }

    #[test]
    fn own_namespaces_are_those_that_are_not_the_hosts() {
        let facts = |boot_id: &str, pid: &str| Facts {
            boot_id: boot_id.to_owned(),
            namespaces: [("pid".to_owned(), pid.to_owned()), ("net".to_owned(), "net:[1]".to_owned())].into(),
            ..Facts::default()
        };
        let host = facts("a", "pid:[1]");
        assert_eq!(own_namespaces(&host, &host), "none");
        assert_eq!(own_namespaces(&facts("a", "pid:[2]"), &host), "pid");
        assert_eq!(own_namespaces(&facts("b", "pid:[1]"), &host), "all: another kernel");
    }
}
