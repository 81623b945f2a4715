//! What is said: the agent's greeting and the host's answer, orders, and what comes back. Plain data.
//!
//! Unknown fields and variants are errors: both sides are of one version, and say so first, in a greeting that every version
//! understands.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::disks::{DiskLimit, Writable};
use crate::network::{Endpoint, Network};

/// The agent's first message when it calls the host: it is there. The host answers with [`Setup`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's [`crate::VERSION`].
    pub version: u32,
    /// Release of the guest's kernel (uname(2)).
    pub kernel: String,
}

/// What the VM shall be, said once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The host's [`crate::VERSION`].
    pub version: u32,
    /// The VM's host name.
    pub hostname: String,
    /// How the VM reaches others; none: loopback only.
    pub network: Option<Network>,
    /// What time it is: nanoseconds since 1970.
    pub clock_ns: u64,
    /// Chance, for the kernel's random numbers: it may be one of several that were saved as one.
    pub seed: Vec<u8>,
}

/// The agent's answer to [`Setup`] and to orders that have nothing else to give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Done {
    /// It is so.
    Ok,
    /// It is not.
    Failed(Failure),
}

/// What the host wants of the agent: the first message of a connection that the host makes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Make a container and start it. [`Report`]s and its streams follow; [`Input`] and standard input may come.
    Run(Box<Run>),
    /// Start one more process in a container. What follows is as for [`Order::Run`].
    Exec(Box<Exec>),
    /// Send a signal to a container's first process. [`Done`] follows.
    Kill {
        /// The container.
        id: String,
        /// Number of the signal.
        signal: i32,
    },
    /// Name the containers. [`Containers`] follow.
    List,
    /// Say what a container uses. [`Answer`] with [`Usage`] follows.
    Usage {
        /// The container.
        id: String,
    },
    /// Say which processes a container has. [`Answer`] with a list of [`Process`]es follows.
    Processes {
        /// The container.
        id: String,
    },
    /// Send a file or directory of a container as a tar, as bytes of standard output. [`Done`] follows.
    Get {
        /// The container.
        id: String,
        /// Where it is: an absolute path.
        path: String,
    },
    /// Put what comes as a tar, as bytes of standard input, into a container. [`Done`] follows.
    Put {
        /// The container.
        id: String,
        /// Into this directory; or, where there is none, in its parent under its name.
        path: String,
    },
    /// Connect to a port of a container. [`Done`] follows. After that the connection carries bytes: what the caller sends,
    /// as those of standard input, and what the container sends, as those of standard output. For TCP no bytes are the end
    /// of their direction; a connection that closes without it was broken. For UDP each frame is a datagram.
    Connect {
        /// The container.
        id: String,
        /// Its port.
        port: u16,
        /// For UDP; otherwise for TCP.
        udp: bool,
    },
    /// Let go of a disk or a shared directory, and wait until it is not used any more, as the host takes it away. [`Done`]
    /// follows.
    Release(VolumeSource),
    /// Wait until everything is taken away that ended containers have left. [`Done`] follows.
    Settle,
    /// Write everything to disk and switch the VM off. [`Done`] follows, then the end.
    PowerOff,
}

/// A container to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Its name in this VM.
    pub id: String,
    /// Names of the partitions with its image's layers, the lowest first.
    pub layers: Vec<String>,
    /// Where its root file system takes what it writes.
    pub writable: Writable,
    /// The OCI runtime specification's configuration. The agent sets `root` and the user's numbers.
    pub spec: Value,
    /// User and group as the image or the host's user named them: `name`, `1000`, `name:group`, or nothing for root.
    pub user: String,
    /// The container has users of its own: its root is not the VM's.
    pub own_users: bool,
    /// More groups of that user: names or numbers.
    pub groups: Vec<String>,
    /// Files that the container sees at paths of their own.
    pub files: Vec<File>,
    /// What it sees of the host.
    pub volumes: Vec<Volume>,
    /// How fast it may use the VM's disks. The agent puts them into the specification.
    pub disk_limits: Vec<DiskLimit>,
    /// Its end of the VM's network; none: loopback only. The agent adds names to the file /etc/hosts, and writes
    /// /etc/resolv.conf.
    pub network: Option<Endpoint>,
    /// Its first process is one that hands signals on and reaps, and starts the program.
    pub init: bool,
    /// Its standard streams are a terminal of this size.
    pub terminal: Option<Window>,
    /// Somebody writes to its standard input; otherwise that is /dev/null.
    pub stdin: bool,
}

