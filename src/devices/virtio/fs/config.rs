//! What the user asks of a shared directory.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest tag, bytes (virtio 1.2, 5.11.4).
pub const TAG_MAX: usize = 36;

/// A directory of the host in the guest (virtio 1.2, 5.11), served by a virtiofsd of its own: `mount -t virtiofs TAG DIR`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// What the guest mounts: 1 to 36 letters, digits, `-` or `_`, unique in the VM; the device's id.
    pub tag: String,
    /// The directory on the host. Absent or empty: none yet; the API can give it one, and take it away.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub path_on_host: PathBuf,
    /// The guest can not change anything in it.
    #[serde(default)]
    pub is_read_only: bool,
    /// The program that serves it, of virtiofsd's Rust or C kind. Without it virtiofsd is looked for on the PATH, then
    /// where Debian has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtiofsd: Option<PathBuf>,
}

impl ShareConfig {
    /// The directory, if there is one.
    pub fn directory(&self) -> Option<&Path> {
        Some(self.path_on_host.as_path()).filter(|path| !is_nothing(path))
    }
}

fn is_nothing(path: &Path) -> bool {
    path.as_os_str().is_empty()
}
