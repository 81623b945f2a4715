//! The keeper of a tenant's VM: a process without a terminal that has the VM and lets containers into it (tenant.rs).
//!
//! An image's layers come into a running VM by a disk that waits for them: the VM has some whose one partition is empty, and
//! the monitor's API gives one of them the layers that the VM does not see yet. The agent reads the new partition table
//! when it looks for a layer. Named volumes and disks for writable layers come likewise; one of the latter is free again when
//! its container has gone and the guest has unmounted it, and so is a share (directories.rs). One thread for each container;
//! the main one waits for the VM's end.

mod directories;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ::container::kernel::Kernel;
use ::container::network::VmNetwork;
use ::container::parts::Parts;
use ::container::session::Session;
use ::container::store::Store;
use ::container::vm::{Monitor, MonitorWishes, SPARE, SPARE_SHARES, Sights, Vm, VmWishes, Waited, spare, spare_volume};
use api::client;
use protocol::message::{Order, VolumeSource};
use serde_json::{Value, json};

use self::directories::Directories;
use super::detach::{leave_terminal, ready, this_program};
use super::run::failed;
use super::tenant::{Folder, Joined, Seen, TAKEN, TenantArgs};
use crate::runtime::Runtime;

/// How long an agent may take to say that a disk or a share is free; it waits 15 s itself.
pub const LETS_GO: Duration = Duration::from_secs(20);
/// How long a VM waits for its first container.
const UNUSED: Duration = Duration::from_secs(60);

/// The VM as it is seen by those who let containers into it.
struct Kept {
    /// The agent's socket, and the API's.
    agent: PathBuf,
    api: PathBuf,
    mem_size_mib: u64,
    /// What the disks hold that wait.
    spares: Vec<PathBuf>,
    directories: Directories,
    /// What it was started with.
    network: Option<VmNetwork>,
    inside: Mutex<Inside>,
    /// Hung up when the VM shall end.
    end: Mutex<Option<io::PipeWriter>>,
}

/// What is in the VM.
#[derive(Default)]
struct Inside {
    /// Layers that it sees, by the names of their partitions.
    layers: BTreeSet<String>,
    /// Disks with layers.
    disks: usize,
    /// What the disks hold that can be written to.
    writable: [Holds; SPARE],
    containers: usize,
    is_ending: bool,
}

/// What a disk holds that can be written to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Holds {
    /// It waits.
    #[default]
    Nothing,
    /// The volume of this name, until the VM's end.
    Volume(String),
    /// A container's writable layer.
    Layer,
}

/// Has a VM until its last container has gone.
pub fn keep(args: &TenantArgs) -> ExitCode {
    match begin(args) {
        Ok(None) => ExitCode::from(TAKEN),
        Ok(Some(status)) => status,
        Err(why) => failed(&why),
    }
}

/// Nothing where another keeper is there.
fn begin(args: &TenantArgs) -> Result<Option<ExitCode>, String> {
    leave_terminal()?;
    let runtime = super::home::runtime_directory()?;
    let folder = Folder::of(&runtime, &args.name);
    let Some(lock) = folder.take().map_err(|error| format!("take the VM's name {}: {error}", args.name))? else {
        return Ok(None);
    };
    let done = has_vm(args, runtime, &folder);
    // What it has said after its user has gone stays there to be read.
    if done.is_ok() || !folder.log().exists() {
        folder.leave(&lock);
    }
    done.map(|()| Some(ExitCode::SUCCESS))
}

