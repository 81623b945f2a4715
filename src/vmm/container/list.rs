//! The containers, as `vmm ps` shows them.

use std::collections::BTreeMap;

use ::container::register::{Container, State, now_ms};
use serde::Serialize;

use super::verbs::containers;
use crate::ps::clock;
use crate::table::{self, shown};

/// Most characters of a command.
const COMMAND_MAX: usize = 24;

/// A container.
#[derive(Debug, Serialize)]
pub struct Line {
    /// Its name.
    pub name: String,
    image: String,
    command: Vec<String>,
    created_ms: u64,
    /// `Created`, `Running` or `Exited`.
    state: &'static str,
    /// ms since the epoch.
    started_ms: Option<u64>,
    /// ms since the epoch.
    ended_ms: Option<u64>,
    exit_code: Option<u8>,
    oom_killed: Option<bool>,
    /// `starting`, `healthy` or `unhealthy`, where it is looked at.
    health: Option<String>,
    restarts: u32,
    ports: Vec<String>,
    labels: BTreeMap<String, String>,
    /// The VM that it shares with others; none: one of its own.
    vm: Option<String>,
    /// Its owner's process.
    pid: Option<u32>,
}

/// Those that run, or all.
pub fn lines(all: bool) -> Result<Vec<Line>, String> {
    let found = containers()?.list().map_err(|error| error.to_string())?;
    Ok(found.iter().map(line).filter(|line| all || line.state != "Exited").collect())
}

fn line(container: &Container) -> Line {
    let record = container.record.clone();
    let state = container.state();
    let ended = match &state {
        State::Ended(ended) => Some(ended),
        _ => None,
    };
    Line {
        state: match &state {
            State::Created => "Created",
            State::Running { .. } => "Running",
            State::Ended(_) => "Exited",
        },
        ended_ms: ended.map(|ended| ended.at_ms).filter(|at| *at > 0),
        exit_code: ended.map(|ended| ended.code),
        oom_killed: ended.map(|ended| ended.oom_killed),
        health: container.health().filter(|_| ended.is_none()).map(|health| health.status),
        pid: ended.is_none().then_some(record.pid),
        name: record.name,
        image: record.image,
        command: record.command,
        created_ms: record.created_ms,
        started_ms: record.started_ms,
        restarts: record.restarts,
        ports: record.ports,
        labels: record.labels,
        vm: record.vm,
    }
}

/// As a table.
pub fn table(lines: &[Line]) -> String {
    let head = ["CONTAINER", "IMAGE", "COMMAND", "STATE", "SINCE", "PORTS", "VM"].map(str::to_owned).to_vec();
    let now = now_ms();
    let rows = lines.iter().map(|line| {
        let state = match (line.exit_code, &line.health) {
            (Some(code), _) => format!("Exited ({code})"),
            (None, Some(health)) => format!("{} ({health})", line.state),
            (None, None) => line.state.to_owned(),
        };
        let since = line.ended_ms.or(line.started_ms).unwrap_or(line.created_ms);
        [
            line.name.clone(),
            shown(&line.image),
            shown(&line.command.join(" ")).chars().take(COMMAND_MAX).collect(),
            state,
            clock(now.saturating_sub(since)),
            line.ports.join(", "),
            line.vm.clone().unwrap_or_else(|| "its own".to_owned()),
        ]
        .to_vec()
    });
    table::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), &[4])
}
