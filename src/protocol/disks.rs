//! What a container has of the VM's disks. Plain data, as in `message.rs`.

use serde::{Deserialize, Serialize};

/// Where what a container writes to its root file system goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Writable {
    /// Into the VM's memory.
    Memory {
        /// Most of it.
        bytes: u64,
    },
    /// To an ext4 file system that this container alone has.
    Disk {
        /// The disk's serial number.
        serial: String,
    },
}

/// How fast a container may use disks; each of them counts for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimit {
    /// Which: `/` for those of its root file system, or the path of one of its volumes.
    pub path: String,
    /// What is counted.
    pub counts: Counts,
    /// Most of it, per second; not 0.
    pub rate: u64,
}

/// What is counted of a disk's use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counts {
    /// Bytes that are read.
    ReadBytes,
    /// Bytes that are written.
    WrittenBytes,
    /// Requests that read.
    Reads,
    /// Requests that write.
    Writes,
}

impl Counts {
    /// The list of `linux.resources.blockIO` in the OCI runtime specification that limits it.
    pub fn oci(self) -> &'static str {
        match self {
            Self::ReadBytes => "throttleReadBpsDevice",
            Self::WrittenBytes => "throttleWriteBpsDevice",
            Self::Reads => "throttleReadIOPSDevice",
            Self::Writes => "throttleWriteIOPSDevice",
        }
    }
}
