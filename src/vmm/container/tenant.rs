//! A tenant's VM, which containers share: how one that wants to run in it finds its keeper, or starts one.
//!
//! The keeper (keeper.rs) is a process of its own. It is asked over a UNIX socket, in frames as the agent is: [`Sights`] says
//! what the container needs to see, [`Joined`] where the agent is. The connection is the container's lease of the VM: when
//! the last one has closed, the VM ends.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ::container::session::Session;
use ::container::vm::Sights;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::detach::{this_program, word_of};
use crate::args::{instance_id, mebibytes};

/// How the name of a tenant's folder begins. No VM's own name (`--id`) has such a sign.
const PREFIX: &str = "tenant@";
/// The file that the keeper holds a lock on, and its socket.
const LOCK: &str = "lock";
const SOCKET: &str = "keeper";
/// How long a keeper may take to come or to go.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(10);
/// Exit status of a keeper that finds another one there.
pub const TAKEN: u8 = 75;

/// What the VM shall be, where it is not there yet.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110)]
pub struct TenantArgs {
    /// Its name
    #[arg(long, value_parser = instance_id)]
    pub name: String,
    /// Its kernel
    #[arg(long)]
    pub kernel: PathBuf,
    /// The folder of its modules
    #[arg(long)]
    pub modules: Option<PathBuf>,
    /// MiB
    #[arg(long, value_parser = mebibytes)]
    pub memory: u64,
    /// Virtual CPUs
    #[arg(long)]
    pub cpus: u64,
    /// What its first container wants of it, as JSON: directories and the network
    #[arg(long)]
    pub sights: String,
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub enum Joined {
    /// The VM sees what it shall.
    Ready {
        /// The socket that leads to the agent.
        socket: PathBuf,
        /// MiB of memory of the VM.
        mem_size_mib: u64,
        /// What it sees.
        seen: Seen,
    },
    /// The VM is about to end: another one is to be started.
    Ending,
    /// It cannot be.
    Refused(String),
}

/// What a VM sees of the host for a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    /// Serial numbers of the disks with its volumes, in their order.
    pub volumes: Vec<String>,
    /// Tags of its directories, in their order.
    pub shares: Vec<String>,
    /// The serial number of the disk for its writable layer, where it has brought one.
    pub writable: Option<String>,
    /// Ports of the host that the VM's network has not.
    pub lacking: Vec<String>,
}

/// A container's place in a tenant's VM, until it is dropped.
#[derive(Debug)]
pub struct Tenancy {
    /// The socket that leads to the agent.
    pub socket: PathBuf,
    /// MiB of memory of the VM.
    pub mem_size_mib: u64,
    /// What it sees.
    pub seen: Seen,
    _lease: Session,
}

/// The folder of a tenant.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// That of this tenant, in the runtime directory.
    pub fn of(runtime: &Path, name: &str) -> Self {
        Self(runtime.join(format!("{PREFIX}{name}")))
    }

    /// The keeper's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join(SOCKET)
    }

    /// Where the keeper writes what it has to say.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Takes the tenant for this process; nothing where another one has it.
    pub fn take(&self) -> io::Result<Option<File>> {
        loop {
            match self.try_take() {
                // Who had it before goes just now, and takes the folder along.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(Some(lock)) if !self.is_here(&lock)? => {}
                done => return done,
            }
        }
    }

    fn try_take(&self) -> io::Result<Option<File>> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(self.0.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether this is the file that others would lock.
    fn is_here(&self, lock: &File) -> io::Result<bool> {
        let ours = lock.metadata()?;
        match self.0.join(LOCK).metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            there => there.map(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        }
    }

    /// Its VM has ended: nothing of it stays. The lock is held; once its file has gone, another one may take the tenant.
    pub fn leave(&self, _lock: &File) {
        for file in [self.socket(), self.log(), self.0.join(LOCK)] {
            let _ = fs::remove_file(file);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// Joins a tenant's VM, which is started where it is not there.
pub fn join(runtime: &Path, args: &TenantArgs, wanted: &Sights) -> Result<Tenancy, String> {
    let folder = Folder::of(runtime, &args.name);
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Ok(stream) = UnixStream::connect(folder.socket()) {
            let mut keeper = Session::new(stream);
            // One that ends meanwhile is as one that says so.
            let answer = keeper.say(wanted).and_then(|()| keeper.message()).unwrap_or(Joined::Ending);
            match answer {
                Joined::Ready { socket, mem_size_mib, seen } => {
                    return Ok(Tenancy { socket, mem_size_mib, seen, _lease: keeper });
                }
                Joined::Refused(why) => return Err(format!("VM {}: {why}", args.name)),
                Joined::Ending => sleep(LOOK),
            }
        } else if !start(args)? {
            sleep(LOOK); // another one has just started or not yet ended
        }
    }
    Err(format!("VM {}: its keeper does not answer at {}", args.name, folder.socket().display()))
}

/// Starts a keeper, and waits until its VM is there; false where another one is there.
fn start(args: &TenantArgs) -> Result<bool, String> {
    let mut command = Command::new(this_program()?);
    command.arg("keep").arg("--name").arg(&args.name).arg("--kernel").arg(&args.kernel);
    command.args(args.modules.iter().flat_map(|folder| [OsStr::new("--modules"), folder.as_os_str()]));
    command.arg("--memory").arg(args.memory.to_string()).arg("--cpus").arg(args.cpus.to_string());
    command.arg("--sights").arg(&args.sights).stdin(Stdio::null());
    match word_of(command, "the VM's keeper")? {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Some(TAKEN.into()) => Ok(false),
        Err(status) => Err(format!("VM {} could not be started ({status})", args.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_folder_goes_with_its_keeper_and_is_one_at_a_time() {
        let runtime = tempfile::tempdir().unwrap();
        let folder = Folder::of(runtime.path(), "t");
        let first = folder.take().unwrap().unwrap();
        assert!(folder.take().unwrap().is_none(), "the first one has it");
        // One that has opened the file just before that goes holds a lock of nothing.
        let late = File::open(folder.0.join(LOCK)).unwrap();
        folder.leave(&first);
        assert_eq!(runtime.path().read_dir().unwrap().count(), 0);
        drop(first);
        late.try_lock().unwrap();
        assert!(!folder.is_here(&late).unwrap());
        let second = folder.take().unwrap().unwrap();
        assert!(!folder.is_here(&late).unwrap() && folder.is_here(&second).unwrap());
    }
}
