//! Memory and disk that instances add: the proportional set size of every process that descends from this one (`Pss` of
//! smaps_rollup, proc_pid_smaps(5): a page that n processes share counts one n-th), and the blocks of an instance's files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{getpid, set_child_subreaper};

/// From now on a process whose parent ends becomes a child of this one: no helper of an instance gets out of sight.
pub fn keep_in_sight() {
    let _ = set_child_subreaper(Some(getpid()));
}

/// KiB of all descendants.
pub fn descendants_kib() -> u64 {
    let parents: BTreeMap<u32, u32> = numbered().filter_map(|pid| Some((pid, parent(&stat(pid)?)?))).collect();
    let own = std::process::id();
    parents.keys().filter(|pid| descends(**pid, own, &parents)).map(|pid| pss_kib(*pid)).sum()
}

fn numbered() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn stat(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

/// The fourth word (proc_pid_stat(5)); the second, in brackets, may have any characters.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn descends(pid: u32, from: u32, parents: &BTreeMap<u32, u32>) -> bool {
    let mut at = pid;
    // No chain is longer than there are processes; numbers may have been used again while they were read.
    for _ in 0..parents.len() {
        match parents.get(&at) {
            Some(parent) if *parent == from => return true,
            Some(parent) => at = *parent,
            None => return false,
        }
    }
    false
}

/// One that has ended meanwhile has none.
fn pss_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Bytes on disk of the files below `folder`, without what is mounted there.
pub fn disk_bytes(folder: &Path) -> u64 {
    let Ok(own) = fs::symlink_metadata(folder) else { return 0 };
    let mut sum = own.blocks().saturating_mul(512);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(found) if found.dev() != own.dev() => (),
            Ok(found) if found.is_dir() => sum += disk_bytes(&entry.path()),
            Ok(found) => sum += found.blocks().saturating_mul(512),
            Err(_) => (),
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn processes_descend_from_their_ancestors() {
        assert_eq!(parent("7 (a ) b) S 3 7 7 0"), Some(3));
        let parents = [(2, 1), (3, 2), (4, 3), (9, 1), (20, 21), (21, 20)].into();
        assert!(descends(4, 2, &parents) && descends(3, 2, &parents));
        assert!(!descends(2, 2, &parents) && !descends(9, 2, &parents) && !descends(20, 2, &parents));
    }

    #[test]
    fn a_child_has_memory_and_a_file_blocks() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(pss_kib(child.id()) > 0 && descendants_kib() >= pss_kib(child.id()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(pss_kib(child.id()), 0);
        let folder = tempfile::tempdir().unwrap();
        let empty = disk_bytes(folder.path());
        fs::create_dir(folder.path().join("in")).unwrap();
        fs::write(folder.path().join("in/file"), vec![1; 100_000]).unwrap();
        assert!(disk_bytes(folder.path()) >= empty + 100_000);
    }
}
