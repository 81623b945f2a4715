//! A VM for containers: its configuration, its monitor as a process, and the agent's greeting.
//!
//! The monitor is this program once more, with a configuration file; so the two share nothing but sockets, and whatever a
//! guest does to its monitor stays there.
#![allow(unsafe_code)] // prctl(2) between fork(2) and execve(2)

mod refusal;
mod sights;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use protocol::VERSION;
use protocol::message::{Done, Hello, Order, Setup};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal};
use serde_json::{Value, json};
use thiserror::Error;

use self::refusal::refusal;
pub use self::sights::{SPARE, SPARE_SHARES, Share, Sights, share_tag, spare, spare_volume};
use crate::hostgroup::HostGroup;
use crate::kernel::Kernel;
use crate::modules::Needs;
use crate::parts::Parts;
use crate::room::Room;
use crate::session::{Session, SessionError};

/// Name of the partition with the runtime.
const RUNTIME: &str = "runtime";
/// Files of the VM's folder: the monitor's configuration, what the console shows, what the monitor says.
const CONFIG: &str = "vm.json";
const CONSOLE: &str = "console";
const ERRORS: &str = "errors";
/// Most bytes of the console's end that an error shows.
const CONSOLE_END: usize = 2000;

/// What may be wrong with a kernel that comes without modules.
const BUILT_IN: &str = "; a kernel with drivers as modules takes --modules /lib/modules/VERSION";

/// How long an agent may take to call: far more than any VM takes, also one in a VM.
const GREETING: Duration = Duration::from_secs(300);

/// What a VM for containers shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmWishes {
    /// The program that is the monitor: this one.
    pub program: PathBuf,
    /// Where its folder is made: the user's runtime directory.
    pub room: PathBuf,
    /// A Linux kernel with virtio-blk, virtio-vsock, EROFS and overlayfs, built in or as modules.
    pub kernel: Kernel,
    /// MiB of memory.
    pub mem_size_mib: u64,
    /// Virtual CPUs.
    pub vcpu_count: u64,
    /// Its name for `vmm ctl` and `vmm ps`, by which it has an API; none: neither.
    pub id: Option<String>,
    /// The host name.
    pub hostname: String,
    /// What it sees of the host.
    pub sights: Sights,
    /// Disks for images and volumes that come later, of each kind: [`spare`] and [`spare_volume`] name them.
    pub spare: usize,
    /// Shares for directories that come later: [`share_tag`] counts on from those that it sees already.
    pub spare_shares: usize,
}

impl VmWishes {
    /// What its kernel must be able to do.
    pub fn needs(&self) -> Needs {
        Needs {
            disks: self.spare > 0 || !self.sights.volumes.is_empty() || self.sights.writable.is_some(),
            shares: !self.sights.shares.is_empty(),
            later_shares: self.spare_shares > 0,
            network: self.sights.network.is_some(),
        }
    }
}

/// The cache type of a disk whose contents nobody wants after the VM's end.
const UNSAFE: &str = "Unsafe";

/// The end of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The VM has ended.
    Ended,
    /// The other file can be read, or has been hung up.
    Other,
    /// It took too long.
    TooLong,
}

/// Why there is no VM.
#[derive(Debug, Error)]
pub enum VmError {
    /// The host refuses something.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// The monitor did not start the VM, and said why.
    #[error("the VM was not started: {0}")]
    Refused(String),
    /// The monitor ended before the agent was there.
    #[error("the VM ended ({status}) before its agent was there{hint}{console}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// What may help, after a semicolon.
        hint: &'static str,
        /// What stood on its console, with a newline before it.
        console: String,
    },
    /// The agent does not call.
    #[error("the agent in the VM did not call within {} s{}", GREETING.as_secs(), .0)]
    Silent(String),
    /// The agent is of another version.
    #[error("the agent in the VM speaks version {0} of the protocol, this program {VERSION}: they come together")]
    Version(u32),
    /// The agent could not do its part.
    #[error("the agent in the VM: {0}")]
    Agent(String),
    /// The conversation failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// A VM that runs. Dropped, it is killed; [`Vm::power_off`] is the friendly way.
#[derive(Debug)]
pub struct Vm {
    monitor: Child,
    /// Dropped when the monitor has ended.
    group: Option<HostGroup>,
    folder: Room,
    /// What the guest writes goes to files of the host.
    writes: bool,
}

