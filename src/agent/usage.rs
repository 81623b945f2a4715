//! What a container uses, and which processes it has: from its control group and /proc.
//!
//! Source: Linux, Documentation/admin-guide/cgroup-v2.rst and Documentation/filesystems/proc.rst.

use std::fs;
use std::path::{Path, PathBuf};

use protocol::message::{Process, Usage};
use rustix::param::{clock_ticks_per_second, page_size};

use crate::container::group;
use crate::system::CGROUPS;
use crate::users::outside;
use crate::{Doing, Fault};

/// Longest command that is told, characters.
const COMMAND_MAX: usize = 4096;

/// What a container uses, whose first process this is.
pub fn of(id: &str, pid: u32) -> Result<Usage, Fault> {
    let folder = folder(id);
    let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let current = fs::read_to_string(folder.join("memory.current"))
        .doing(|| format!("read the memory of container {id} (has this kernel the cgroup controller memory?)"))?;
    let droppable = named(&text("memory.stat"), "inactive_file");
    let (read_bytes, written_bytes) = disks(&text("io.stat"));
    let (received_bytes, sent_bytes) = network(&fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default());
    let kib = named(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:");
    Ok(Usage {
        cpu_us: named(&text("cpu.stat"), "usage_usec"),
        memory_bytes: number(&current).saturating_sub(droppable),
        memory_limit: text("memory.max").trim().parse().ok(),
        vm_memory_bytes: kib.saturating_mul(1024),
        pids: number(&text("pids.current")),
        pids_limit: text("pids.max").trim().parse().ok(),
        read_bytes,
        written_bytes,
        received_bytes,
        sent_bytes,
        oom_kills: named(&text("memory.events"), "oom_kill"),
    })
}

/// The processes of a container.
pub fn processes(id: &str) -> Result<Vec<Process>, Fault> {
    let all = fs::read_to_string(folder(id).join("cgroup.procs")).doing(|| format!("list the processes of {id}"))?;
    Ok(all.lines().filter_map(|pid| process(&Path::new("/proc").join(pid))).collect())
}

fn folder(id: &str) -> PathBuf {
    Path::new(CGROUPS).join(group(id))
}

/// One that has ended meanwhile is none.
fn process(folder: &Path) -> Option<Process> {
    let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let (status, stat) = (text("status")?, text("stat")?);
    let words = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    // The name, in parentheses, may hold anything; what follows is numbered from 3 on.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| number.checked_sub(3).and_then(|at| fields.get(at)?.parse::<u64>().ok()).unwrap_or(0);
    let ticks = field(14).saturating_add(field(15));
    let command = fs::read(folder.join("cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
    let name = words("Name:").trim();
    let uid: u32 = words("Uid:").split_whitespace().next()?.parse().ok()?;
    Some(Process {
        pid: words("NSpid:").split_whitespace().next_back()?.parse().ok()?,
        uid: uid.saturating_sub(text("uid_map").and_then(|map| outside(&map)).unwrap_or(0)),
        cpu_ms: ticks.saturating_mul(1000).checked_div(clock_ticks_per_second()).unwrap_or(0),
        resident_bytes: field(24).saturating_mul(u64::try_from(page_size()).unwrap_or(4096)),
        command: if command.is_empty() { format!("[{name}]") } else { command.chars().take(COMMAND_MAX).collect() },
    })
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// The number behind a name, in lines of names and numbers.
fn named(text: &str, name: &str) -> u64 {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    found.unwrap_or(0)
}

/// Bytes read and written, of all disks (io.stat: `8:0 rbytes=1 wbytes=2 …`).
fn disks(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let values = text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
        values.fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

/// Bytes received and sent, of all interfaces but lo (/proc/net/dev).
fn network(text: &str) -> (u64, u64) {
    let mut sums = (0_u64, 0_u64);
    for line in text.lines().skip(2) {
        let Some((name, counts)) = line.split_once(':') else { continue };
        if name.trim() != "lo" {
            let count = |at: usize| counts.split_whitespace().nth(at).map_or(0, number);
            sums = (sums.0.saturating_add(count(0)), sums.1.saturating_add(count(8)));
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(named("usage_usec 12\nuser_usec 7\n", "user_usec"), 7);
        assert_eq!(named("", "x"), 0);
        assert_eq!(disks("254:0 rbytes=10 wbytes=1 rios=3\n254:16 rbytes=5 wbytes=2\n"), (15, 3));
        let text = "Inter-|   Receive\n face |bytes\n    lo: 9 1 0 0 0 0 0 0 9 1\n  eth0: 70 1 0 0 0 0 0 0 30 1\n";
        assert_eq!(network(text), (70, 30));
    }

    #[test]
    fn this_process_is_known() {
        let me = process(Path::new("/proc/self")).unwrap();
        assert_eq!(me.pid, std::process::id());
        assert!(me.resident_bytes > 1 << 16 && !me.command.is_empty(), "{me:?}");
    }
}
