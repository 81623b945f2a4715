//! `vmm stats` and `vmm top`: what containers use, and their processes.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use ::container::register::{Container, State};
use clap::Args;
use protocol::message::{Answer, Order, Process, Usage};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::run::failed;
use super::verbs::{self, containers, find};
use crate::ps::clock;
use crate::table::{self, shown, size};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Moves a terminal's cursor to the beginning and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// What `vmm stats` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110)]
pub struct StatsArgs {
    /// Look once
    #[arg(long)]
    no_stream: bool,
    /// Print one line of JSON for each look
    #[arg(long)]
    json: bool,
    /// The containers [default: all that run]
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// What `vmm top` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct TopArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// What one container uses.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    /// Of one CPU, since the last look.
    cpu_percent: f64,
    #[serde(flatten)]
    usage: Usage,
}

/// Prints what containers use, once or every second.
pub fn stats(args: &StatsArgs) -> ExitCode {
    match stream(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why),
    }
}

/// Until nobody reads it any more, where it is not once.
fn stream(args: &StatsArgs) -> Result<(), String> {
    let (mut before, mut began) = (look(args)?, Instant::now());
    loop {
        sleep(INTERVAL);
        let now = look(args)?;
        let passed = began.elapsed();
        began = Instant::now();
        let lines: Vec<Line> = now.iter().map(|(name, usage)| line(name, usage, &before, passed)).collect();
        let text = match args.json {
            true => serde_json::json!(lines).to_string() + "\n",
            false if !args.no_stream && io::stdout().is_terminal() => CLEAR.to_owned() + &table(&lines),
            false => table(&lines),
        };
        if io::stdout().write_all(text.as_bytes()).is_err() || args.no_stream {
            return Ok(());
        }
        before = now;
    }
}

/// All containers that are meant, and what they use.
fn look(args: &StatsArgs) -> Result<Vec<(String, Usage)>, String> {
    let meant: Vec<Container> = match args.containers.as_slice() {
        [] => containers()?.list().map_err(|error| error.to_string())?,
        names => names.iter().map(|name| find(name)).collect::<Result<_, _>>()?,
    };
    let running = meant
        .into_iter()
        .filter(|container| !args.containers.is_empty() || matches!(container.state(), State::Running { .. }));
    thread::scope(|scope| {
        let asking: Vec<_> = running
            .map(|container| {
                scope.spawn(move || {
                    let id = container.record.name.clone();
                    let used = ask(&container, &Order::Usage { id: id.clone() });
                    used.map(|used| (id, used))
                })
            })
            .collect();
        let answers = asking.into_iter().filter_map(|thread| thread.join().ok());
        // One of all that has just ended is none of them.
        match args.containers.is_empty() {
            true => Ok(answers.flatten().collect()),
            false => answers.collect(),
        }
    })
}

fn line(name: &str, usage: &Usage, before: &[(String, Usage)], passed: Duration) -> Line {
    let last = before.iter().find(|(known, _)| known == name).map_or(usage.cpu_us, |(_, usage)| usage.cpu_us);
    let percent = usage.cpu_us.saturating_sub(last) as f64 / passed.as_micros().max(1) as f64 * 100.0;
    Line { name: name.to_owned(), cpu_percent: (percent * 100.0).round() / 100.0, usage: usage.clone() }
}

fn table(lines: &[Line]) -> String {
    let head = ["CONTAINER", "CPU%", "MEMORY", "LIMIT", "MEM%", "RECEIVED", "SENT", "READ", "WRITTEN", "PIDS"];
    let rows = lines.iter().map(|line| {
        let usage = &line.usage;
        let limit = usage.memory_limit.unwrap_or(usage.vm_memory_bytes);
        [
            line.name.clone(),
            format!("{:.2}", line.cpu_percent),
            size(usage.memory_bytes),
            size(limit),
            format!("{:.1}", usage.memory_bytes as f64 / limit.max(1) as f64 * 100.0),
            size(usage.received_bytes),
            size(usage.sent_bytes),
            size(usage.read_bytes),
            size(usage.written_bytes),
            usage.pids.to_string(),
        ]
        .to_vec()
    });
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned).to_vec()).chain(rows).collect();
    table::table(&rows, &[1, 2, 3, 4, 5, 6, 7, 8, 9])
}

/// Prints the processes of a container.
pub fn top(args: &TopArgs) -> ExitCode {
    let found = find(&args.container).and_then(|container| {
        let id = container.record.name.clone();
        ask::<Vec<Process>>(&container, &Order::Processes { id })
    });
    let processes = match found {
        Ok(processes) => processes,
        Err(why) => return failed(&why),
    };
    let rows = processes.iter().map(|process| {
        [
            process.pid.to_string(),
            process.uid.to_string(),
            clock(process.cpu_ms),
            size(process.resident_bytes),
            shown(&process.command),
        ]
        .to_vec()
    });
    let head = ["PID", "UID", "CPU", "RESIDENT", "COMMAND"].map(str::to_owned).to_vec();
    let text = match args.json {
        true => serde_json::json!(processes).to_string() + "\n",
        false => table::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), &[0, 1, 2, 3]),
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Asks the agent of a container.
fn ask<T: DeserializeOwned>(container: &Container, order: &Order) -> Result<T, String> {
    match verbs::order(container, order)?.message().map_err(|error| error.to_string())? {
        Answer::Ok(answer) => Ok(answer),
        Answer::Failed(failure) => Err(failure.why),
    }
}
