//! A VM's monitor as a process, which waits for its configuration: it gets ready while that is still being made.
#![allow(unsafe_code)] // prctl(2) between fork(2) and execve(2)

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal};
use serde_json::Value;

use super::{VmError, Waited, doing};
use crate::hostgroup::HostGroup;
use crate::room::Room;

/// Where it reads its configuration.
pub const CONFIG: &str = "/dev/stdin";
/// Files of the VM's folder: what the console shows, what the monitor says.
const CONSOLE: &str = "console";
const ERRORS: &str = "errors";
/// The API's socket there.
const API: &str = "api";
/// Most bytes of an output's end that an error shows.
const END: usize = 2000;

/// What is known of a VM first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorWishes {
    /// The program that is the monitor: this one.
    pub program: PathBuf,
    /// Where the VM's folder is made: the user's runtime directory.
    pub room: PathBuf,
    /// The VM's name for `vmm ctl` and `vmm ps`, by which it has an API; none: neither.
    pub id: Option<String>,
    /// It has an API at a socket in the VM's folder ([`Monitor::api`]), where it has no name.
    pub has_socket: bool,
    /// MiB of memory.
    pub mem_size_mib: u64,
    /// Virtual CPUs.
    pub vcpu_count: u64,
}

/// The process, and the VM's folder. Dropped, it is killed.
#[derive(Debug)]
pub struct Monitor {
    process: Child,
    /// Dropped when the process has ended.
    group: Option<HostGroup>,
    folder: Room,
    wishes: MonitorWishes,
    /// What the guest writes goes to files of the host.
    pub writes: bool,
}

impl Monitor {
    /// Starts it.
    pub fn start(wishes: MonitorWishes) -> Result<Self, VmError> {
        let making = format!("make a folder for the VM in {}", wishes.room.display());
        let folder = Room::make(&wishes.room).map_err(doing(&making))?;
        let console = File::create(folder.path().join(CONSOLE)).map_err(doing("write the VM's console"))?;
        let errors = File::create(folder.path().join(ERRORS)).map_err(doing("write what the monitor says"))?;
        let mut command = Command::new(&wishes.program);
        command.args(["--config", CONFIG]).args(wishes.id.iter().flat_map(|id| ["--id", id]));
        if wishes.has_socket {
            command.arg("--api-sock").arg(folder.path().join(API));
        }
        command.stdin(Stdio::piped()).stdout(console).stderr(errors).process_group(0);
        dies_with_us(&mut command);
        let group = HostGroup::make(folder.path(), wishes.mem_size_mib, wishes.vcpu_count);
        let process = command.spawn().map_err(doing("start the monitor"))?;
        // Before it has its configuration, by which it may have children.
        let group = group.filter(|group| group.take(process.id()).is_some());
        Ok(Self { process, group, folder, wishes, writes: false })
    }

    /// Tells it its configuration. One that has ended already has said why.
    pub fn configure(&mut self, config: &Value) -> Result<(), VmError> {
        let told = self.process.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(config.to_string().as_bytes()));
        match told {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(doing("tell the monitor what to do")(error)),
            _ => Ok(()),
        }
    }

    /// What it was started with.
    pub const fn wishes(&self) -> &MonitorWishes {
        &self.wishes
    }

    /// The API's socket, where it has one in the VM's folder.
    pub fn api(&self) -> PathBuf {
        self.folder.path().join(API)
    }

    /// The VM's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.process.wait()
    }

    /// Waits for its end, or for another file, or so long.
    pub fn wait_or(&self, other: BorrowedFd<'_>, most: Option<Duration>) -> io::Result<Waited> {
        let ended = pidfd(&self.process)?;
        let most = most.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        loop {
            let mut watched = [
                PollFd::from_borrowed_fd(other, PollFlags::IN),
                PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
            ];
            match poll(&mut watched, most.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                done => done?,
            };
            let [other, ended] = watched.map(|one| !one.revents().is_empty());
            return Ok(match (other, ended) {
                (true, _) => Waited::Other,
                (false, true) => Waited::Ended,
                (false, false) => Waited::TooLong,
            });
        }
    }

    /// The end of what the guest wrote to its console.
    pub fn console(&self) -> String {
        self.end_of(CONSOLE)
    }

    /// The end of what it said itself.
    pub fn errors(&self) -> String {
        self.end_of(ERRORS)
    }

    fn end_of(&self, name: &str) -> String {
        let text = fs::read(self.folder.path().join(name)).unwrap_or_default();
        let end = text.get(text.len().saturating_sub(END)..).unwrap_or_default();
        String::from_utf8_lossy(end).trim().to_owned()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let ending = pidfd(&self.process);
        let _ = self.process.kill();
        // The kernel takes tens of milliseconds to clear up after a VM. Whoever may want its files next waits for that.
        if self.writes {
            let _ = self.process.wait();
        } else if let (Some(group), Ok(ending)) = (self.group.take(), ending) {
            group.end(&ending);
        }
    }
}

/// What tells when this child has ended.
fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// The monitor shall not outlive this process, however that ends.
fn dies_with_us(command: &mut Command) {
    let tell = || set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from);
    // SAFETY: the closure makes one system call, which is async-signal-safe; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(tell) };
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// In the place of a monitor: it reads its configuration, and lives on.
    pub fn one_that_waits(room: &Path) -> Monitor {
        let script = room.join("waits");
        fs::write(&script, "#!/bin/sh\nread line\necho \"$line\" >&2\nexec sleep 1000\n").unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        started(script.to_str().unwrap(), room)
    }

    fn started(program: &str, room: &Path) -> Monitor {
        let (program, room) = (program.into(), room.to_owned());
        Monitor::start(MonitorWishes { program, room, id: None, has_socket: false, mem_size_mib: 64, vcpu_count: 1 })
            .unwrap()
    }

    /// Why it ended is in what it said; that nobody reads the configuration is no fault of its own.
    #[test]
    fn one_that_has_ended_is_told_without_a_fault() {
        let room = tempfile::tempdir().unwrap();
        let mut monitor = started("/bin/true", room.path());
        monitor.wait().unwrap();
        monitor.configure(&Value::String("x".repeat(1 << 20))).unwrap();
        let folder = monitor.folder().to_owned();
        assert!(folder.is_dir());
        drop(monitor);
        assert!(!folder.exists());
    }

    #[test]
    fn one_that_waits_ends_with_its_owner() {
        let room = tempfile::tempdir().unwrap();
        let mut monitor = one_that_waits(room.path());
        let (nothing, _kept) = io::pipe().unwrap();
        assert_eq!(monitor.wait_or(nothing.as_fd(), Some(Duration::ZERO)).unwrap(), Waited::TooLong);
        monitor.configure(&Value::String("words\n".to_owned())).unwrap();
        monitor.writes = true; // so its end is waited for
        let process = PathBuf::from(format!("/proc/{}", monitor.process.id()));
        assert!(process.exists());
        drop(monitor);
        assert!(!process.exists());
    }
}
