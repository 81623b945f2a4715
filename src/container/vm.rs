//! A VM for containers: its configuration, its monitor as a process, and the agent's greeting.
//!
//! The monitor is this program once more, which reads its configuration from a pipe; so the two share nothing but that and
//! sockets, and whatever a guest does to its monitor stays there.

mod greeting;
mod monitor;
mod refusal;
mod saved;
mod sights;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use protocol::message::{Done, Order};
use protocol::{RUNTIME, VERSION};
use serde_json::{Value, json};
use thiserror::Error;

use self::greeting::set_up;
pub use self::monitor::{Monitor, MonitorWishes};
use self::refusal::refusal;
pub use self::saved::Saved;
pub use self::sights::{SPARE, SPARE_SHARES, Share, Sights, share_tag, spare, spare_volume};
use crate::document::LAYERS_MAX;
use crate::kernel::Kernel;
use crate::modules::Needs;
use crate::parts::Parts;
use crate::session::{Session, SessionError};

/// What may be wrong with a kernel that comes without modules.
const BUILT_IN: &str = "; a kernel with drivers as modules takes --modules /lib/modules/VERSION";

/// How long an agent may take to call: far more than any VM takes, also one in a VM.
const GREETING: Duration = Duration::from_secs(300);
/// And one of a VM that need not boot.
const GOING_ON: Duration = if cfg!(test) { Duration::from_secs(3) } else { Duration::from_secs(30) };

/// What a VM for containers shall be, beside what its monitor was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmWishes {
    /// A Linux kernel with virtio-blk, virtio-vsock, EROFS and overlayfs, built in or as modules.
    pub kernel: Kernel,
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
    #[error("the agent in the VM did not call within {0} s{1}")]
    Silent(u64, String),
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

/// What was tried when the host refused.
fn doing(what: &str) -> impl FnOnce(io::Error) -> VmError {
    let what = what.to_owned();
    move |error| VmError::Io(what, error)
}

/// A VM that runs. Dropped, it is killed; [`Vm::power_off`] is the friendly way.
#[derive(Debug)]
pub struct Vm {
    monitor: Monitor,
}

impl Vm {
    /// Starts it by its monitor, and waits for its agent. It boots, or goes on where one of this kind was saved.
    pub fn start(monitor: Monitor, wishes: &VmWishes, parts: &Parts, saved: Option<&Saved>) -> Result<Self, VmError> {
        // One disk has no partition left for the runtime beside the most layers.
        let apart = saved.is_some() || wishes.sights.layers.len() == LAYERS_MAX;
        let (mut vm, stream) = Self::waiting(monitor, wishes, parts, apart, saved)?;
        let done = set_up(stream, wishes);
        vm.monitor.writes |= done.is_err(); // another may be started in its place
        done.map(|()| vm)
    }

    /// Starts one to be saved: it is like what these wishes make, but its disks have no images yet, and its agent waits to be
    /// told what the VM shall be, for as long as the connection is there.
    pub fn blank(monitor: Monitor, wishes: &VmWishes, parts: &Parts) -> Result<(Self, UnixStream), VmError> {
        let folder = monitor.folder();
        let disk = |number: usize| empty_disk(folder, &format!("blank-{number}"));
        let kept = &wishes.sights;
        let volumes = kept.volumes.iter().enumerate().map(|(number, (name, _))| Ok((name.clone(), disk(number)?)));
        let sights = Sights {
            layers: Vec::new(),
            shares: Vec::new(),
            volumes: volumes.collect::<Result<_, VmError>>()?,
            writable: kept.writable.as_ref().map(|_| disk(kept.volumes.len())).transpose()?,
            network: kept.network.clone(),
        };
        let (mut vm, stream) = Self::waiting(monitor, &VmWishes { sights, ..wishes.clone() }, parts, true, None)?;
        vm.monitor.writes = true; // who made it goes on, and has no use for a process that waits to be waited for
        Ok((vm, stream))
    }

    fn waiting(
        mut monitor: Monitor,
        wishes: &VmWishes,
        parts: &Parts,
        apart: bool,
        saved: Option<&Saved>,
    ) -> Result<(Self, UnixStream), VmError> {
        let folder = monitor.folder();
        let volumes = (0..wishes.spare).map(|number| empty_disk(folder, &spare_volume(number)));
        let volumes = volumes.collect::<Result<Vec<_>, _>>()?;
        let empty = empty_disk(folder, "empty")?;
        let mut config = config(monitor.wishes(), wishes, parts, folder, (&empty, &volumes), apart);
        if let Some(saved) = saved {
            saved.continued(&mut config);
        }
        let hello = folder.join(format!("vsock_{}", protocol::PORT));
        let listening = UnixListener::bind(&hello).map_err(doing("listen for the agent"))?;
        monitor.writes = writes(&config);
        monitor.configure(&config)?;
        let mut vm = Self { monitor };
        let most = if saved.is_some() { GOING_ON } else { GREETING };
        match vm.greeted(&listening, wishes, most) {
            Ok(stream) => Ok((vm, stream)),
            Err(why) => {
                vm.monitor.writes = true; // another may be started in its place
                Err(why)
            }
        }
    }

    /// The API's socket of a VM whose monitor was asked for one.
    pub fn api(&self) -> PathBuf {
        self.monitor.api()
    }

    /// The socket that leads to the agent.
    pub fn socket(&self) -> PathBuf {
        self.monitor.folder().join("vsock")
    }

