//! What the subject of `vmm compare` says, for itself and for the host that hears it: facts read from inside
//! (`facts.rs`), and how long things took; and which layers of an image are joined (`layers.rs`).

pub mod facts;
pub mod layers;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where the subject is in an image that it was added to.
pub const PLACE: &str = "/.vmm-compare/subject";
/// A file of [`DATA_BYTES`] bytes beside it, to be read.
pub const DATA: &str = "/.vmm-compare/data";
/// A file that it writes.
pub const WRITTEN: &str = "/.vmm-compare/written";
/// Bytes that are read, and bytes that are written.
pub const DATA_BYTES: usize = 8 << 20;
/// Steps of the CPU loop, for each percent of the work.
pub const STEPS: u64 = 200_000;
/// Calls of getpid(2), for each percent.
pub const CALLS: u64 = 10_000;
/// Processes that are made by fork(2) and execve(2), one after the other, for each percent.
pub const CHILDREN: u64 = 10;
/// The vsock port of the host that the subject calls when it is a VM's init.
pub const PORT: u32 = 1025;

/// What a process sees of the world that it is in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Release of the kernel (uname(2)).
    pub kernel: String,
    /// Identity of this run of the kernel.
    pub boot_id: String,
    /// Its own number.
    pub pid: u32,
    /// Its namespaces, by kind, as namespaces(7) names them: `pid:[4026531836]`.
    pub namespaces: BTreeMap<String, String>,
    /// Host name.
    pub hostname: String,
    /// Kind of the root file system.
    pub root: String,
    /// File systems mounted.
    pub mounts: usize,
    /// Processes that it sees, kernel threads not counted.
    pub processes: usize,
    /// Its control group, as it is named to it.
    pub cgroup: String,
    /// `memory.max`, `cpu.max` and `pids.max` of that group, where they can be read.
    pub limits: BTreeMap<String, String>,
    /// Memory of the system, KiB.
    pub memory_kib: u64,
    /// CPUs that it may use.
    pub cpus: usize,
}

/// What the subject did, and how long it took, ns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// Where.
    pub facts: Facts,
    /// Arithmetic: [`STEPS`] steps for each percent.
    pub cpu_ns: u64,
    /// getpid(2): [`CALLS`] calls for each percent.
    pub getpid_ns: u64,
    /// Children, one after the other: [`CHILDREN`] for each percent.
    pub forkexec_ns: u64,
    /// [`DATA_BYTES`] to the root file system, flushed.
    pub write_ns: u64,
    /// [`DATA_BYTES`] of the image, past the page cache of the kernel that it runs on.
    pub read_ns: u64,
}

/// What a VM of the subject alone shall do: one line of JSON, from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Names of the partitions with the layers of the root file system, the lowest first.
    pub layers: Vec<String>,
    /// Most bytes that may be written to it.
    pub writable_bytes: u64,
    /// Host name.
    pub hostname: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
}