/// From the start of the VM to its end.
fn has_vm(args: &TenantArgs, runtime: PathBuf, folder: &Folder) -> Result<(), String> {
    let store = Store::of_this_user().map_err(|error| error.to_string())?;
    let api =
        Runtime::of_this_user().ok_or("a VM with a name wants XDG_RUNTIME_DIR or VMM_RUNTIME_DIR")?.socket(&args.name);
    let sights: Sights = serde_json::from_str(&args.sights).map_err(|error| format!("--sights: {error}"))?;
    let network = sights.network.clone();
    // The directories of its first container come as those of all others do.
    let spare_shares = SPARE_SHARES + sights.shares.len();
    let monitor = Monitor::start(MonitorWishes {
        program: this_program()?,
        room: runtime,
        id: Some(args.name.clone()),
        has_socket: false,
        mem_size_mib: args.memory,
        vcpu_count: args.cpus,
    });
    let monitor = monitor.map_err(|error| error.to_string())?;
    let wishes = VmWishes {
        kernel: Kernel { path: args.kernel.clone(), modules: args.modules.clone() },
        hostname: args.name.clone(),
        sights: Sights { shares: Vec::new(), ..sights },
        spare: SPARE,
        spare_shares,
    };
    let parts = Parts::ready(&store.path().join("guest"), &wishes.kernel, wishes.needs());
    let parts = parts.map_err(|error| error.to_string())?;
    let vm = Vm::start(monitor, &wishes, &parts, None).map_err(|error| error.to_string())?;
    let (ended, end) = io::pipe().map_err(|error| format!("make a pipe: {error}"))?;
    let kept = Arc::new(Kept {
        agent: vm.socket(),
        directories: Directories::new(spare_shares, vm.socket(), api.clone()),
        api,
        mem_size_mib: args.memory,
        spares: (0..SPARE).map(|number| vm.spare_image(number)).collect(),
        network,
        inside: Mutex::default(),
        end: Mutex::new(Some(end)),
    });
    let _ = std::fs::remove_file(folder.socket()); // of a keeper that was killed: the lock is this one's
    let listening = UnixListener::bind(folder.socket())
        .map_err(|error| format!("listen at {}: {error}", folder.socket().display()))?;
    let serving = Arc::clone(&kept);
    thread::Builder::new()
        .name("joins".to_owned())
        .spawn(move || serve(&listening, &serving))
        .map_err(|error| format!("start a thread: {error}"))?;
    ready("ready", &folder.log()).map_err(|error| format!("leave the user's streams: {error}"))?;
    let waited = loop {
        let waited = vm.wait_or(ended.as_fd(), Some(UNUSED)).map_err(|error| error.to_string())?;
        if waited != Waited::TooLong || kept.end_unused() {
            break waited;
        }
    };
    let _ = std::fs::remove_file(folder.socket());
    if waited == Waited::Ended {
        return Err(format!("VM {} has ended by itself{}", args.name, vm.console()));
    }
    vm.power_off().map_err(|error| error.to_string())
}

fn serve(listening: &UnixListener, kept: &Arc<Kept>) {
    for stream in listening.incoming().flatten() {
        let kept = Arc::clone(kept);
        let lease = move || {
            let mut session = Session::new(stream);
            let Ok(join) = session.message::<Sights>() else { return };
            let answer = kept.let_in(&join);
            let told = session.say(&answer).is_ok();
            // Until the other side has gone.
            while told && matches!(session.hear(), Ok(Some(_))) {}
            if let Joined::Ready { seen, .. } = answer {
                kept.let_out(seen);
            }
        };
        if let Err(error) = thread::Builder::new().name("container".to_owned()).spawn(lease) {
            eprintln!("vmm: start a thread: {error}");
        }
    }
}

/// Has the guest let go of a disk or a share.
fn release(agent: &Path, source: VolumeSource) -> Result<(), String> {
    Session::have_done(agent, &Order::Release(source), LETS_GO).map_err(|error| error.to_string())
}

/// Has the monitor change a part of the VM.
fn change(api: &Path, part: &str, body: &Value) -> Result<(), String> {
    client::call(api, "PATCH", part, Some(body)).map(drop).map_err(|error| error.to_string())
}

impl Kept {
    /// Lets a container in.
    fn let_in(&self, wanted: &Sights) -> Joined {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if inside.is_ending {
            return Joined::Ending;
        }
        match self.show(&mut inside, wanted) {
            Err(why) => Joined::Refused(why),
            Ok(seen) => {
                inside.containers += 1;
                Joined::Ready { socket: self.agent.clone(), mem_size_mib: self.mem_size_mib, seen }
            }
        }
    }

    /// Has the VM see what a container wants to see.
    fn show(&self, inside: &mut Inside, wanted: &Sights) -> Result<Seen, String> {
        let lacking = self.lacks_of_network(wanted.network.as_ref())?;
        self.show_layers(inside, &wanted.layers)?;
        let volumes = self.show_volumes(inside, &wanted.volumes)?;
        let shares = self.directories.show(&wanted.shares)?;
        let writable = wanted.writable.as_ref().map(|image| self.show_disk(inside, Holds::Layer, image)).transpose();
        let writable = writable.inspect_err(|_| self.directories.leave(&shares))?;
        Ok(Seen { volumes, shares, writable, lacking })
    }