impl Vm {
    /// Starts it, and waits for its agent.
    pub fn start(wishes: &VmWishes, parts: &Parts) -> Result<Self, VmError> {
        let doing = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| VmError::Io(what, error)
        };
        let making = format!("make a folder for the VM in {}", wishes.room.display());
        let folder = Room::make(&wishes.room).map_err(doing(&making))?;
        let empty = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, [0; 512]).map_err(doing("write an empty disk")).map(|()| path)
        };
        let volumes = (0..wishes.spare).map(|number| empty(&spare_volume(number))).collect::<Result<Vec<_>, _>>()?;
        let config = config(wishes, parts, folder.path(), &empty("empty")?, &volumes);
        let file = folder.path().join(CONFIG);
        fs::write(&file, config.to_string()).map_err(doing("write the VM's configuration"))?;
        let hello = folder.path().join(format!("vsock_{}", protocol::PORT));
        let listening = UnixListener::bind(&hello).map_err(doing("listen for the agent"))?;
        let console = File::create(folder.path().join(CONSOLE)).map_err(doing("write the VM's console"))?;
        let errors = File::create(folder.path().join(ERRORS)).map_err(doing("write what the monitor says"))?;
        let mut command = Command::new(&wishes.program);
        command.arg("--config").arg(&file);
        command.args(wishes.id.iter().flat_map(|id| ["--id", id]));
        command.stdin(Stdio::null()).stdout(console).stderr(errors).process_group(0);
        dies_with_us(&mut command);
        let group = HostGroup::make(folder.path(), wishes.mem_size_mib, wishes.vcpu_count);
        let monitor = command.spawn().map_err(doing("start the monitor"))?;
        let group = group.filter(|group| group.take(monitor.id()).is_some());
        let mut vm = Self { monitor, group, folder, writes: writes(&config) };
        let stream = vm.greeted(&listening, wishes)?;
        vm.set_up(stream, wishes)?;
        Ok(vm)
    }

    /// The socket that leads to the agent.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("vsock")
    }

    /// Has everything written to the disks and the VM switched off. One that writes nowhere is just ended.
    pub fn power_off(mut self) -> Result<(), VmError> {
        if !self.writes {
            return Ok(());
        }
        let mut session = Session::call(&self.socket())?;
        session.say(&Order::PowerOff)?;
        let _ = session.message::<Done>(); // the VM may be gone before it is heard
        self.monitor.wait().map_err(|error| VmError::Io("wait for the monitor".to_owned(), error))?;
        Ok(())
    }

    /// The image of the disk [`spare_volume`] while it has none of its own.
    pub fn spare_image(&self, number: usize) -> PathBuf {
        self.folder.path().join(spare_volume(number))
    }

    /// What stands at the end of its console and what the monitor said, after a newline.
    pub fn console(&self) -> String {
        let texts = [CONSOLE, ERRORS].map(|name| self.end_of(name));
        let text = texts.join("\n");
        let text = text.trim();
        if text.is_empty() { String::new() } else { format!("; its console:\n{text}") }
    }

    /// The end of a file of the VM's folder.
    fn end_of(&self, name: &str) -> String {
        let text = fs::read(self.folder.path().join(name)).unwrap_or_default();
        let end = text.get(text.len().saturating_sub(CONSOLE_END)..).unwrap_or_default();
        String::from_utf8_lossy(end).trim().to_owned()
    }

    /// Waits for the VM's end, or for another file, or so long.
    pub fn wait_or(&mut self, other: BorrowedFd<'_>, most: Option<Duration>) -> Result<Waited, VmError> {
        let waiting = |error: io::Error| VmError::Io("wait for the VM".to_owned(), error);
        let monitor = pidfd(&self.monitor).map_err(waiting)?;
        let most = most.map(Timespec::try_from).transpose().map_err(|error| waiting(io::Error::other(error)))?;
        loop {
            let mut watched = [
                PollFd::from_borrowed_fd(other, PollFlags::IN),
                PollFd::from_borrowed_fd(monitor.as_fd(), PollFlags::IN),
            ];
            match poll(&mut watched, most.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                done => done.map_err(|error| waiting(error.into()))?,
            };
            let [other, monitor] = watched.map(|one| !one.revents().is_empty());
            return Ok(match (other, monitor) {
                (true, _) => Waited::Other,
                (false, true) => Waited::Ended,
                (false, false) => Waited::TooLong,
            });
        }
    }

    /// Waits for the agent, or for the monitor's end.
    fn greeted(&mut self, listening: &UnixListener, wishes: &VmWishes) -> Result<UnixStream, VmError> {
        let waiting = |error: io::Error| VmError::Io("wait for the agent".to_owned(), error);
        match self.wait_or(listening.as_fd(), Some(GREETING))? {
            Waited::Other => listening.accept().map(|(stream, _)| stream).map_err(waiting),
            Waited::TooLong => Err(VmError::Silent(self.console())),
            Waited::Ended => {
                let status = self.monitor.wait().map_err(waiting)?;
                let config = self.folder.path().join(CONFIG);
                let hint = if wishes.kernel.modules.is_none() { BUILT_IN } else { "" };
                if let Some(why) = refusal(&self.end_of(CONSOLE), &self.end_of(ERRORS), &config, hint) {
                    return Err(why);
                }
                Err(VmError::Ended { status, hint, console: self.console() })
            }
        }
    }

    fn set_up(&self, stream: UnixStream, wishes: &VmWishes) -> Result<(), VmError> {
        let mut session = Session::new(stream);
        let hello: Hello = session.message()?;
        if hello.version != VERSION {
            return Err(VmError::Version(hello.version));
        }
        session.say(&Setup {
            version: VERSION,
            hostname: wishes.hostname.clone(),
            runtime: RUNTIME.to_owned(),
            network: wishes.sights.network.as_ref().map(|network| network.told.clone()),
        })?;
        match session.message()? {
            Done::Ok => Ok(()),
            Done::Failed(failure) => Err(VmError::Agent(failure.why)),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let ending = pidfd(&self.monitor);
        let _ = self.monitor.kill();
        // The kernel takes tens of milliseconds to clear up after a VM. Whoever may want its files next waits for that.
        if self.writes {
            let _ = self.monitor.wait();
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

/// The monitor's configuration.
fn config(wishes: &VmWishes, parts: &Parts, folder: &Path, empty: &Path, volumes: &[PathBuf]) -> Value {
    let partition = |(name, path): (&str, &Path)| json!({"name": name, "path_on_host": path});
    let layers = wishes.sights.layers.iter().map(|(name, path)| (name.as_str(), path.as_path()));
    let all: Vec<Value> = std::iter::once((RUNTIME, parts.runtime.as_path())).chain(layers).map(partition).collect();
    let drive = |id: String, partitions: Vec<Value>| json!({"drive_id": id, "is_root_device": false, "is_read_only": true, "partitions": partitions});
    let spares = (0..wishes.spare).map(|number| drive(spare(number), vec![partition(("empty", empty))]));
    let kept = wishes.sights.volumes.iter().map(|(_, path)| path).chain(volumes).map(|path| (path, "Writeback"));
    // What the container loses anyway need not reach the host's disk.
    let lost = wishes.sights.writable.iter().map(|path| (path, UNSAFE));
    let volumes = kept.chain(lost).enumerate().map(|(number, (path, cache))| {
        json!({"drive_id": spare_volume(number), "is_root_device": false, "path_on_host": path, "cache_type": cache})
    });
    let drives: Vec<Value> = std::iter::once(drive("image".to_owned(), all)).chain(spares).chain(volumes).collect();
    let tag = |number| json!({"tag": share_tag(number)});
    let shares = wishes.sights.shares.iter().enumerate().map(|(number, share)| share.given(&share_tag(number)));
    let seen = wishes.sights.shares.len();
    let shares: Vec<Value> = shares.chain((seen..seen + wishes.spare_shares).map(tag)).collect();
    let interfaces: Vec<&Value> = wishes.sights.network.iter().map(|network| &network.interface).collect();
    json!({
        "boot-source": {
            "kernel_image_path": wishes.kernel.path, "initrd_path": parts.initrd,
            "boot_args": "console=ttyS0 quiet panic=-1 rdinit=/init",
        },
        "machine-config": {"vcpu_count": wishes.vcpu_count, "mem_size_mib": wishes.mem_size_mib},
        "drives": drives,
        "shares": shares,
        "network-interfaces": interfaces,
        "vsock": {"guest_cid": 3, "uds_path": folder.join("vsock")},
    })
}

/// Whether a VM of this configuration writes to files of the host that are wanted after its end.
fn writes(config: &Value) -> bool {
    let of = |kind: &str| config.get(kind).and_then(Value::as_array).into_iter().flatten();
    let mut drives = of("drives").filter(|drive| drive.get("cache_type").is_none_or(|cache| cache != UNSAFE));
    let kept = |one: &Value| one.get("is_read_only") != Some(&Value::Bool(true));
    drives.any(kept) || of("shares").chain(of("pmem")).any(kept)
}

/// The monitor shall not outlive this process, however that ends.
fn dies_with_us(command: &mut Command) {
    let tell = || set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from);
    // SAFETY: the closure makes one system call, which is async-signal-safe; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(tell) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_can_write_is_switched_off() {
        let drive = |read_only: Value| json!({"drives": [{"is_read_only": true}, {"is_read_only": read_only}]});
        assert!(!writes(&drive(true.into())));
        assert!(writes(&drive(false.into())) && writes(&drive(Value::Null)));
        assert!(!writes(&json!({"drives": [{"is_read_only": false, "cache_type": "Unsafe"}]})));
        assert!(writes(&json!({"drives": [{"is_read_only": false, "cache_type": "Writeback"}]})));
        assert!(writes(&json!({"drives": [], "shares": [{"tag": "t"}]})));
        assert!(!writes(&json!({})));
    }
}
