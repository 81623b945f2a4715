//! `vmm ps`: this user's containers, and the VMs that have a name. What a VM does not tell is asked from the host's kernel.
//!
//! Source: Linux, Documentation/filesystems/proc.rst (stat, statm).

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use api::client;
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::container;
use crate::runtime::{Record, Runtime};
use crate::table;

/// How long a VM may take to say its state. All are asked at the same time.
const PATIENCE: Duration = Duration::from_millis(500);
/// Exit status when the runtime directory can not be read.
const FAILED: u8 = 1;

/// What `vmm ps` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110)]
pub struct PsArgs {
    /// Containers that have ended, too
    #[arg(short, long)]
    pub all: bool,
    /// Print the names of containers only
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// A VM.
#[derive(Debug, Serialize)]
struct Line {
    id: String,
    pid: u32,
    /// As the API has it; "No answer" where it has not, "No API" where there is none.
    state: String,
    uptime_ms: u64,
    cpu_ms: u64,
    /// Of one CPU, on average since the start.
    cpu_percent: f64,
    resident_bytes: u64,
    vcpu_count: Option<u64>,
    mem_size_mib: Option<u64>,
}

/// What the host's kernel knows of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    uptime: Duration,
    cpu: Duration,
    resident: u64,
}

/// Prints the containers and the VMs.
pub fn run(args: &PsArgs) -> ExitCode {
    let containers = match container::lines(args.all) {
        Ok(containers) => containers,
        Err(why) => return failed(&why),
    };
    if args.quiet {
        return print(&containers.iter().map(|line| line.name.clone() + "\n").collect::<String>());
    }
    let vms = Runtime::of_this_user().map_or_else(
        || Ok(Vec::new()),
        |runtime| lines(&runtime).map_err(|error| format!("{}: {error}", runtime.path().display())),
    );
    match vms {
        Ok(vms) => print(&if args.json { json(&containers, &vms) } else { tables(&containers, &vms) }),
        Err(why) => failed(&why),
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("vmm: {why}");
    ExitCode::from(FAILED)
}

fn lines(runtime: &Runtime) -> io::Result<Vec<Line>> {
    let found = runtime.list()?;
    let lines = thread::scope(|scope| {
        let asking: Vec<_> = found
            .into_iter()
            .map(|(id, record)| {
                let socket = runtime.socket(&id);
                scope.spawn(move || line(id, &record, &socket))
            })
            .collect();
        asking.into_iter().filter_map(|line| line.join().ok().flatten()).collect()
    });
    Ok(lines)
}

/// Nothing where the VM has ended meanwhile.
fn line(id: String, record: &Record, socket: &Path) -> Option<Line> {
    let state = state(socket);
    let process = Process::of(record.pid)?;
    let percent = 100.0 * process.cpu.as_secs_f64() / process.uptime.as_secs_f64().max(0.01);
    Some(Line {
        id,
        pid: record.pid,
        state,
        uptime_ms: millis(process.uptime),
        cpu_ms: millis(process.cpu),
        cpu_percent: (percent * 10.0).round() / 10.0,
        resident_bytes: process.resident,
        vcpu_count: record.vcpu_count,
        mem_size_mib: record.mem_size_mib,
    })
}

fn state(socket: &Path) -> String {
    if socket.symlink_metadata().is_err() {
        return "No API".into();
    }
    let answer = client::call_within(PATIENCE, socket, "GET", "/", None);
    let state = answer.ok().and_then(|told| told.get("state").and_then(Value::as_str).map(str::to_owned));
    state.unwrap_or_else(|| "No answer".into())
}

impl Process {
    /// The process with this id.
    fn of(pid: u32) -> Option<Self> {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
        let since_boot = std::fs::read_to_string("/proc/uptime").ok()?;
        Self::from_texts(&read("stat")?, &read("statm")?, &since_boot)
    }

    fn from_texts(stat: &str, statm: &str, since_boot: &str) -> Option<Self> {
        // The name, in parentheses, may hold anything; what follows is numbered from 3 on.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let time = |ticks: u64| Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64);
        let since_boot = Duration::try_from_secs_f64(since_boot.split(' ').next()?.parse().ok()?).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        Some(Self {
            uptime: since_boot.saturating_sub(time(ticks(22)?)),
            cpu: time(ticks(14)?.checked_add(ticks(15)?)?),
            resident: pages.checked_mul(rustix::param::page_size() as u64)?,
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    }
}

/// One list; `kind` says what an entry is.
fn json(containers: &[container::Line], vms: &[Line]) -> String {
    #[derive(Serialize)]
    #[serde(tag = "kind", rename_all = "lowercase")]
    enum Entry<'a> {
        Container(&'a container::Line),
        Vm(&'a Line),
    }
    let all = containers.iter().map(Entry::Container).chain(vms.iter().map(Entry::Vm));
    serde_json::json!(all.collect::<Vec<_>>()).to_string() + "\n"
}

/// Containers, where there are any, and VMs, where there are any or no containers.
fn tables(containers: &[container::Line], vms: &[Line]) -> String {
    match (containers, vms) {
        ([], vms) => table(vms),
        (containers, []) => container::table(containers),
        (containers, vms) => container::table(containers) + "\n" + &table(vms),
    }
}

fn table(lines: &[Line]) -> String {
    let head = ["ID", "PID", "STATE", "UP", "CPU", "CPU%", "RESIDENT", "VCPUS", "MEMORY"].map(str::to_owned).to_vec();
    let rows = lines.iter().map(|line| {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        [
            line.id.clone(),
            line.pid.to_string(),
            line.state.clone(),
            clock(line.uptime_ms),
            clock(line.cpu_ms),
            format!("{:.1}", line.cpu_percent),
            format!("{:.1}M", line.resident_bytes as f64 / f64::from(1 << 20)),
            or_dash(line.vcpu_count.map(|count| count.to_string())),
            or_dash(line.mem_size_mib.map(|size| format!("{size}M"))),
        ]
        .to_vec()
    });
    // Names and states stand left, numbers right.
    table::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), &[1, 3, 4, 5, 6, 7, 8])
}

/// `1d02h`, `2h03m`, `4m05s` or `6.7s`.
pub fn clock(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        86_400.. => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
        3600.. => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        60.. => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}.{}s", seconds, millis % 1000 / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_known() {
        let me = Process::of(std::process::id()).unwrap();
        assert!(me.resident > 1 << 20);
        assert_eq!(Process::of(u32::MAX), None);
    }

    #[test]
    fn a_process_s_name_may_be_hostile() {
        let fields: Vec<_> = (4..=52).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) R 1 (\n) S {}", fields.join(" "));
        let tick = Duration::from_secs_f64(1.0 / rustix::param::clock_ticks_per_second() as f64);
        let process = Process::from_texts(&stat, "9 2 1 1 0 1 0", "100.5 3.0\n").unwrap();
        assert_eq!(process.cpu, tick * 29);
        assert_eq!(process.uptime, Duration::from_secs_f64(100.5) - tick * 22);
        assert_eq!(process.resident, 2 * rustix::param::page_size() as u64);
        for (stat, statm, up) in [("", "9 2", "1"), (&*stat, "9", "1"), (&*stat, "9 2", "x"), ("1 (a) S 1", "9 2", "1")]
        {
            assert_eq!(Process::from_texts(stat, statm, up), None);
        }
    }

    #[test]
    fn times_are_short() {
        let times = [0, 999, 59_949, 60_000, 3_600_000, 90_000_000];
        assert_eq!(times.map(clock), ["0.0s", "0.9s", "59.9s", "1m00s", "1h00m", "1d01h"]);
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let line = |id: &str, count| Line {
            id: id.into(),
            pid: 7,
            state: "Running".into(),
            uptime_ms: 61_000,
            cpu_ms: 1500,
            cpu_percent: 2.5,
            resident_bytes: 3 << 20,
            vcpu_count: count,
            mem_size_mib: count.map(|_| 128),
        };
        let text = table(&[line("a-long-name", Some(2)), line("b", None)]);
        let wanted = "\
ID           PID  STATE       UP   CPU  CPU%  RESIDENT  VCPUS  MEMORY
a-long-name    7  Running  1m01s  1.5s   2.5      3.0M      2    128M
b              7  Running  1m01s  1.5s   2.5      3.0M      -       -
";
        assert_eq!(text, wanted);
    }
}
