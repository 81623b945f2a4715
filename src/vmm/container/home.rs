//! Where a container runs, a VM of its own or a tenant's, and what the VM sees of the host for it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ::container::digest::Digest;
use ::container::kernel::Kernel;
use ::container::parts::Parts;
use ::container::store::{Ready, Store};
use ::container::vm::{Monitor, MonitorWishes, Share, Sights, Vm, VmError, VmWishes, share_tag, spare_volume};
use ::container::volume::{self, Source, Volume};
use protocol::message::{File, VolumeSource};

use super::detach::this_program;
use super::options::ContainerArgs;
use super::run::complain;
use super::template::{self, Templates};
use super::tenant::{self, Seen, Tenancy, TenantArgs};
use crate::runtime::Runtime;

/// Memory of a VM beside what a container may use, MiB: the kernel, the agent, the runtime.
const OWN_MIB: u64 = 96;
/// Memory of a VM whose container has no limit, MiB.
const USUAL_MIB: u64 = 512;

/// Where a container runs.
pub enum Home {
    /// A VM of its own, which ends with it.
    Own(Box<Vm>),
    /// A tenant's VM.
    Shared(Tenancy),
}

impl Home {
    /// The socket that leads to the agent.
    pub fn socket(&self) -> PathBuf {
        match self {
            Self::Own(vm) => vm.socket(),
            Self::Shared(tenancy) => tenancy.socket.clone(),
        }
    }

    /// What stands at the end of its console, after a newline.
    pub fn console(&self) -> String {
        match self {
            Self::Own(vm) => vm.console(),
            Self::Shared(_) => String::new(),
        }
    }

    /// The container has ended.
    pub fn leave(self) -> Result<(), VmError> {
        match self {
            Self::Own(vm) => vm.power_off(),
            Self::Shared(_) => Ok(()),
        }
    }
}

/// What an order needs to know of the VM.
pub struct Place {
    /// MiB of its memory.
    pub mem_size_mib: u64,
    /// The serial numbers of volumes' disks, by the volumes' names.
    pub volumes: BTreeMap<String, String>,
    /// The tags of directories.
    pub shares: BTreeMap<Share, String>,
    /// The serial number of the disk for the writable layer.
    pub writable: Option<String>,
    /// Ports of the host that its network has not.
    pub lacking: Vec<String>,
}

/// MiB of memory of the VM.
fn mem_size_mib(args: &ContainerArgs) -> u64 {
    let limit = args.memory_limit().map(|bytes| bytes.div_ceil(1 << 20));
    args.vm_memory.unwrap_or(limit.map_or(USUAL_MIB, |limit| limit.saturating_add(OWN_MIB)))
}

/// Where a container shall run.
pub enum Wanted {
    /// In a VM of its own. The monitor becomes ready while the rest is thought about.
    Own(Box<Monitor>),
    /// In the VM of this tenant.
    Shared(String),
}

impl Wanted {
    /// What is asked for.
    pub fn of(args: &ContainerArgs, vcpu_count: u64) -> Result<Self, String> {
        if let Some(tenant) = &args.vm {
            return Ok(Self::Shared(tenant.clone()));
        }
        let mem_size_mib = mem_size_mib(args);
        let (program, room) = (this_program()?, runtime_directory()?);
        let wishes = MonitorWishes { program, room, id: None, has_socket: false, mem_size_mib, vcpu_count };
        Monitor::start(wishes).map(|monitor| Self::Own(Box::new(monitor))).map_err(|error| error.to_string())
    }
}

/// The VM, and the container's place in it.
pub fn home(
    args: &ContainerArgs,
    wanted: Wanted,
    store: &Store,
    kernel: Kernel,
    name: &str,
    sights: Sights,
) -> Result<(Home, Place), String> {
    let monitor = match wanted {
        Wanted::Own(monitor) => *monitor,
        Wanted::Shared(tenant) => return shared(args, tenant, kernel, sights),
    };
    let mem_size_mib = monitor.wishes().mem_size_mib;
    let wishes = VmWishes { kernel, hostname: name.to_owned(), spare: 0, spare_shares: 0, sights };
    let parts = Parts::ready(&store.path().join("guest"), &wishes.kernel, wishes.needs());
    let parts = parts.map_err(|error| error.to_string())?;
    let vm = start(monitor, store, &wishes, &parts, args.templates)?;
    let sights = &wishes.sights;
    let writable = sights.writable.as_ref().map(|_| spare_volume(sights.volumes.len()));
    let shares = sights.shares.iter().cloned().zip((0..).map(share_tag)).collect();
    let volumes = by_names(sights, (0..).map(spare_volume));
    let place = Place { mem_size_mib, volumes, shares, writable, lacking: Vec::new() };
    Ok((Home::Own(Box::new(vm)), place))
}

