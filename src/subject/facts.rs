//! What a process can read of its world. What cannot be read is empty: that is a fact, too.

use std::collections::BTreeMap;
use std::fs;

use crate::Facts;

/// Kinds of namespaces (namespaces(7)).
const KINDS: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
/// Limits of a control group.
const LIMITS: [&str; 3] = ["memory.max", "cpu.max", "pids.max"];

/// Those of this process.
pub fn facts() -> Facts {
    let system = rustix::system::uname();
    let cgroup = cgroup(&text("/proc/self/cgroup"));
    let mounts = text("/proc/self/mounts");
    Facts {
        kernel: system.release().to_string_lossy().into_owned(),
        boot_id: text("/proc/sys/kernel/random/boot_id").trim().to_owned(),
        pid: std::process::id(),
        namespaces: KINDS.iter().filter_map(|kind| Some(((*kind).to_owned(), namespace(kind)?))).collect(),
        hostname: system.nodename().to_string_lossy().into_owned(),
        root: root(&mounts),
        mounts: mounts.lines().count(),
        processes: processes(),
        limits: limits(&cgroup),
        cgroup,
        memory_kib: memory(&text("/proc/meminfo")),
        cpus: std::thread::available_parallelism().map_or(0, usize::from),
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn namespace(kind: &str) -> Option<String> {
    Some(fs::read_link(format!("/proc/self/ns/{kind}")).ok()?.to_string_lossy().into_owned())
}

/// The group of cgroup v2, else that of v1's memory controller.
fn cgroup(text: &str) -> String {
    let path = |mark: &str| text.lines().find_map(|line| Some(line.split_once(mark)?.1.to_owned()));
    path("0::").or_else(|| path(":memory:")).unwrap_or_default()
}

fn limits(cgroup: &str) -> BTreeMap<String, String> {
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup{}/{name}", cgroup.trim_end_matches('/'))).ok();
    LIMITS.iter().filter_map(|name| Some(((*name).to_owned(), read(name)?.trim().to_owned()))).collect()
}

/// The last file system that is mounted at `/` (proc_pid_mounts(5)).
fn root(mounts: &str) -> String {
    let kind = |line: &str| {
        let mut words = line.split(' ').skip(1);
        (words.next()? == "/").then(|| words.next().unwrap_or_default().to_owned())
    };
    mounts.lines().rev().find_map(kind).unwrap_or_default()
}

/// A kernel thread has no command line; nor has a process that has ended.
fn processes() -> usize {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let numbered = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    numbered.filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| !line.is_empty())).count()
}

fn memory(text: &str) -> u64 {
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        assert_eq!(cgroup("0::/a/b\n"), "/a/b");
        assert_eq!(cgroup("12:memory:/m\n1:name=systemd:/s\n"), "/m");
        assert_eq!(cgroup(""), "");
        let mounts = "rootfs / rootfs rw 0 0\nproc /proc proc rw 0 0\noverlay / overlay rw,lowerdir=/ 0 0\n";
        assert_eq!(root(mounts), "overlay");
        assert_eq!(memory("MemTotal:       24576 kB\nMemFree: 1 kB\n"), 24_576);
    }

    #[test]
    fn this_process_is_somewhere() {
        let facts = facts();
        assert_eq!(facts.pid, std::process::id());
        assert!(!facts.kernel.is_empty() && facts.processes > 0 && facts.mounts > 0, "{facts:?}");
        assert!(facts.namespaces.values().all(|name| name.contains(":[")), "{facts:?}");
        assert_eq!(serde_json::from_str::<Facts>(&serde_json::to_string(&facts).unwrap()).unwrap(), facts);
    }
}