    /// A VM has a network from its start or not at all. Ports of the host that it lacks, the container's owner publishes.
    fn lacks_of_network(&self, wanted: Option<&VmNetwork>) -> Result<Vec<String>, String> {
        match (&self.network, wanted) {
            (_, None) => Ok(Vec::new()),
            (None, Some(_)) => Err("it runs without a network, so this container takes --network none".to_owned()),
            (Some(own), Some(wanted)) => own.lacks(wanted).map_err(|error| error.to_string()),
        }
    }

    fn show_layers(&self, inside: &mut Inside, wanted: &[(String, PathBuf)]) -> Result<(), String> {
        let new: Vec<_> = wanted.iter().filter(|(name, _)| !inside.layers.contains(name)).collect();
        if new.is_empty() {
            return Ok(());
        }
        if inside.disks >= SPARE {
            return Err(format!(
                "it has had {SPARE} images, which is all that it can see; end its containers, or use another --vm"
            ));
        }
        let disk = spare(inside.disks);
        let partitions: Vec<Value> =
            new.iter().map(|(name, path)| json!({"name": name, "path_on_host": path})).collect();
        self.change(&disk, &json!({"drive_id": disk, "partitions": partitions}))?;
        inside.disks += 1;
        inside.layers.extend(new.into_iter().map(|(name, _)| name.clone()));
        Ok(())
    }

    /// The disks with these volumes.
    fn show_volumes(&self, inside: &mut Inside, wanted: &[(String, PathBuf)]) -> Result<Vec<String>, String> {
        let mut disks = Vec::new();
        for (name, path) in wanted {
            let holds = Holds::Volume(name.clone());
            disks.push(match inside.writable.iter().position(|disk| *disk == holds) {
                Some(number) => spare_volume(number),
                None => self.show_disk(inside, holds, path)?,
            });
        }
        Ok(disks)
    }

    /// Gives an image to a disk that waits: its serial number.
    fn show_disk(&self, inside: &mut Inside, holds: Holds, image: &Path) -> Result<String, String> {
        let (number, place) =
            inside.writable.iter_mut().enumerate().find(|(_, disk)| **disk == Holds::Nothing).ok_or_else(|| {
                format!(
                    "it sees {SPARE} disks for named volumes and --storage-opt already, which is all that it can see"
                )
            })?;
        let disk = spare_volume(number);
        self.change(&disk, &json!({"drive_id": disk, "path_on_host": image}))?;
        *place = holds;
        Ok(disk)
    }

    /// Takes the image of a container's writable layer away from its disk, once the guest has let go of it. A disk of
    /// which the guest does not say so stays as it is.
    fn take_back(&self, disk: &str) -> Result<(), String> {
        release(&self.agent, VolumeSource::Disk { serial: disk.to_owned() })?;
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let of_disk = inside.writable.iter_mut().zip(&self.spares).enumerate();
        let Some((_, (place, empty))) = of_disk.into_iter().find(|(number, _)| spare_volume(*number) == disk) else {
            return Ok(());
        };
        self.change(disk, &json!({"drive_id": disk, "path_on_host": empty}))?;
        *place = Holds::Nothing;
        Ok(())
    }

    /// Has the monitor change a disk.
    fn change(&self, disk: &str, body: &Value) -> Result<(), String> {
        change(&self.api, &format!("/drives/{disk}"), body)
    }

    /// Whether nobody has ever come; then nobody will.
    fn end_unused(&self) -> bool {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.is_ending |= inside.containers == 0;
        inside.is_ending
    }

    /// A container has gone, for which the VM saw this; with the last one, the VM goes.
    fn let_out(&self, seen: Seen) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.containers = inside.containers.saturating_sub(1);
        if inside.containers == 0 {
            inside.is_ending = true;
            self.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        let stays = !inside.is_ending;
        drop(inside);
        if stays {
            self.directories.leave(&seen.shares);
        }
        if let Some(disk) = seen.writable.filter(|_| stays)
            && let Err(why) = self.take_back(&disk)
        {
            eprintln!("vmm: take {disk} back: {why}");
        }
    }
}
