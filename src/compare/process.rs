//! A plain process: the image is its root directory, and everything else is the host's. No namespace, no limit, no
//! filter. Whatever it runs has root's rights on this host.
#![allow(unsafe_code)] // chroot(2) between fork(2) and execve(2)

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use rustix::process::{Signal, chdir, chroot, set_parent_process_death_signal};

use crate::host::Host;
use crate::instance::Instance;
use crate::{Doing, Fault};

/// Starts it.
pub fn start(host: &Host, args: &[String], folder: PathBuf) -> Result<Instance, Fault> {
    let (root, env) = (host.root()?, host.env(args)?);
    let root = CString::new(root.as_os_str().as_bytes()).map_err(|_| Fault::Said("a path with a NUL".to_owned()))?;
    let began = Instant::now();
    let mut command = Command::new(args.first().map_or("", String::as_str));
    command.args(args.iter().skip(1)).env_clear().envs(env.iter().filter_map(|entry| entry.split_once('=')));
    let enter = move || -> io::Result<()> {
        chroot(root.as_c_str())?;
        chdir(c"/")?;
        Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
    };
    // SAFETY: the closure makes three system calls, which are async-signal-safe; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) };
    let instance = Instance::spawn(command, began, folder, host.asked.limit);
    instance.doing(|| "start the process".to_owned())
}
