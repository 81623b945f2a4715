//! A control group of the host for a VM: what the VM may use, its monitor and the helpers of that may not exceed together.
//!
//! It is made where this process is permitted to: beside its own group, or below the root by root. Elsewhere there is none,
//! and the VM's configuration is the only limit.
//!
//! It goes when its processes have gone. The kernel takes tens of milliseconds to clear up after a VM; so that nobody waits
//! for that, a process of its own removes the group then.
//!
//! Source: Linux, Documentation/admin-guide/cgroup-v2.rst.

#![allow(unsafe_code)] // fork(2), and what its child may call

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
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
            write(&parent.join("cgroup.subtree_control"), controller);
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

    /// Ends its processes. It goes when this one has, which need not be waited for.
    pub fn end(self, last: &OwnedFd) {
        self.kill();
        if let Ok(path) = CString::new(self.0.as_os_str().as_bytes()) {
            // SAFETY: the child calls nothing but `remove_after`, which makes system calls only: no lock, no allocation.
            match unsafe { libc::fork() } {
                -1 => {}
                0 => remove_after(last.as_raw_fd(), &path),
                _ => std::mem::forget(self), // the child's now
            }
        }
    }

    fn kill(&self) {
        self.set("cgroup.kill", "1");
    }

    fn set(&self, name: &str, value: &str) -> Option<()> {
        write(&self.0.join(name), value)
    }
}

/// Writes to a file of the kernel's, which is neither made nor cut off for it.
fn write(file: &Path, value: &str) -> Option<()> {
    let mut file = File::options().write(true).open(file).ok()?;
    file.write_all(value.as_bytes()).ok()
}

impl Drop for HostGroup {
    fn drop(&mut self) {
        self.kill(); // helpers of the monitor, where that was killed
        let since = Instant::now();
        while fs::remove_dir(&self.0).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
            && since.elapsed() < GONE
        {
            sleep(LOOK);
        }
    }
}

/// The rest of a child's life: it lets go of all files but this pidfd, waits for that process's end, and removes the group.
fn remove_after(last: i32, group: &CStr) -> ! {
    /// That an end takes longer is most unlikely; the next VM's start removes the group then. Milliseconds.
    const MOST: i32 = 20_000;
    const PAUSE: i32 = 2;
    let close = |from: i32, to: u32| {
        // SAFETY: close_range(2) on descriptors that nothing here uses again.
        unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
    };
    if last > 0 {
        close(0, last.cast_unsigned().saturating_sub(1));
    }
    close(last.saturating_add(1), u32::MAX);
    let mut ended = libc::pollfd { fd: last, events: libc::POLLIN, revents: 0 };
    // SAFETY: setsid(2), poll(2) and rmdir(2) are async-signal-safe; `ended` and `group` live across the calls.
    unsafe {
        libc::setsid();
        libc::poll(&raw mut ended, 1, MOST);
        for _ in 0..MOST / PAUSE {
            if libc::rmdir(group.as_ptr()) == 0 || *libc::__errno_location() != libc::EBUSY {
                break;
            }
            libc::poll(std::ptr::null_mut(), 0, PAUSE);
        }
        libc::_exit(0)
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

    #[test]
    fn a_group_goes_with_its_last_process() {
        let folder = tempfile::tempdir().unwrap();
        let group = folder.path().join("group");
        fs::create_dir(&group).unwrap();
        let mut last = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&last);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        HostGroup(group.clone()).end(&pidfd);
        assert!(last.try_wait().unwrap().is_none());
        assert!(group.exists(), "it is there as long as that runs");
        last.kill().unwrap();
        last.wait().unwrap();
        let since = Instant::now();
        while group.exists() {
            assert!(since.elapsed() < Duration::from_secs(60));
            sleep(LOOK);
        }
    }
}
