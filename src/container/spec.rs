//! From an image's configuration and the user's wishes to the configuration of the OCI runtime specification, version
//! 1.2. Pure. What only the guest knows (where the root is, the user's numbers, the control group) the agent adds.

mod limits;
mod mounts;

use protocol::cpus::CpuList;
use serde_json::{Value, json};
use thiserror::Error;

use crate::document::RunConfig;
use crate::seccomp::Confinement;

/// What the user wants to be otherwise than the image says, or more of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wishes {
    /// Follows the entry point, instead of the image's command.
    pub args: Vec<String>,
    /// Instead of the image's entry point; with nothing: none.
    pub entrypoint: Option<String>,
    /// `NAME=value`, or `NAME` to leave it out.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// Host name.
    pub hostname: String,
    /// The root file system cannot be written to.
    pub read_only: bool,
    /// File systems in memory: `/path` or `/path:options`.
    pub tmpfs: Vec<String>,
    /// Most bytes of its /dev/shm.
    pub shm_bytes: Option<u64>,
    /// Capabilities that it has beside the usual ones: `NET_ADMIN`, `CAP_NET_ADMIN` or `ALL`.
    pub cap_add: Vec<String>,
    /// Capabilities that it has not.
    pub cap_drop: Vec<String>,
    /// Most bytes of memory.
    pub memory: Option<u64>,
    /// Thousandths of a CPU's time.
    pub milli_cpus: Option<u64>,
    /// The CPUs of the VM that it may run on.
    pub cpus: Option<CpuList>,
    /// Most processes and threads.
    pub pids: Option<u64>,
    /// Limits of its processes: `nofile=1024:2048`.
    pub ulimits: Vec<String>,
    /// Its standard streams are a terminal.
    pub terminal: bool,
    /// No program may give its process more rights.
    pub no_new_privileges: bool,
    /// Which system calls it may make.
    pub confinement: Confinement,
}

/// What cannot be made.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// Nothing to run.
    #[error("the image names no command; give one after the image's name")]
    NoCommand,
    /// No such capability.
    #[error("there is no capability {0}; capabilities(7) lists them")]
    Capability(String),
    /// A limit that cannot be read.
    #[error("--ulimit {0}: it is written NAME=SOFT[:HARD] with numbers, as nofile=1024:2048; names are {1}")]
    Ulimit(String, String),
    /// A path that does not begin at the root.
    #[error("{0} {1}: it is a path from / on")]
    Path(&'static str, String),
    /// A size that cannot be read.
    #[error("--tmpfs {0}: {1}; of the VM's memory it is size=50%")]
    Tmpfs(String, &'static str),
    /// An option that is none.
    #[error("--tmpfs {0}: {1} is no option; {2} are")]
    TmpfsOption(String, String, String),
}

/// The capabilities that root in a container has, as the field settled on them.
const USUAL: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// The others (capabilities(7)).
const OTHERS: [&str; 27] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "DAC_READ_SEARCH",
    "IPC_LOCK",
    "IPC_OWNER",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "NET_ADMIN",
    "NET_BROADCAST",
    "PERFMON",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];
/// The flag that says where the command begins.
const WORKDIR: &str = "--workdir";
/// Where programs are, if the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Wishes {
    /// Whether they can be read, whatever the image says.
    pub fn check(&self) -> Result<(), SpecError> {
        self.workdir.as_ref().map_or(Ok(()), |cwd| absolute(WORKDIR, cwd))?;
        capabilities(self)?;
        limits::rlimits(self)?;
        mounts::mounts(self).map(drop)
    }
}

/// A path begins at the root, or is none.
fn absolute(place: &'static str, path: &str) -> Result<(), SpecError> {
    match path.is_empty() || path.starts_with('/') {
        true => Ok(()),
        false => Err(SpecError::Path(place, path.to_owned())),
    }
}

