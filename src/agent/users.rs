//! A container's own users (user_namespaces(7)): its root is somebody of the VM who may do nothing there. The files of its
//! image are shown to it as belonging to these users (mount_setattr(2), idmapped mounts), so nothing is copied. Threads of
//! orders.
#![allow(unsafe_code)] // clone(2), mount_setattr(2), setfsuid(2)

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, mount_bind, move_mount, open_tree};

use crate::{Doing, Fault};

/// The VM's number of a container's root; so many of its users follow. No user of the VM has one of these.
pub const ROOT: u32 = 100_000;
const COUNT: u32 = 65_536;

/// A namespace of users, and one of networks that belongs to it, as files.
#[derive(Debug)]
pub struct Users {
    users: PathBuf,
    network: PathBuf,
    file: File,
}

impl Users {
    /// Makes both in this folder. They go with [`Self::FILES`] being unmounted.
    pub fn make(folder: &Path) -> Result<Self, Fault> {
        let [users, network] = Self::FILES.map(|name| folder.join(name));
        let sleeper = Sleeper::start()?;
        for kind in ["uid_map", "gid_map"] {
            fs::write(sleeper.file(kind), format!("0 {ROOT} {COUNT}\n"))
                .doing(|| "name a container's users".to_owned())?;
        }
        for (file, kind) in [(&users, "ns/user"), (&network, "ns/net")] {
            fs::write(file, "").doing(|| format!("make {}", file.display()))?;
            mount_bind(sleeper.file(kind), file).doing(|| "keep a namespace".to_owned())?;
        }
        let file = File::open(&users).doing(|| "open a namespace of users".to_owned())?;
        Ok(Self { users, network, file })
    }

    /// The names of its files.
    pub const FILES: [&str; 2] = ["users", "users-network"];

    /// The namespace of users.
    pub fn path(&self) -> &Path {
        &self.users
    }

    /// The namespace of networks.
    pub fn network(&self) -> &Path {
        &self.network
    }

    /// Shows what is mounted at `from` also at `to`, with these users as its owners.
    pub fn show(&self, from: &Path, to: &Path) -> Result<(), Fault> {
        let showing = || format!("show {} with a container's own users as owners", from.display());
        fs::create_dir_all(to).doing(showing)?;
        let tree = open_tree(CWD, from, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
        let tree = tree.doing(showing)?;
        let owner = u64::try_from(self.file.as_raw_fd()).doing(showing)?;
        let change =
            libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd: owner };
        // SAFETY: both descriptors are open across the call; the path is a string that ends with 0; the kernel reads as
        // many bytes of the structure as it is told, and keeps nothing of it.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const change,
                size_of_val(&change),
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error()).doing(showing);
        }
        move_mount(tree.as_fd(), "", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(showing)
    }
}

/// A child that is in the namespaces and does nothing, until they are kept by files.
struct Sleeper(libc::pid_t);

impl Sleeper {
    fn start() -> Result<Self, Fault> {
        let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET;
        // SAFETY: without CLONE_VM the child has a copy of the memory, on the same stack; it calls nothing but pause(2),
        // which takes no lock. Nobody but this thread waits for it, as it sends no signal (wait(2), __WCLONE).
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        match libc::pid_t::try_from(pid).doing(|| "make a namespace of users".to_owned())? {
            0 => loop {
                // SAFETY: it waits for a signal, and for nothing else.
                unsafe { libc::pause() };
            },
            ..0 => Err(io::Error::last_os_error())
                .doing(|| "make a namespace of users (has this kernel CONFIG_USER_NS?)".to_owned()),
            pid => Ok(Self(pid)),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.0.to_string()).join(name)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // SAFETY: numbers only; the child is this thread's and has not been waited for, so the number is its own.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL);
        }
    }
}

/// The VM's number of the root of this process's namespace.
pub fn root_of(pid: u32) -> u32 {
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap_or_default();
    outside(&map).unwrap_or(0)
}

/// The same, by the text of /proc/PID/uid_map.
pub fn outside(map: &str) -> Option<u32> {
    map.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["0", outside, _] => outside.parse().ok(),
        _ => None,
    })
}

/// From now on this thread's files are those of this user of the VM.
pub fn write_as(owner: u32) {
    if owner != 0 {
        // SAFETY: numbers only, and only this thread's file system identity changes.
        unsafe {
            libc::setfsgid(owner);
            libc::setfsuid(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_root_stands_in_the_map() {
        assert_eq!(outside("         0     100000      65536\n"), Some(100_000));
        assert_eq!(outside("         0          0 4294967295\n"), Some(0));
        assert_eq!(outside("      1000       5000          1\n"), None);
        assert_eq!(
            root_of(std::process::id()),
            outside(&fs::read_to_string("/proc/self/uid_map").unwrap()).unwrap_or(0)
        );
    }
}
