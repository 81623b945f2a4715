//! From a configuration to addresses: RAM ranges, device slots, interrupts, the kernel command line, the files.
//!
//! Pure: the same configuration always gives the same plan, without a look at the host. `vmm explain` prints it.

mod cmdline;
mod map;
mod windows;

use std::path::PathBuf;

use devices::virtio::DeviceConfig;
use devices::virtio::block::config::DriveConfig;
use serde::Serialize;

pub use cmdline::{DEFAULT_CMDLINE, SERIAL_CMDLINE, compose as compose_cmdline};
pub use map::{Region, RegionKind};
pub use windows::PlacedWindow;

use crate::config::VmConfig;
use crate::x86_64::layout;

const MIB: u64 = 1 << 20;

/// A range of guest-physical addresses with RAM behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RamRange {
    /// First guest-physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// A virtio device and where the guest finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Place among the virtio devices, from 0; a guest's driver meets them in this order.
    pub index: usize,
    /// The device's name, unique in the VM.
    pub id: String,
    /// What the user asked for.
    pub config: DeviceConfig,
    /// First address of its virtio-mmio registers.
    pub gpa: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

/// A small register device at I/O ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Registers {
    /// What it is.
    pub name: &'static str,
    /// First port.
    pub port: u16,
    /// Number of ports.
    pub ports: u16,
    /// Its interrupt line, if it has one.
    pub gsi: Option<u32>,
}

/// How a file will be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileMode {
    /// Only read.
    Read,
    /// Read and written.
    ReadWrite,
    /// Created where it is missing, written at its end.
    Append,
}

/// A file of the host that running the VM opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileUse {
    /// Where it is.
    pub path: PathBuf,
    /// How it is opened.
    pub mode: FileMode,
    /// What it is for.
    pub purpose: String,
}

/// Why a configuration has no plan. [`VmConfig::validate`] finds the same faults with their places.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The devices do not fit into the address map.
    #[error("{0} devices are too many: there is room for {most}", most = layout::VIRTIO_MMIO_MAX)]
    TooManyDevices(usize),
    /// The kernel command line does not fit.
    #[error("the kernel command line is {0} bytes long; at most {most} fit", most = layout::CMDLINE_MAX - 1)]
    LongCmdline(usize),
    /// No memory or more than addresses can name.
    #[error("{0} MiB of memory cannot be laid out")]
    Memory(u64),
}

/// Where everything of a VM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Number of vCPUs.
    pub cpus: u32,
    /// RAM, ascending: one range, or two around the 32-bit gap.
    pub ram: Vec<RamRange>,
    /// virtio devices in the order of their slots.
    pub devices: Vec<Slot>,
    /// The kernel command line.
    pub cmdline: String,
    /// There is a serial port.
    pub serial: bool,
    /// There is a keyboard.
    pub keyboard: bool,
    /// Register devices, by port.
    pub registers: Vec<Registers>,
    /// What will be opened, in that order.
    pub files: Vec<FileUse>,
}

impl Plan {
    /// Lays out what `config` asks for.
    pub fn of(config: &VmConfig) -> Result<Self, PlanError> {
        let cmdline = compose_cmdline(config);
        if cmdline.len() >= layout::CMDLINE_MAX {
            return Err(PlanError::LongCmdline(cmdline.len()));
        }
        Ok(Self {
            cpus: config.machine_config.vcpu_count,
            ram: ram(config.machine_config.mem_size_mib)?,
            devices: slots(config)?,
            cmdline,
            serial: config.serial.enabled,
            keyboard: config.keyboard,
            registers: registers(config.serial.enabled, config.keyboard),
            files: files(config),
        })
    }
}

/// RAM from 0 up to the gap, the rest above 4 GiB.
fn ram(mib: u64) -> Result<Vec<RamRange>, PlanError> {
    let bytes = mib.checked_mul(MIB).filter(|bytes| *bytes > 0 && *bytes < 1 << 52).ok_or(PlanError::Memory(mib))?;
    let low = bytes.min(layout::GAP_START);
    let mut ram = vec![RamRange { start: 0, len: low }];
    if bytes > low {
        ram.push(RamRange { start: layout::GAP_END, len: bytes - low });
    }
    Ok(ram)
}

/// Queues of a device that may have several: one for each vCPU, up to 4.
fn default_queues(cpus: u32) -> u16 {
    u16::try_from(cpus.clamp(1, 4)).unwrap_or(4)
}

