//! A VM in two files, so that another process goes on with it: its state, and its memory. The control thread writes them while
//! the VM pauses, and reads them before anything runs.
//!
//! docs/snapshot-format.md says what stands in them. Both are the host's user's own: who can write to them has the VM. What is
//! checked on load is what would bring the monitor down.

mod format;
mod memory;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use devices::virtio::state::DeviceState;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::VmConfig;
use crate::error::{Doing, HostError};
use crate::machine::Machine;
use crate::memory::Ram;
use crate::state::MachineState;

/// Where a VM goes on, in the place of booting: files that `PUT /snapshot/create` wrote of a VM with the same configuration on
/// this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotConfig {
    /// The file with its state.
    pub snapshot_path: PathBuf,
    /// The file with its memory. It must not be changed while the VM runs.
    pub mem_file_path: PathBuf,
    /// Drives that have another image than at the save: the guest is told of its size. Nothing of
    /// the old one may be in its memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_images: Vec<String>,
}

impl SnapshotConfig {
    /// The files, by their keys.
    pub fn files(&self) -> [(&'static str, &Path); 2] {
        [("snapshot_path", &self.snapshot_path), ("mem_file_path", &self.mem_file_path)]
    }
}

/// What stands in the file with the state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// The configuration, with the changes of devices since the start: what the VM was, for who looks.
    config: VmConfig,
    /// The state.
    machine: MachineState,
}

/// Writes a machine that is paused into two new files, so that they outlive the host's sudden end. After an error there is
/// neither.
pub fn save(machine: &Machine, config: &VmConfig, state_path: &Path, memory_path: &Path) -> Result<(), HostError> {
    if machine.private_windows().next().is_some() {
        let why = "a pmem device with `private` is memory that is not in the file";
        return Err(HostError::new("save the VM", why));
    }
    let state = Saved { config: config.clone(), machine: machine.save()? };
    let state_file = create(state_path)?;
    let memory_file = create(memory_path).inspect_err(|_| remove(state_path))?;
    let filled = fill(memory_path, memory_file, |file| memory::write(machine.ram(), file))
        .and_then(|()| fill(state_path, state_file, |file| format::write(&state, file)));
    match filled {
        Ok(()) => [memory_path, state_path].into_iter().for_each(keep_name),
        Err(_) => [memory_path, state_path].into_iter().for_each(remove),
    }
    filled
}

fn create(path: &Path) -> Result<File, HostError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.doing(|| format!("write {}", path.display()))
}

fn fill(path: &Path, mut file: File, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), HostError> {
    write(&mut file).and_then(|()| file.sync_all()).doing(|| format!("write {}", path.display()))
}

fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// Has the name of a new file written to disk, where this user may open its directory and the file system knows of that.
fn keep_name(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

/// What was saved, but for the memory.
pub fn read(config: &SnapshotConfig) -> Result<MachineState, HostError> {
    let path = &config.snapshot_path;
    let saved = File::open(path).and_then(|file| format::read::<Saved>(&file));
    let saved = saved.doing(|| format!("read {}", path.display()))?;
    let mut state = saved.machine;
    for device in &mut state.devices {
        if let DeviceState::Block(disk) = &mut device.state.device
            && config.other_images.contains(&device.id)
        {
            disk.size = None;
        }
    }
    Ok(state)
}

/// Fills guest memory that is as it was mapped.
pub fn load_memory(config: &SnapshotConfig, ram: &Ram) -> Result<(), HostError> {
    let path = &config.mem_file_path;
    let loaded = File::open(path).and_then(|file| memory::load(&file, ram));
    loaded.doing(|| format!("load guest memory from {}", path.display()))
}
