//! A container's own users, for one more process in it. libcontainer lets that into all namespaces of the container but
//! this one, so it would be the VM's root: here the runtime enters it first, and the library finds itself there.
#![allow(unsafe_code)] // setns(2), setresuid(2), prctl(2)

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use libcontainer::container::Container;
use libcontainer::error::LibcontainerError;
use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Spec};

/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Becomes root among the container's users, where it has its own. The process is in the container's control group then: it
/// could not go there any more.
pub fn enter(container: &Container) -> Result<(), LibcontainerError> {
    let spec = Spec::load(container.bundle().join("config.json"))?;
    let Some(linux) = spec.linux() else { return Ok(()) };
    let namespaces = linux.namespaces().iter().flatten();
    if !namespaces.into_iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User) {
        return Ok(());
    }
    let pid = container.pid().ok_or_else(|| fault("the container has no process"))?;
    let group = linux.cgroups_path().as_ref().and_then(|path| path.strip_prefix("/").ok());
    let group = group.ok_or_else(|| fault("the container has no control group"))?;
    let done = fs::write(Path::new(CGROUPS).join(group).join("cgroup.procs"), "0")
        .and_then(|()| become_root(&File::open(format!("/proc/{pid}/ns/user"))?));
    done.map_err(|error| fault(&format!("enter the container's namespace of users: {error}")))
}

fn become_root(namespace: &File) -> io::Result<()> {
    let good = |done: libc::c_int| if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: a descriptor that is open across the call; this process has one thread, as setns(2) wants for this kind.
    good(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER) })?;
    // SAFETY: numbers only, and an empty list of groups.
    good(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: numbers only.
    good(unsafe { libc::setresgid(0, 0, 0) })?;
    // SAFETY: numbers only.
    good(unsafe { libc::setresuid(0, 0, 0) })?;
    // Its own files in /proc are root's of the VM after these changes, and the library writes to them. Nobody in the
    // container sees this process; the one that goes in is made undumpable again by the library.
    // SAFETY: numbers only.
    good(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) })
}

fn fault(why: &str) -> LibcontainerError {
    LibcontainerError::Other(why.to_owned())
}
