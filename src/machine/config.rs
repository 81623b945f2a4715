//! The user's document: the only model of a VM.
//!
//! Its JSON is Firecracker's config-file dialect, extended in the same style. Command-line flags edit the same value.
//! The types are here; [`load`] reads a document, applies the flags and reports every fault at once. Nothing here runs a
//! VM; only the checks of `host.rs` look at the host. Any thread may use it.

mod cpu;
mod dialect;
mod draft;
mod edit;
mod fault;
mod host;
mod include;
mod lines;
mod load;
mod logger;
mod nearest;
mod path;
mod validate;
mod walk;

use std::collections::BTreeMap;
use std::path::PathBuf;

use devices::mmds::config::MmdsConfig;
use devices::rate_limit::TokenBucketConfig;
use devices::virtio::balloon::BalloonConfig;
use devices::virtio::block::config::DriveConfig;
use devices::virtio::fs::config::ShareConfig;
use devices::virtio::net::config::NetConfig;
use devices::virtio::pmem::PmemConfig;
use devices::virtio::rng::EntropyConfig;
use devices::virtio::vsock::VsockConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::snapshot::SnapshotConfig;
pub use cpu::{CpuConfig, CpuidModifier, MsrModifier, RegisterModifier, TemplateName};
pub use draft::Draft;
pub use edit::{Change, Edit};
pub use fault::{Fault, Faults, Origin};
pub use host::HostLimits;
pub use load::{Source, load};
pub use logger::{LogFormat, LogLevel, LoggerConfig};
pub use path::{JsonPath, PathError, Step};
pub use validate::{ID_MAX, MAX_CPUS, MAX_MEMORY_MIB};

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmConfig {
    /// What the guest boots.
    pub boot_source: BootSource,
    /// CPUs and memory.
    #[serde(default)]
    pub machine_config: MachineConfig,
    /// What the guest sees of its CPUs; in a file also the path of another one that says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "cpu::schema")]
    pub cpu_config: Option<CpuConfig>,
    /// Disks, in the order in which the guest sees them; the root device comes first.
    #[serde(default)]
    pub drives: Vec<DriveConfig>,
    /// Network interfaces, in the order in which the guest sees them.
    #[serde(default)]
    pub network_interfaces: Vec<NetConfig>,
    /// Files of the host as memory of the guest: its /dev/pmem0, /dev/pmem1, ..., in this order.
    #[serde(default)]
    pub pmem: Vec<PmemConfig>,
    /// Directories of the host in the guest, in the order in which the guest sees them.
    #[serde(default)]
    pub shares: Vec<ShareConfig>,
    /// A memory balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// A random number generator for the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyConfig>,
    /// Sockets between the guest and UNIX sockets of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// The metadata service: a guest reads by HTTP what the API wrote to /mmds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmds_config: Option<MmdsConfig>,
    /// The first serial port.
    #[serde(default)]
    pub serial: SerialConfig,
    /// A keyboard, on which the API's `SendCtrlAltDel` presses Ctrl+Alt+Del. Its driver costs the guest time at each boot. Where
    /// the guest does not listen to one, that action presses the power button.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keyboard: bool,
    /// The monitor's own log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<LoggerConfig>,
    /// What the VM counts, as lines of JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsConfig>,
    /// UNIX socket at which gdb finds the guest (docs/gdb.md). The guest waits for it before its first instruction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gdb: Option<PathBuf>,
    /// Where the VM goes on, in the place of booting. A reboot boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotConfig>,
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
    /// Kernel command line. Where it is absent a default is used; where it says no `root=` and a drive is the root
    /// device, `root=/dev/vda` is added, or `root=PARTUUID=` where it has a `partuuid`; where a `pmem` device is, its
    /// `root=/dev/pmemN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
    /// Words put behind `boot_args`, or behind the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args_append: Option<String>,
}

/// CPUs and memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MachineConfig {
    /// Number of vCPUs: at least 1, at most what the host's KVM supports.
    #[schemars(range(min = 1, max = 4096))]
    pub vcpu_count: u32,
    /// Guest memory in MiB: at least 32.
    #[schemars(range(min = 32, max = 67_108_864))]
    pub mem_size_mib: u64,
    /// Present the vCPUs to the guest as pairs of hardware threads; `vcpu_count` must then be 1 or even.
    pub smt: bool,
    /// Record which pages the guest writes.
    pub track_dirty_pages: bool,
    /// What the guest's CPUs look like, by name; `cpu-config` says it bit by bit.
    #[serde(skip_serializing_if = "TemplateName::is_none")]
    pub cpu_template: TemplateName,
    /// What kind of host pages back the guest's memory.
    pub huge_pages: HugePages,
}

impl VmConfig {
    /// Where the fields of `drives` that make one the root device point: its place among `drives`.
    pub fn root_drive(&self) -> Option<usize> {
        self.drives.iter().position(|drive| drive.is_root_device)
    }

    /// Whether another process serves a device from the start: guest memory is then such that it can be given to one. Memory
    /// that is not is quicker (it has huge pages), and a process that comes later is given copies of requests.
    pub fn shares_memory(&self) -> bool {
        self.shares.iter().any(|share| share.directory().is_some())
    }

    /// The JSON Schema of the configuration, as a value.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            track_dirty_pages: false,
            cpu_template: TemplateName::None,
            huge_pages: HugePages::default(),
        }
    }
}

/// What kind of host pages back the guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HugePages {
    /// Ordinary pages, unless the host's policy makes them huge. Kernel and initrd are shared with the host's page
    /// cache and with other VMs.
    None,
    /// Transparent huge pages are asked for.
    #[default]
    Transparent,
    /// 2 MiB pages from the host's hugetlbfs pool; `mem_size_mib` must be even.
    #[serde(rename = "2M")]
    TwoMib,
}

/// The first serial port (16550A).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SerialConfig {
    /// File to which the guest's output goes (it is appended to) instead of standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
    /// `false`: the VM has no serial port.
    pub enabled: bool,
    /// Limit of the guest's output, bytes. What comes faster waits, up to 2 MiB; what is more is dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucketConfig>,
}

impl Default for SerialConfig {
    fn default() -> Self {
        Self { serial_out_path: None, enabled: true, rate_limiter: None }
    }
}

/// What the VM counts, as lines of JSON: at the start, each 60 s, when it is asked for, and at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// File or FIFO to write to.
    pub metrics_path: PathBuf,
    /// Put the VM's name into each line.
    #[serde(default)]
    pub emit_id: bool,
    /// Texts that are put into each line, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
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
