//! A network namespace with a file (network_namespaces(7)): made before there is a process for it.
#![allow(unsafe_code)] // unshare(2)

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::apart::apart;
use crate::system::OWN;
use crate::{Doing, Fault};

/// A namespace. Dropped, it ends when no process is in it any more.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: File,
}

impl Namespace {
    /// Makes one for the container `id`; or takes the one of a file.
    pub fn make(id: &str, made: Option<&Path>) -> Result<Self, Fault> {
        let folder = Path::new(OWN).join("net");
        let path = folder.join(id);
        fs::create_dir_all(&folder).doing(|| format!("make {}", folder.display()))?;
        fs::write(&path, "").doing(|| format!("make {}", path.display()))?;
        let keep = |from: &Path| {
            mount_bind(from, &path).doing(|| "keep a network namespace".to_owned())?;
            File::open(&path).doing(|| "open a network namespace".to_owned())
        };
        let new = || {
            // SAFETY: NEWNET changes which network this thread alone sees; descriptors stay shared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .doing(|| "make a network namespace (has this kernel CONFIG_NET_NS?)".to_owned())?;
            keep(Path::new("/proc/thread-self/ns/net"))
        };
        let file = made.map_or_else(|| apart(new), keep).inspect_err(|_| forget(&path))?;
        Ok(Self { path, file })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same as a descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Does something in it.
    pub fn enter<T: Send>(&self, what: impl FnOnce() -> Result<T, Fault> + Send) -> Result<T, Fault> {
        apart(|| {
            move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network))
                .doing(|| "enter a network namespace".to_owned())?;
            what()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        forget(&self.path);
    }
}

fn forget(path: &Path) {
    let _ = unmount(path, UnmountFlags::DETACH);
    let _ = fs::remove_file(path);
}