/// The root drive comes first, so that it is /dev/vda; then the other drives as listed; then persistent memory, as listed,
/// as Linux counts /dev/pmem0, /dev/pmem1, ...; then the rest.
fn slots(config: &VmConfig) -> Result<Vec<Slot>, PlanError> {
    let root = config.root_drive();
    let others = (0..config.drives.len()).filter(|place| Some(*place) != root);
    let drives = root.into_iter().chain(others).filter_map(|place| config.drives.get(place));
    let devices: Vec<_> = drives
        .map(|drive| {
            let queues = drive.num_queues.unwrap_or_else(|| default_queues(config.machine_config.vcpu_count));
            DeviceConfig::Block(DriveConfig { num_queues: Some(queues), ..drive.clone() })
        })
        .chain(config.pmem.iter().map(|pmem| DeviceConfig::Pmem(pmem.clone())))
        .chain(config.network_interfaces.iter().map(|net| DeviceConfig::Net(net.clone())))
        .chain(config.shares.iter().map(|share| DeviceConfig::Fs(share.clone())))
        .chain(config.balloon.iter().map(|balloon| DeviceConfig::Balloon(balloon.clone())))
        .chain(config.entropy.iter().map(|entropy| DeviceConfig::Rng(entropy.clone())))
        .chain(config.vsock.iter().map(|vsock| DeviceConfig::Vsock(vsock.clone())))
        .collect();
    if devices.len() > layout::VIRTIO_MMIO_MAX {
        return Err(PlanError::TooManyDevices(devices.len()));
    }
    let lines = layout::VIRTIO_GSIS.iter().copied().cycle();
    let gpas = (layout::VIRTIO_MMIO..).step_by(layout::VIRTIO_MMIO_LEN as usize);
    let slots = devices.into_iter().zip(lines).zip(gpas).enumerate();
    Ok(slots.map(|(index, ((config, gsi), gpa))| Slot { index, id: config.id(), config, gpa, gsi }).collect())
}

fn registers(serial: bool, keyboard: bool) -> Vec<Registers> {
    let device = |name, port, ports, gsi| Registers { name, port, ports, gsi };
    let controller = match keyboard {
        true => device("keyboard (i8042)", layout::I8042_PORT, 5, Some(layout::KEYBOARD_GSI)),
        false => device("keyboard controller (i8042, reset only)", layout::I8042_PORT, 5, None),
    };
    let mut devices = vec![
        controller,
        device("CMOS clock", layout::CMOS_PORT, 2, None),
        device("debug port", layout::DEBUG_PORT, 1, None),
    ];
    if serial {
        devices.push(device("serial port ttyS0 (16550A)", layout::SERIAL_PORT, 8, Some(layout::SERIAL_GSI)));
    }
    devices.push(device("pvpanic", layout::PVPANIC_PORT, 1, None));
    devices.push(device("power management", layout::PM_PORT, 8, Some(layout::PM_GSI)));
    devices
}