    /// Has everything written to the disks and the VM switched off. One that writes nowhere is just ended.
    pub fn power_off(mut self) -> Result<(), VmError> {
        if !self.monitor.writes {
            return Ok(());
        }
        let mut session = Session::call(&self.socket())?;
        session.say(&Order::PowerOff)?;
        let _ = session.message::<Done>(); // the VM may be gone before it is heard
        self.monitor.wait().map_err(doing("wait for the monitor"))?;
        Ok(())
    }

    /// The image of the disk [`spare_volume`] while it has none of its own.
    pub fn spare_image(&self, number: usize) -> PathBuf {
        self.monitor.folder().join(spare_volume(number))
    }

    /// What stands at the end of its console and what the monitor said, after a newline.
    pub fn console(&self) -> String {
        let texts = [self.monitor.console(), self.monitor.errors()];
        let text = texts.join("\n");
        let text = text.trim();
        if text.is_empty() { String::new() } else { format!("; its console:\n{text}") }
    }

    /// Waits for the VM's end, or for another file, or so long.
    pub fn wait_or(&self, other: BorrowedFd<'_>, most: Option<Duration>) -> Result<Waited, VmError> {
        self.monitor.wait_or(other, most).map_err(doing("wait for the VM"))
    }

    /// Waits for the agent, which has as long for each word, or for the monitor's end.
    fn greeted(&mut self, listening: &UnixListener, wishes: &VmWishes, most: Duration) -> Result<UnixStream, VmError> {
        const WAITING: &str = "wait for the agent";
        match self.wait_or(listening.as_fd(), Some(most))? {
            Waited::Other => {
                let (stream, _) = listening.accept().map_err(doing(WAITING))?;
                stream.set_read_timeout(Some(most)).map_err(doing(WAITING))?;
                Ok(stream)
            }
            Waited::TooLong => Err(VmError::Silent(most.as_secs(), self.console())),
            Waited::Ended => {
                let status = self.monitor.wait().map_err(doing(WAITING))?;
                let hint = if wishes.kernel.modules.is_none() { BUILT_IN } else { "" };
                if let Some(why) = refusal(&self.monitor.console(), &self.monitor.errors(), hint) {
                    return Err(why);
                }
                Err(VmError::Ended { status, hint, console: self.console() })
            }
        }
    }
}

/// Makes a disk of one sector, which waits for an image.
fn empty_disk(folder: &Path, name: &str) -> Result<PathBuf, VmError> {
    let path = folder.join(name);
    fs::write(&path, [0; 512]).map_err(doing("write an empty disk")).map(|()| path)
}

/// The monitor's configuration. The runtime is on a disk `apart` from the layers, or on the same.
fn config(
    machine: &MonitorWishes,
    wishes: &VmWishes,
    parts: &Parts,
    folder: &Path,
    (empty, volumes): (&Path, &[PathBuf]),
    apart: bool,
) -> Value {
    let partition = |(name, path): (&str, &Path)| json!({"name": name, "path_on_host": path});
    let layers = wishes.sights.layers.iter().map(|(name, path)| partition((name, path)));
    let (mut image, runtime) = (layers.collect::<Vec<_>>(), partition((RUNTIME, &parts.runtime)));
    let drive = |id: String, partitions: Vec<Value>| json!({"drive_id": id, "is_root_device": false, "is_read_only": true, "partitions": partitions});
    let mut drives = Vec::new();
    match apart {
        true => drives.push(drive(RUNTIME.to_owned(), vec![runtime])),
        false => image.insert(0, runtime),
    }
    if image.is_empty() {
        image.push(partition(("empty", empty)));
    }
    drives.push(drive("image".to_owned(), image));
    let spares = (0..wishes.spare).map(|number| drive(spare(number), vec![partition(("empty", empty))]));
    let kept = wishes.sights.volumes.iter().map(|(_, path)| path).chain(volumes).map(|path| (path, "Writeback"));
    // What the container loses anyway need not reach the host's disk.
    let lost = wishes.sights.writable.iter().map(|path| (path, UNSAFE));
    let volumes = kept.chain(lost).enumerate().map(|(number, (path, cache))| {
        json!({"drive_id": spare_volume(number), "is_root_device": false, "path_on_host": path, "cache_type": cache})
    });
    drives.extend(spares.chain(volumes));
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
        "machine-config": {"vcpu_count": machine.vcpu_count, "mem_size_mib": machine.mem_size_mib},
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

#[cfg(test)]
mod tests {
    use super::monitor::tests::one_that_waits;
    use super::*;

    /// A VM of which nothing is asked.
    pub fn plain() -> VmWishes {
        let kernel = Kernel { path: "k".into(), modules: None };
        VmWishes { kernel, hostname: "h".to_owned(), sights: Sights::default(), spare: 0, spare_shares: 0 }
    }

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

    /// A guest that calls and says no word more holds nobody up: another VM can boot.
    #[test]
    fn an_agent_that_says_nothing_is_not_waited_for() {
        let room = tempfile::tempdir().unwrap();
        let monitor = one_that_waits(room.path());
        let socket = monitor.folder().join(format!("vsock_{}", protocol::PORT));
        let calling = std::thread::spawn(move || {
            let pause = || std::thread::sleep(Duration::from_millis(1));
            (0..10_000).find_map(|_| UnixStream::connect(&socket).inspect_err(|_| pause()).ok())
        });
        let wishes = plain();
        let parts = Parts { initrd: "i".into(), runtime: "r".into() };
        let why = Vm::start(monitor, &wishes, &parts, Some(&Saved::at(Path::new("s")))).unwrap_err();
        assert!(matches!(why, VmError::Session(SessionError::Silent)), "{why}");
        assert!(calling.join().unwrap().is_some(), "it called");
    }
}