/// The configuration of a container of `image`.
pub fn spec(image: &RunConfig, wishes: &Wishes) -> Result<Value, SpecError> {
    let (place, cwd) = match &wishes.workdir {
        Some(cwd) => (WORKDIR, Some(cwd)),
        None => ("the WorkingDir of its configuration,", image.working_dir.as_ref()),
    };
    let cwd = cwd.filter(|cwd| !cwd.is_empty()).map_or("/", String::as_str);
    absolute(place, cwd)?;
    let capabilities = capabilities(wishes)?;
    let seccomp = wishes.confinement.of(&capabilities);
    let mut held = capabilities.clone();
    if seccomp.is_some() && !wishes.no_new_privileges && !held.iter().any(|name| name == "CAP_SYS_ADMIN") {
        // Who loads a filter needs it (seccomp(2)). The program does not get it: execve(2) takes away what is not in the
        // bounding set.
        held.push("CAP_SYS_ADMIN".to_owned());
    }
    let namespaces = ["pid", "mount", "uts", "ipc", "cgroup", "network"].map(|kind| json!({"type": kind}));
    Ok(json!({
        "ociVersion": "1.2.0",
        "hostname": wishes.hostname,
        "root": {"path": "rootfs", "readonly": wishes.read_only},
        "process": {
            "terminal": wishes.terminal,
            "user": {"uid": 0, "gid": 0},
            "args": args(image, wishes)?,
            "env": env(image, wishes),
            "cwd": cwd,
            "capabilities": {
                "bounding": capabilities, "effective": held, "permitted": held,
            },
            "rlimits": limits::rlimits(wishes)?,
            "noNewPrivileges": wishes.no_new_privileges,
            "oomScoreAdj": 0,
        },
        "mounts": mounts::mounts(wishes)?,
        "linux": {
            "namespaces": namespaces,
            "resources": limits::resources(wishes),
            "seccomp": seccomp,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
                "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
}

/// Entry point and what follows it. Another entry point makes the image's command void, as Docker does.
fn args(image: &RunConfig, wishes: &Wishes) -> Result<Vec<String>, SpecError> {
    let mut args = match &wishes.entrypoint {
        Some(entrypoint) if entrypoint.is_empty() => Vec::new(),
        Some(entrypoint) => vec![entrypoint.clone()],
        None => image.entrypoint.clone().unwrap_or_default(),
    };
    match (wishes.args.is_empty(), &wishes.entrypoint) {
        (true, None) => args.extend(image.cmd.clone().unwrap_or_default()),
        _ => args.extend(wishes.args.iter().cloned()),
    }
    if args.is_empty() { Err(SpecError::NoCommand) } else { Ok(args) }
}

/// The image's variables, changed as the user wants.
fn env(image: &RunConfig, wishes: &Wishes) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map_or(entry, |(name, _)| name).to_owned();
    let mut env: Vec<String> = image.env.clone().unwrap_or_default();
    if !env.iter().any(|entry| name(entry) == "PATH") {
        env.insert(0, PATH.to_owned());
    }
    let terminal = wishes.terminal.then(|| "TERM=xterm".to_owned());
    let hostname = format!("HOSTNAME={}", wishes.hostname);
    for entry in terminal.iter().chain([&hostname]).chain(&wishes.env) {
        env.retain(|other| name(other) != name(entry));
        if entry.contains('=') {
            env.push(entry.clone());
        }
    }
    env
}

/// Names of capabilities as the specification has them.
fn capabilities(wishes: &Wishes) -> Result<Vec<String>, SpecError> {
    let all = || USUAL.into_iter().chain(OTHERS);
    let named = |text: &String| {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match all().find(|known| *known == name) {
            Some(known) => Ok(vec![known]),
            None if name == "ALL" => Ok(all().collect()),
            None => Err(SpecError::Capability(text.clone())),
        }
    };
    let sets = |texts: &[String]| -> Result<Vec<&str>, SpecError> {
        Ok(texts.iter().map(named).collect::<Result<Vec<_>, _>>()?.concat())
    };
    let (added, dropped) = (sets(&wishes.cap_add)?, sets(&wishes.cap_drop)?);
    // ALL goes first, so that single ones can be taken from or added to it.
    let drops_all = wishes.cap_drop.iter().any(|text| named(text).is_ok_and(|names| names.len() > 1));
    let kept = |name: &&str| match added.contains(name) {
        true => drops_all || !dropped.contains(name),
        false => USUAL.contains(name) && !dropped.contains(name),
    };
    let mut names: Vec<String> = all().filter(kept).map(|name| format!("CAP_{name}")).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests;