/// Starts the VM; from a template where there is one.
fn start(
    monitor: Monitor,
    store: &Store,
    wishes: &VmWishes,
    parts: &Parts,
    templates: Templates,
) -> Result<Vm, String> {
    let machine = monitor.wishes().clone();
    let ready = match templates {
        Templates::Auto => template::of(store, &machine, wishes, parts),
        Templates::Never => None,
    };
    let told = |error: VmError| error.to_string();
    match (Vm::start(monitor, wishes, parts, ready.as_ref().map(Ready::files)), ready) {
        (Err(why), Some(ready)) => {
            // Whatever else is wrong is wrong with one that boots, too.
            let vm =
                Monitor::start(machine).and_then(|monitor| Vm::start(monitor, wishes, parts, None)).map_err(told)?;
            complain(&format!("a template was of no use, so the VM has booted: {why}"));
            ready.failed().unwrap_or_else(|error| complain(&error.to_string()));
            Ok(vm)
        }
        (vm, _) => vm.map_err(told),
    }
}

/// A place in a tenant's VM.
fn shared(args: &ContainerArgs, name: String, kernel: Kernel, sights: Sights) -> Result<(Home, Place), String> {
    let first = Sights { shares: sights.shares.clone(), network: sights.network.clone(), ..Sights::default() };
    let first = serde_json::to_string(&first).map_err(|error| format!("start the VM's keeper: {error}"))?;
    let Kernel { path: kernel, modules } = kernel;
    let (memory, cpus) = (mem_size_mib(args), args.vcpu_count()?);
    let wanted = TenantArgs { name, kernel, modules, memory, cpus, sights: first };
    let tenancy = tenant::join(&runtime_directory()?, &wanted, &sights)?;
    let Seen { volumes, shares, writable, lacking } = tenancy.seen.clone();
    let place = Place {
        mem_size_mib: tenancy.mem_size_mib,
        volumes: by_names(&sights, volumes.into_iter()),
        shares: sights.shares.into_iter().zip(shares).collect(),
        writable,
        lacking,
    };
    Ok((Home::Shared(tenancy), place))
}

/// The serial numbers of disks, which are in the order of the volumes, by the volumes' names.
fn by_names(sights: &Sights, disks: impl Iterator<Item = String>) -> BTreeMap<String, String> {
    sights.volumes.iter().map(|(name, _)| name.clone()).zip(disks).collect()
}

/// What the VM shall see. Files go with the order.
pub fn sights(
    store: &Store,
    layers: Vec<(String, PathBuf)>,
    volumes: &[Volume],
    files: &mut Vec<File>,
) -> Result<Sights, String> {
    let mut sights = Sights { layers, ..Sights::default() };
    for volume in volumes {
        match &volume.source {
            Source::Directory(path) => {
                let share = Share { path: path.clone(), read_only: volume.read_only };
                if !sights.shares.contains(&share) {
                    sights.shares.push(share);
                }
            }
            Source::Text(content) => files.push(File { path: volume.path.clone(), content: content.clone() }),
            Source::Named(name) if sights.volumes.iter().any(|(known, _)| known == name) => {}
            Source::Named(name) => {
                let image = volume::image(store.path(), name).map_err(|error| error.to_string())?;
                sights.volumes.push((name.clone(), image));
            }
        }
    }
    Ok(sights)
}

/// Volumes as the agent finds them in this VM.
pub fn in_vm(volumes: &[Volume], place: &Place) -> Vec<protocol::message::Volume> {
    let found = volumes.iter().filter_map(|volume| {
        let source = match &volume.source {
            Source::Text(_) => return None,
            Source::Directory(path) => {
                let share = Share { path: path.clone(), read_only: volume.read_only };
                VolumeSource::Share { tag: place.shares.get(&share)?.clone() }
            }
            Source::Named(name) => VolumeSource::Disk { serial: place.volumes.get(name)?.clone() },
        };
        let (path, read_only) = (volume.path.clone(), volume.read_only);
        Some(protocol::message::Volume { source, path, read_only })
    });
    found.collect()
}

/// Where VMs have their folders.
pub fn runtime_directory() -> Result<PathBuf, String> {
    match Runtime::of_this_user() {
        Some(runtime) => Ok(runtime.path().to_owned()),
        None => Store::of_this_user().map(|store| store.path().join("run")).map_err(|error| error.to_string()),
    }
}

/// Layers by the names of their partitions: the beginning of their digests, as a name has 36 letters at most. Of one that is
/// there more than once the highest counts, which hides the others; overlayfs takes each directory once (ELOOP).
pub fn named(store: &Store, layers: &[Digest]) -> Vec<(String, PathBuf)> {
    let name = |layer: &Digest| layer.hex().chars().take(32).collect();
    let hidden =
        |(at, layer): &(usize, &Digest)| layers.get(at.saturating_add(1)..).is_some_and(|above| above.contains(layer));
    let seen = layers.iter().enumerate().filter(|layer| !hidden(layer));
    seen.map(|(_, layer)| (name(layer), store.layer_path(layer))).collect()
}
