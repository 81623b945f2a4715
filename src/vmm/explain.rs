//! `vmm explain`: the plan, for people or programs. Touches no KVM and opens nothing but the configuration file; it only
//! asks how long the files are that become memory, as their places depend on it.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;

use devices::virtio::DeviceConfig;
use devices::virtio::block::config::DriveConfig;
use machine::config::VmConfig;
use machine::plan::{FileMode, PlacedWindow, Plan, RegionKind};
use serde_json::{Value, json};

/// Prints the plan.
pub fn print(config: &VmConfig, plan: &Plan, as_json: bool) -> ExitCode {
    let text = if as_json { format!("{:#}\n", document(config, plan)) } else { page(config, plan) };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn page(config: &VmConfig, plan: &Plan) -> String {
    let mut page = String::new();
    let mut line = |text: &str| {
        page.push_str(text.trim_end());
        page.push('\n');
    };
    line("Machine");
    line(&format!("  {} CPUs, {} MiB of memory", plan.cpus, config.machine_config.mem_size_mib));
    line("\nKernel command line");
    line(&format!("  {}", plan.cmdline));
    line("\nMemory map");
    let (windows, unplaced) = windows(plan);
    for region in plan.map(&windows) {
        let (indent, kind) = match region.kind {
            RegionKind::Ram => ("", "RAM"),
            RegionKind::Boot => ("  ", "boot"),
            RegionKind::Registers => ("", "registers"),
            RegionKind::Window => ("", "window"),
            RegionKind::Kvm => ("", "KVM"),
        };
        let last = region.start + region.len.saturating_sub(1);
        let name = if region.kind == RegionKind::Ram { size(region.len) } else { region.name };
        line(&format!("  {:#014x}-{last:#014x}  {indent}{kind:<9}  {name}", region.start));
    }
    for text in unplaced {
        line(&format!("  {text}"));
    }
    line("\nvirtio devices");
    if plan.devices.is_empty() {
        line("  none");
    }
    for slot in &plan.devices {
        let id = &slot.id;
        line(&format!(
            "  {:>2}  {:<8} {id:<16} {:#010x}  GSI {:<2}  {}{}",
            slot.index,
            slot.config.kind_name(),
            slot.gpa,
            slot.gsi,
            what(&slot.config),
            metadata(config, &slot.config)
        ));
    }
    line("\nRegister devices");
    for device in &plan.registers {
        let gsi = device.gsi.map(|gsi| format!("GSI {gsi}")).unwrap_or_default();
        let last = device.port + device.ports - 1;
        line(&format!("  ports {:#05x}-{last:#05x}  {gsi:<6}  {}", device.port, device.name));
    }
    line("\nInterrupts");
    for (gsi, users) in interrupts(plan) {
        line(&format!("  GSI {gsi:<2}  {}", users.join(", ")));
    }
    line("\nFiles that will be opened");
    for file in &plan.files {
        let mode = match file.mode {
            FileMode::Read => "read",
            FileMode::ReadWrite => "read, write",
            FileMode::Append => "append",
        };
        let mut text = String::new();
        let _ = write!(text, "  {mode:<11}  {}  ({})", file.path.display(), file.purpose);
        line(&text);
    }
    page
}

/// The windows of host memory at their places; and, from the first one on whose size is not known, why not.
fn windows(plan: &Plan) -> (Vec<PlacedWindow>, Vec<String>) {
    let (mut known, mut unplaced) = (Vec::new(), Vec::new());
    for slot in &plan.devices {
        let DeviceConfig::Pmem(pmem) = &slot.config else { continue };
        match pmem.window_len() {
            Ok(len) if unplaced.is_empty() => known.push((slot.index, len)),
            Ok(_) => unplaced.push(format!("above that: virtio pmem '{}'", slot.id)),
            Err(error) => {
                let path = pmem.path_on_host.display();
                unplaced.push(format!("above RAM: virtio pmem '{}', as large as {path} ({error})", slot.id));
            }
        }
    }
    (plan.place(known), unplaced)
}

fn size(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// A device's back end in a few words.
fn what(config: &DeviceConfig) -> String {
    match config {
        DeviceConfig::Balloon(balloon) => {
            let reporting = if balloon.free_page_reporting { ", free pages reported" } else { "" };
            format!("{} MiB{reporting}", balloon.amount_mib)
        }
        DeviceConfig::Block(drive) => {
            let mode = if drive.is_read_only { "read-only" } else { "read-write" };
            let root = if drive.is_root_device { ", root device" } else { "" };
            let direct = if drive.direct { ", O_DIRECT" } else { "" };
            let limited = drive.rate_limiter.is_some_and(|limits| limits.is_limit());
            let limited = if limited { ", limited" } else { "" };
            let queues = drive.num_queues.unwrap_or(1);
            format!(
                "{} ({mode}, {:?}, {:?}, queues: {queues}{direct}{limited}{root})",
                image(drive),
                drive.cache_type,
                drive.io_engine
            )
        }
        DeviceConfig::Fs(share) => {
            let mode = if share.is_read_only { "read-only" } else { "read-write" };
            match share.directory() {
                Some(dir) => format!("{} ({mode}, virtiofsd)", dir.display()),
                None => "no directory yet".to_owned(),
            }
        }
        DeviceConfig::Net(net) => {
            let end = match (&net.user, &net.host_dev_name, net.host_fd) {
                (Some(user), ..) => {
                    ["passt"].into_iter().chain(user.publish.iter().map(String::as_str)).collect::<Vec<_>>().join(", ")
                }
                (None, Some(name), _) => format!("TAP {name}"),
                (None, None, fd) => format!("file descriptor {}", fd.unwrap_or(-1)),
            };
            net.guest_mac.as_ref().map_or(end.clone(), |mac| format!("{end}, {mac}"))
        }
        DeviceConfig::Pmem(pmem) => {
            let mode = match (pmem.read_only, pmem.private) {
                (true, _) => "read-only",
                (_, true) => "private",
                _ => "read-write",
            };
            let root = if pmem.root_device { ", root device" } else { "" };
            let limited = pmem.rate_limiter.is_some_and(|limits| limits.is_limit());
            let limited = if limited { ", limited" } else { "" };
            format!("{} ({mode}{limited}{root})", pmem.path_on_host.display())
        }
        DeviceConfig::Rng(_) => "getrandom(2)".to_owned(),
        DeviceConfig::Vsock(vsock) => format!("CID {}, {}", vsock.guest_cid, vsock.uds_path.display()),
    }
}

/// What a disk is made of.
fn image(drive: &DriveConfig) -> String {
    match (&drive.path_on_host, drive.partitions.as_slice()) {
        (Some(path), _) => path.display().to_string(),
        (None, [one]) => format!("1 partition of {}", one.path_on_host.display()),
        (None, parts) => format!("{} partitions of files", parts.len()),
    }
}

/// Where the metadata service is, at an interface that has it.
fn metadata(config: &VmConfig, device: &DeviceConfig) -> String {
    match (&config.mmds_config, device) {
        (Some(mmds), DeviceConfig::Net(net)) if mmds.network_interfaces.contains(&net.iface_id) => {
            format!(", metadata at {}", mmds.ipv4_address)
        }
        _ => String::new(),
    }
}

/// Who raises each interrupt line.
fn interrupts(plan: &Plan) -> Vec<(u32, Vec<String>)> {
    let registers = plan.registers.iter().filter_map(|device| Some((device.gsi?, device.name.to_owned())));
    let virtio = plan.devices.iter().map(|slot| (slot.gsi, format!("virtio '{}'", slot.id)));
    let mut lines: Vec<(u32, Vec<String>)> = Vec::new();
    for (gsi, user) in registers.chain(virtio) {
        match lines.iter_mut().find(|(known, _)| *known == gsi) {
            Some((_, users)) => users.push(user),
            None => lines.push((gsi, vec![user])),
        }
    }
    lines.sort();
    lines
}

fn document(config: &VmConfig, plan: &Plan) -> Value {
    let devices: Vec<_> = plan
        .devices
        .iter()
        .map(|slot| {
            let asked = match &slot.config {
                DeviceConfig::Balloon(balloon) => json!(balloon),
                DeviceConfig::Block(drive) => json!(drive),
                DeviceConfig::Fs(share) => json!(share),
                DeviceConfig::Net(net) => json!(net),
                DeviceConfig::Pmem(pmem) => json!(pmem),
                DeviceConfig::Rng(entropy) => json!(entropy),
                DeviceConfig::Vsock(vsock) => json!(vsock),
            };
            json!({
                "slot": slot.index, "id": slot.id, "kind": slot.config.kind_name(), "gpa": slot.gpa, "gsi": slot.gsi,
                "config": asked
            })
        })
        .collect();
    json!({
        "cpus": plan.cpus,
        "cmdline": plan.cmdline,
        "serial": plan.serial,
        "ram": plan.ram,
        "map": plan.map(&windows(plan).0),
        "windows": windows(plan).0,
        "devices": devices,
        "registers": plan.registers,
        "files": plan.files,
        "config": config,
    })
}
