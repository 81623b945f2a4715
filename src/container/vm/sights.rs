//! What a VM for containers sees of the host, and what it has for more that comes later: names of disks and shares. Plain data.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::network::VmNetwork;

/// Disks that a VM has for images that come later.
pub const SPARE: usize = 8;
/// Shares that a VM has for directories that come later.
pub const SPARE_SHARES: usize = 4;

/// The name of a spare disk.
pub fn spare(number: usize) -> String {
    format!("later-{number}")
}

/// The name, and in the guest the serial number, of a disk with a volume.
pub fn spare_volume(number: usize) -> String {
    format!("volume-{number}")
}

/// The tag of a shared directory.
pub fn share_tag(number: usize) -> String {
    format!("share-{number}")
}

/// What a VM sees of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sights {
    /// The file systems of the image's layers, by the names of their partitions.
    pub layers: Vec<(String, PathBuf)>,
    /// Directories, each once: [`share_tag`] names them.
    pub shares: Vec<Share>,
    /// Images of named volumes, by the names.
    pub volumes: Vec<(String, PathBuf)>,
    /// The image that takes what the container writes to its root file system; none: the VM's memory does.
    pub writable: Option<PathBuf>,
    /// The network; none: loopback only.
    pub network: Option<VmNetwork>,
}

/// A directory that is shared with a VM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Share {
    /// The directory.
    pub path: PathBuf,
    /// The VM cannot write to it.
    pub read_only: bool,
}

impl Share {
    /// What gives it to the VM's share of this tag.
    pub fn given(&self, tag: &str) -> Value {
        json!({"tag": tag, "path_on_host": self.path, "is_read_only": self.read_only})
    }
}
