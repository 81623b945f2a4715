//! What the user asks of a block device (Firecracker's `drives[]`).

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rate_limit::RateLimiterConfig;

/// Most queues of a disk.
pub const MAX_QUEUES: u16 = 16;
/// Most partitions of a disk that is made of files.
pub const MAX_PARTITIONS: usize = 127;

/// A disk: a raw image file or a block device of the host (virtio 1.2, 5.2), or one that is made of several of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// Name of the drive, unique in the VM. The guest sees its first 20 bytes as the disk's serial number.
    pub drive_id: String,
    /// Raw image file or block device on the host. Absent where there are `partitions`, else required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Instead of `path_on_host`: files of the host that are the partitions of this disk, in this order. Its
    /// partition table (GPT) is made on the fly; it must be read-only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 127))]
    pub partitions: Vec<PartitionConfig>,
    /// The guest's root file system: `root=/dev/vda` is put on the kernel command line. At most one drive.
    #[serde(default)]
    pub is_root_device: bool,
    /// The root file system is this partition of the root device: `root=PARTUUID=...` is put on the kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// The guest may only read. The file is opened read-only and may be shared by several VMs.
    #[serde(default)]
    pub is_read_only: bool,
    /// What the guest's flush requests do.
    #[serde(default)]
    pub cache_type: CacheType,
    /// How requests reach the host's kernel.
    #[serde(default)]
    pub io_engine: IoEngine,
    /// Number of queues of the disk. Where it is absent: one for each vCPU, at most 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub num_queues: Option<u16>,
    /// Go past the host's page cache (O_DIRECT).
    #[serde(default)]
    pub direct: bool,
    /// Limits of the guest's requests: bytes read and written, and requests of any kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
}

impl DriveConfig {
    /// Its files on the host: the image, or one for each partition.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let parts = self.partitions.iter().map(|part| part.path_on_host.as_path());
        self.path_on_host.as_deref().into_iter().chain(parts)
    }
}

/// A file that is a partition of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartitionConfig {
    /// File or block device on the host, not empty. The guest sees zeros up to the next multiple of 4 KiB.
    pub path_on_host: PathBuf,
    /// The partition's name in the table (PARTLABEL): at most 36 UTF-16 units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What the guest's flush requests do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CacheType {
    /// Flushes are not offered: a host crash may lose what the guest believes is safe.
    Unsafe,
    /// Flushes are offered and each one ends with fdatasync(2) on the host.
    #[default]
    Writeback,
}

/// How requests reach the host's kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IoEngine {
    /// preadv(2) and pwritev(2) on the device's own thread, one request at a time.
    #[default]
    Sync,
    /// io_uring(7): many requests at a time.
    Async,
}