/// One more process in a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The container.
    pub id: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`, added to the container's.
    pub env: Vec<String>,
    /// Working directory; none: the container's.
    pub cwd: Option<String>,
    /// As in [`Run::user`]; none: the container's.
    pub user: Option<String>,
    /// As in [`Run::terminal`].
    pub terminal: Option<Window>,
    /// As in [`Run::stdin`].
    pub stdin: bool,
}

/// Something of the host that a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Where it is in the VM.
    pub source: VolumeSource,
    /// Where it is in the container: an absolute path.
    pub path: String,
    /// It cannot be written to.
    pub read_only: bool,
}

/// Where a volume is in the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum VolumeSource {
    /// A shared directory.
    Share {
        /// Its tag.
        tag: String,
    },
    /// The file system of a disk.
    Disk {
        /// The disk's serial number.
        serial: String,
    },
}

/// A file in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where: an absolute path.
    pub path: String,
    /// What it says.
    pub content: String,
}

/// The size of a terminal, characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// What the host says while a process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Input {
    /// The terminal has another size now.
    Resize(Window),
    /// Send this signal to the process.
    Signal(i32),
}

/// What the agent says of a process that was ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Report {
    /// It runs.
    Started {
        /// Its number in the VM.
        pid: u32,
    },
    /// It ended; all of its output was sent before. Nothing follows.
    Exited(Exit),
    /// It could not be started. Nothing follows.
    Failed(Failure),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// Its status, or 128 and the signal's number.
    pub code: u8,
    /// The kernel killed a process of the container because its memory was used up.
    pub oom_killed: bool,
}

/// Why an order was not followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What kind of failure, for the exit status.
    pub kind: FailureKind,
    /// For people, without a full stop.
    pub why: String,
}

/// Kinds of failures, as Docker's exit statuses tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The agent, the runtime or the order itself: 125.
    Engine,
    /// The user, or its group: 125.
    User,
    /// The working directory: 125.
    WorkingDirectory,
    /// The program is there but cannot be executed: 126.
    NotExecutable,
    /// There is no such program: 127.
    NotFound,
}

/// What was asked for, or why it cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer<T> {
    /// Here it is.
    Ok(T),
    /// It is not.
    Failed(Failure),
}

/// What a container uses (cgroup v2; the interfaces of its network namespace but lo).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// CPU time, µs.
    pub cpu_us: u64,
    /// Memory, bytes, without what the kernel could drop at once (inactive_file).
    pub memory_bytes: u64,
    /// Most of it, bytes; none: the VM's.
    pub memory_limit: Option<u64>,
    /// The VM's memory, bytes.
    pub vm_memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Most of them.
    pub pids_limit: Option<u64>,
    /// Bytes read from disks.
    pub read_bytes: u64,
    /// Bytes written to disks.
    pub written_bytes: u64,
    /// Bytes that came by the network.
    pub received_bytes: u64,
    /// Bytes that went by the network.
    pub sent_bytes: u64,
    /// Processes that the kernel killed because memory was used up.
    pub oom_kills: u64,
}

/// A process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Its number in the container.
    pub pid: u32,
    /// Its user's number.
    pub uid: u32,
    /// CPU time, ms.
    pub cpu_ms: u64,
    /// Memory, bytes (resident set).
    pub resident_bytes: u64,
    /// Program and arguments.
    pub command: String,
}

/// The containers of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Containers {
    /// Each of them.
    pub containers: Vec<Container>,
}

/// A container of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Its name.
    pub id: String,
    /// Number of its first process in the VM.
    pub pid: u32,
}

impl Exit {
    /// A status as shells say it.
    pub fn code_of(status: ExitStatus) -> u8 {
        let code = status.code().or_else(|| status.signal().map(|signal| signal.saturating_add(128)));
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
    }
}

impl FailureKind {
    /// The exit status that says it.
    pub fn status(self) -> u8 {
        match self {
            Self::Engine | Self::User | Self::WorkingDirectory => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
        }
    }
}

impl Failure {
    /// A failure of the engine.
    pub fn engine(why: impl Into<String>) -> Self {
        Self { kind: FailureKind::Engine, why: why.into() }
    }
}

impl From<&str> for Failure {
    fn from(why: &str) -> Self {
        Self::engine(why)
    }
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::engine(why)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::frame::Frame;

    #[test]
    fn messages_are_json_as_it_is_written_here() {
        let order = Order::Kill { id: "db".to_owned(), signal: 15 };
        assert_eq!(serde_json::to_value(&order).unwrap(), json!({"kill": {"id": "db", "signal": 15}}));
        let report = Report::Exited(Exit { code: 3, oom_killed: false });
        assert_eq!(serde_json::to_value(&report).unwrap(), json!({"exited": {"code": 3, "oom_killed": false}}));
        assert_eq!(Frame::message(&order).unwrap().open::<Order>().unwrap(), order);
    }

    #[test]
    fn what_the_other_version_says_is_refused() {
        let frame = Frame::message(&json!({"kill": {"id": "db", "signal": 15, "more": true}})).unwrap();
        assert!(frame.open::<Order>().unwrap_err().to_string().contains("unknown field `more`"));
        // But for the greeting, by which each learns that the other one is of another version.
        let frame = Frame::message(&json!({"version": 1, "kernel": "6.1", "more": true})).unwrap();
        assert_eq!(frame.open::<Hello>().unwrap().version, 1);
    }
}
