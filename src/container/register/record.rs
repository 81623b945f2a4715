//! What is known of a container, as plain data.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What a container is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// The image, as the user named it.
    pub image: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// When it was asked for, ms since the epoch.
    pub created_ms: u64,
    /// When it began, ms since the epoch.
    pub started_ms: Option<u64>,
    /// Its owner's process.
    pub pid: u32,
    /// The VM that it shares with others; none: one of its own.
    pub vm: Option<String>,
    /// The socket that leads to its VM's agent.
    pub socket: Option<PathBuf>,
    /// What is published, as the user said it.
    pub ports: Vec<String>,
    /// The user's notes.
    pub labels: BTreeMap<String, String>,
    /// Number of the signal that asks it to end.
    pub stop_signal: i32,
    /// How often it was started again.
    pub restarts: u32,
    /// It goes with its end.
    pub remove: bool,
}

/// How a container ended. Without more knowledge: its owner was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Exit status, as `vmm run`'s.
    pub code: u8,
    /// The kernel killed a process of it because its memory was used up.
    pub oom_killed: bool,
    /// When, ms since the epoch; 0: nobody knows.
    pub at_ms: u64,
    /// Why, where it was not by itself.
    pub why: Option<String>,
}

impl Default for Ended {
    fn default() -> Self {
        Self { code: 137, oom_killed: false, at_ms: 0, why: Some("the process that held it was killed".to_owned()) }
    }
}

/// How a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is being made.
    Created,
    /// It runs.
    Running {
        /// When it began, ms since the epoch.
        since_ms: u64,
    },
    /// It has ended.
    Ended(Ended),
}

/// What health checks found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// `starting`, `healthy` or `unhealthy`, as Docker says it.
    pub status: String,
    /// Checks that failed, one after another.
    pub failing: u32,
    /// What the last one printed.
    pub output: String,
}

impl Health {
    /// Writes it to its file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace(path, self)
    }
}

/// Replaces a file as a whole: who reads it has the old one or the new one.
pub(super) fn replace(path: &Path, what: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(what)?)?;
    fs::rename(&new, path)
}

/// Now, ms since the epoch.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
