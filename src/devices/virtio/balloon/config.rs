//! A memory balloon as its user wants it, and what of that can change while the VM exists.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hinting::Hint;

/// A memory balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Memory, MiB, that the guest is asked to give back; less than it has.
    #[serde(default)]
    pub amount_mib: u32,
    /// The guest takes memory back out of the balloon before it kills a process for lack of memory.
    #[serde(default)]
    pub deflate_on_oom: bool,
    /// Seconds between two looks at the guest's memory statistics; 0: none.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// The guest tells which pages are free, and the host takes them until they are used again (in Firecracker this
    /// must be asked for).
    #[serde(default = "yes")]
    pub free_page_reporting: bool,
    /// The guest can be asked for all pages that are free now, in one go. Linux may use such a page again before the host
    /// has taken it, and then finds zeros in it: leave this off unless the guest has memory to spare then.
    #[serde(default)]
    pub free_page_hinting: bool,
}

fn yes() -> bool {
    true
}

/// What can be changed while the VM exists.
#[derive(Debug, Clone, Copy, Default)]
pub struct BalloonChange {
    /// The new target, MiB.
    pub amount_mib: Option<u32>,
    /// Seconds between two looks at the statistics: there must be some before and after.
    pub stats_polling_interval_s: Option<u16>,
    /// What becomes of free page hinting.
    pub hint: Option<Hint>,
    /// Whether reports of free pages wait.
    pub pause_reporting: Option<bool>,
}
