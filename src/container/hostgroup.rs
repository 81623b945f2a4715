//! A control group of the host for a VM: what the VM may use, its monitor and the helpers of that may not exceed together.
//!
//! It is made where this process is permitted to: beside its own group, or below the root by root. Elsewhere there is none,
//! and the VM's configuration is the only limit.
//!
//! Source: Linux, Documentation/admin-guide/cgroup-v2.rst.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where control groups are.
const MOUNTED: &str = "/sys/fs/cgroup";
/// How their names begin; what tells the room with the VM's folder from others follows, and the folder's name.
const PREFIX: &str = "vmm-";
/// Memory beside the guest's, bytes: the monitor, what carries its network and its shares, and some page cache.
const OWN_BYTES: u64 = 256 << 20;
/// The time of a CPU in which limits are counted, µs.
const PERIOD: u64 = 100_000;
/// How long the kernel may take to let go of the group of processes that were killed.
const GONE: Duration = Duration::from_secs(2);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// A group. It goes when this is dropped, after its processes.
#[derive(Debug)]
pub struct HostGroup(PathBuf);

impl HostGroup {
    /// One for the VM with this folder, or none. Devices of a VM may use one CPU beside the guest's.
    pub fn make(folder: &Path, mem_size_mib: u64, vcpu_count: u64) -> Option<Self> {
        let parent = parent(&fs::read_to_string("/proc/self/cgroup").ok()?)?;
        for controller in ["+memory", "+cpu"] {
            let _ = fs::write(parent.join("cgroup.subtree_control"), controller);
        }
        let prefix = prefix(folder.parent()?).ok()?;
        sweep(&parent, &prefix, folder.parent()?);
        let path = parent.join(format!("{prefix}{}", folder.file_name()?.to_str()?));
        fs::create_dir(&path).ok()?;
        let group = Self(path);
        let memory = mem_size_mib.saturating_mul(1 << 20).saturating_add(OWN_BYTES);
        let time = vcpu_count.saturating_add(1).saturating_mul(PERIOD);
        group.set("memory.max", &memory.to_string())?;
        group.set("cpu.max", &format!("{time} {PERIOD}"))?;
        Some(group)
    }

    /// Takes a process in. The children that it will have are in, too.
    pub fn take(&self, pid: u32) -> Option<()> {
        self.set("cgroup.procs", &pid.to_string())
    }

    fn set(&self, name: &str, value: &str) -> Option<()> {
        fs::write(self.0.join(name), value).ok()
    }
}

impl Drop for HostGroup {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1"); // helpers of the monitor, where it was killed
        let since = Instant::now();
        while fs::remove_dir(&self.0).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
            && since.elapsed() < GONE
        {
            sleep(LOOK);
        }
    }
}

/// How the names of groups begin whose VMs have their folders here: users and tests have rooms of their own, and none
/// takes another's group for one that was left.
fn prefix(room: &Path) -> io::Result<String> {
    Ok(format!("{PREFIX}{:x}-", fs::metadata(room)?.ino()))
}

/// Where the group of a process that is in these groups (/proc/PID/cgroup) may be made: beside its own.
fn parent(groups: &str) -> Option<PathBuf> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let above = own.rsplit_once('/').map_or("", |(above, _)| above);
    Some(Path::new(MOUNTED).join(above))
}

/// Removes the groups of this room's VMs whose folders have gone.
fn sweep(parent: &Path, prefix: &str, room: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let folder = name.to_str().and_then(|name| name.strip_prefix(prefix));
        if folder.is_some_and(|folder| !room.join(folder).exists()) {
            let _ = fs::remove_dir(entry.path()); // one with processes stays
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_beside_ones_own() {
        let of = |text: &str| parent(text).map(|path| path.display().to_string());
        assert_eq!(of("0::/\n").as_deref(), Some("/sys/fs/cgroup/"));
        assert_eq!(of("0::/init.scope\n").as_deref(), Some("/sys/fs/cgroup/"));
        assert_eq!(of("1:cpu:/x\n0::/user.slice/a.scope\n").as_deref(), Some("/sys/fs/cgroup/user.slice"));
        assert_eq!(of("1:cpu:/x\n"), None);
    }

    #[test]
    fn groups_of_the_dead_go() {
        let (groups, room, other) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (own, others) = (prefix(room.path()).unwrap(), prefix(other.path()).unwrap());
        let names = [format!("{own}dead"), format!("{own}lives"), format!("{others}starts"), "other".to_owned()];
        for name in &names {
            fs::create_dir(groups.path().join(name)).unwrap();
        }
        fs::create_dir(room.path().join("lives")).unwrap();
        sweep(groups.path(), &own, room.path());
        let left = names.map(|name| groups.path().join(name).exists());
        assert_eq!(left, [false, true, true, true]);
    }
}