fn files(config: &VmConfig) -> Vec<FileUse> {
    let mut files = Vec::new();
    let mut add = |path: &PathBuf, mode, purpose: String| files.push(FileUse { path: path.clone(), mode, purpose });
    if let Some(path) = config.logger.as_ref().and_then(|logger| logger.log_path.as_ref()) {
        add(path, FileMode::Append, "log".into());
    }
    if let Some(metrics) = &config.metrics {
        add(&metrics.metrics_path, FileMode::Append, "metrics".into());
    }
    if let Some(path) = config.serial.serial_out_path.as_ref().filter(|_| config.serial.enabled) {
        add(path, FileMode::Append, "serial output".into());
    }
    for drive in &config.drives {
        let mode = if drive.is_read_only { FileMode::Read } else { FileMode::ReadWrite };
        if let Some(path) = &drive.path_on_host {
            add(path, mode, format!("drive {}", drive.drive_id));
        }
        for (number, part) in (1..).zip(&drive.partitions) {
            add(&part.path_on_host, FileMode::Read, format!("drive {}, partition {number}", drive.drive_id));
        }
    }
    for pmem in &config.pmem {
        let mode = if pmem.writes_file() { FileMode::ReadWrite } else { FileMode::Read };
        add(&pmem.path_on_host, mode, format!("pmem {}", pmem.id));
    }
    if config.network_interfaces.iter().any(|net| net.host_dev_name.is_some()) {
        add(&"/dev/net/tun".into(), FileMode::ReadWrite, "network".into());
    }
    add(&"/dev/kvm".into(), FileMode::ReadWrite, "KVM".into());
    if let Some(snapshot) = &config.snapshot {
        add(&snapshot.snapshot_path, FileMode::Read, "state".into());
        add(&snapshot.mem_file_path, FileMode::Read, "memory".into());
        return files;
    }
    add(&config.boot_source.kernel_image_path, FileMode::Read, "kernel".into());
    if let Some(path) = &config.boot_source.initrd_path {
        add(path, FileMode::Read, "initrd".into());
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VmConfig;

    const GIB: u64 = 1 << 30;

    fn config(json: serde_json::Value) -> VmConfig {
        serde_json::from_value(json).unwrap()
    }

    fn drives(count: usize) -> VmConfig {
        let drives: Vec<_> = (0..count)
            .map(|n| serde_json::json!({ "drive_id": format!("d{n}"), "path_on_host": "x", "is_root_device": n == 2 }))
            .collect();
        config(serde_json::json!({ "boot-source": { "kernel_image_path": "k" }, "drives": drives, "entropy": {} }))
    }

    #[test]
    fn ram_goes_around_the_gap() {
        let low = |len| RamRange { start: 0, len };
        assert_eq!(ram(128).unwrap(), [low(128 * MIB)]);
        assert_eq!(ram(3072).unwrap(), [low(3 * GIB)]);
        assert_eq!(ram(3073).unwrap(), [low(3 * GIB), RamRange { start: 4 * GIB, len: MIB }]);
        assert_eq!(ram(5 * 1024).unwrap(), [low(3 * GIB), RamRange { start: 4 * GIB, len: 2 * GIB }]);
        assert_eq!(ram(0), Err(PlanError::Memory(0)));
        assert_eq!(ram(u64::MAX), Err(PlanError::Memory(u64::MAX)));
    }

    #[test]
    fn the_root_drive_is_first_and_the_rng_last() {
        let plan = Plan::of(&drives(4)).unwrap();
        let ids: Vec<_> = plan.devices.iter().map(|slot| slot.id.as_str()).collect();
        assert_eq!(ids, ["d2", "d0", "d1", "d3", "rng"]);
        assert_eq!(plan.devices[0].gpa, layout::VIRTIO_MMIO);
        assert_eq!(plan.devices[4].gpa, layout::VIRTIO_MMIO + 4 * layout::VIRTIO_MMIO_LEN);
        assert_eq!(plan.devices.iter().map(|slot| slot.gsi).collect::<Vec<_>>(), [16, 17, 18, 19, 20]);
        assert!(plan.devices.iter().enumerate().all(|(place, slot)| slot.index == place));
    }

    #[test]
    fn a_disk_has_a_queue_for_each_cpu_up_to_four() {
        for (cpus, asked, wanted) in [(1, None, 1), (3, None, 3), (64, None, 4), (1, Some(7), 7)] {
            let mut config = drives(1);
            config.machine_config.vcpu_count = cpus;
            config.drives[0].num_queues = asked;
            let plan = Plan::of(&config).unwrap();
            let DeviceConfig::Block(drive) = &plan.devices[0].config else { panic!("a disk comes first") };
            assert_eq!(drive.num_queues, Some(wanted));
        }
    }

    #[test]
    fn interrupt_lines_are_shared_past_their_end() {
        let plan = Plan::of(&drives(20)).unwrap();
        assert_eq!(plan.devices[15].gsi, plan.devices[0].gsi);
        assert_eq!(plan.devices[20].gsi, plan.devices[5].gsi);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Plan::of(&drives(layout::VIRTIO_MMIO_MAX - 1)).is_ok());
        assert_eq!(Plan::of(&drives(layout::VIRTIO_MMIO_MAX)).unwrap_err(), PlanError::TooManyDevices(65));
        let mut long = drives(0);
        long.boot_source.boot_args = Some("x".repeat(2048));
        assert_eq!(Plan::of(&long).unwrap_err(), PlanError::LongCmdline(2048));
        long.boot_source.boot_args = Some("x".repeat(2047));
        assert!(Plan::of(&long).is_ok());
    }

    #[test]
    fn lists_every_file_with_its_mode() {
        let mut config = drives(1);
        config.drives[0].is_read_only = true;
        config.boot_source.initrd_path = Some("i".into());
        config.serial.serial_out_path = Some("s".into());
        config.pmem = serde_json::from_value(serde_json::json!([
            { "id": "a", "path_on_host": "shared" }, { "id": "b", "path_on_host": "private", "private": true }
        ]))
        .unwrap();
        let files: Vec<_> =
            files(&config).into_iter().map(|file| (file.path.display().to_string(), file.mode)).collect();
        let wanted = [("s", FileMode::Append), ("x", FileMode::Read), ("shared", FileMode::ReadWrite)];
        let wanted = wanted.into_iter().chain([("private", FileMode::Read), ("/dev/kvm", FileMode::ReadWrite)]);
        let wanted = wanted.into_iter().chain([("k", FileMode::Read), ("i", FileMode::Read)]);
        assert_eq!(files, wanted.map(|(path, mode)| (path.to_owned(), mode)).collect::<Vec<_>>());
    }

    #[test]
    fn without_a_serial_port_there_are_no_such_registers() {
        assert!(registers(true, false).iter().any(|device| device.port == layout::SERIAL_PORT));
        assert!(!registers(false, true).iter().any(|device| device.port == layout::SERIAL_PORT));
    }
}
