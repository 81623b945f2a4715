//! The user's document: the only model of a VM.
//!
//! Its JSON is Firecracker's config-file dialect, extended in the same style. Command-line flags edit the same value.
//! Nothing here opens a file or runs a VM; any thread may use it.

use std::path::PathBuf;

use devices::virtio::block::config::DriveConfig;
use devices::virtio::rng::EntropyConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmConfig {
    /// What the guest boots.
    pub boot_source: BootSource,
    /// CPUs and memory.
    #[serde(default)]
    pub machine_config: MachineConfig,
    /// Disks, in the order in which the guest sees them; the root device comes first.
    #[serde(default)]
    pub drives: Vec<DriveConfig>,
    /// A random number generator for the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyConfig>,
    /// The first serial port.
    #[serde(default)]
    pub serial: SerialConfig,
    /// The monitor's own log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<LoggerConfig>,
    /// What a guest's reboot does.
    #[serde(default)]
    pub on_reboot: OnReboot,
}

/// What the guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// Kernel image: an ELF vmlinux or a bzImage; the format is detected.
    pub kernel_image_path: PathBuf,
    /// Initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// Kernel command line. Where it is absent a default is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

/// CPUs and memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MachineConfig {
    /// Number of vCPUs: at least 1, at most what the host's KVM supports.
    pub vcpu_count: u32,
    /// Guest memory in MiB: at least 32.
    pub mem_size_mib: u64,
    /// Present the vCPUs to the guest as pairs of hardware threads; `vcpu_count` must then be 1 or even.
    pub smt: bool,
    /// Record which pages the guest writes.
    pub track_dirty_pages: bool,
    /// What kind of host pages back the guest's memory.
    pub huge_pages: HugePages,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self { vcpu_count: 1, mem_size_mib: 128, smt: false, track_dirty_pages: false, huge_pages: HugePages::None }
    }
}

/// What kind of host pages back the guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HugePages {
    /// Ordinary pages; the host may still use transparent huge pages as its policy says.
    #[default]
    None,
    /// Transparent huge pages are asked for.
    Transparent,
    /// 2 MiB pages from the host's hugetlbfs pool; `mem_size_mib` must be even.
    #[serde(rename = "2M")]
    TwoMib,
}

/// The first serial port (16550A).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SerialConfig {
    /// File to which the guest's output goes instead of standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
    /// `false`: the VM has no serial port.
    pub enabled: SerialEnabled,
}

/// Whether the VM has a serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct SerialEnabled(pub bool);

impl Default for SerialEnabled {
    fn default() -> Self {
        Self(true)
    }
}

/// The monitor's own log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoggerConfig {
    /// File or FIFO to write to; standard error where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// Lowest severity that is written.
    pub level: LogLevel,
    /// Show the severity of each line.
    pub show_level: bool,
    /// Show the module and line of each message.
    pub show_log_origin: bool,
    /// Only messages of this module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// Severity of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What is suspicious.
    Warning,
    /// Milestones.
    #[default]
    Info,
    /// Details.
    Debug,
    /// Everything.
    Trace,
}

/// What a guest's reboot does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnReboot {
    /// The monitor ends.
    #[default]
    Exit,
    /// The same VM is started again.
    Restart,
}
