//! The files of a VM that was saved.

use std::path::{Path, PathBuf};

use protocol::RUNTIME;
use serde_json::{Value, json};

/// A VM that was saved while its agent waited to be told what the VM shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The monitor's file with its state.
    pub state: PathBuf,
    /// That with its memory.
    pub memory: PathBuf,
}

impl Saved {
    /// Those that are called like `path`, but for what follows the last dot.
    pub fn at(path: &Path) -> Self {
        Self { state: path.with_extension("state"), memory: path.with_extension("memory") }
    }

    /// What is asked of the API of a VM that pauses, so that it is written to these files.
    pub fn order(&self) -> Value {
        json!({"snapshot_path": self.state, "mem_file_path": self.memory})
    }

    /// Has a VM of this configuration go on here. Its disks have their images now.
    pub(super) fn continued(&self, config: &mut Value) {
        let drives = config["drives"].as_array().into_iter().flatten().map(|drive| drive["drive_id"].clone());
        let drives: Vec<Value> = drives.filter(|drive| drive != RUNTIME).collect();
        config["snapshot"] = json!({"snapshot_path": self.state, "mem_file_path": self.memory, "other_images": drives});
    }
}
