//! What a well-typed configuration may still say wrong. Pure: no look at the host.

mod image;
mod logger;
mod mmds;
mod net;
mod pmem;

use std::collections::HashMap;

use devices::virtio::block::config::MAX_QUEUES;
use devices::virtio::fs::config::TAG_MAX;
use devices::virtio::vsock::VsockConfig;

pub(super) use self::image::drive_files;
use super::fault::Problem;
use super::path::JsonPath;
use super::{HugePages, VmConfig};
use crate::plan;
use crate::x86_64::layout;

/// Longest id.
pub const ID_MAX: usize = 64;
/// Longest path of a UNIX socket, bytes (unix(7), without the NUL).
const SOCKET_PATH_MAX: usize = 107;
/// Most vCPUs of any KVM (KVM_MAX_VCPUS of Linux at its largest).
pub const MAX_CPUS: u32 = 4096;
/// Most memory, MiB: 64 TiB, the physical addresses of a 4-level guest.
pub const MAX_MEMORY_MIB: u64 = 64 << 20;

impl VmConfig {
    /// Everything that is wrong with this configuration, whatever the host.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.check_machine(&mut problems);
        self.check_cpu(&mut problems);
        self.check_boot(&mut problems);
        self.check_snapshot(&mut problems);
        self.check_drives(&mut problems);
        self.check_interfaces(&mut problems);
        self.check_mmds(&mut problems);
        self.check_pmem(&mut problems);
        self.check_published(&mut problems);
        self.check_shares(&mut problems);
        self.check_balloon(&mut problems);
        self.check_vsock(&mut problems);
        self.check_logger(&mut problems);
        self.check_paths(&mut problems);
        problems
    }

    fn check_machine(&self, problems: &mut Vec<Problem>) {
        let machine = &self.machine_config;
        let mut wrong = |key, text: String| problems.push(Problem::new(JsonPath::keys(["machine-config", key]), text));
        match machine.vcpu_count {
            0 => wrong("vcpu_count", "must be at least 1, not 0".into()),
            cpus if cpus > MAX_CPUS => wrong("vcpu_count", format!("must be at most {MAX_CPUS}, not {cpus}")),
            cpus if machine.smt && cpus > 1 && cpus % 2 == 1 => {
                wrong("vcpu_count", format!("must be 1 or even with smt, not {cpus}"));
            }
            _ => {}
        }
        let mib = machine.mem_size_mib;
        if mib < layout::MIN_MEMORY_MIB {
            wrong("mem_size_mib", format!("must be at least {}, not {mib}", layout::MIN_MEMORY_MIB));
        } else if mib > MAX_MEMORY_MIB {
            wrong("mem_size_mib", format!("must be at most {MAX_MEMORY_MIB}, not {mib}"));
        } else if machine.huge_pages == HugePages::TwoMib && mib % 2 == 1 {
            wrong("mem_size_mib", format!("must be even with huge_pages 2M, not {mib}"));
        }
    }

    fn check_snapshot(&self, problems: &mut Vec<Problem>) {
        let images = self.snapshot.iter().flat_map(|snapshot| snapshot.other_images.iter().enumerate());
        for (index, id) in images.filter(|(_, id)| self.drives.iter().all(|drive| drive.drive_id != **id)) {
            let path = JsonPath::keys(["snapshot", "other_images"]).index(index);
            problems.push(Problem::new(path, format!("there is no drive `{id}`")));
        }
    }

    fn check_boot(&self, problems: &mut Vec<Problem>) {
        let source = &self.boot_source;
        let path = |key| JsonPath::keys(["boot-source", key]);
        let mut sane = true;
        for (key, text) in [("boot_args", &source.boot_args), ("boot_args_append", &source.boot_args_append)] {
            let Some(text) = text else { continue };
            if let Some(bad) = text.chars().find(|char| char.is_control()) {
                sane = false;
                problems.push(Problem::new(path(key), format!("contains the control character {bad:?}")));
            }
        }
        let len = plan::compose_cmdline(self).len();
        let most = layout::CMDLINE_MAX - 1;
        if sane && len > most {
            let key = if source.boot_args.is_none() { "boot_args_append" } else { "boot_args" };
            let text = format!("the kernel command line is {len} bytes long; at most {most} fit");
            problems.push(Problem::new(path(key), text));
        }
    }

    /// What is wrong with an id that belongs to a device of which there is only one.
    fn reserved(&self, id: &str) -> Option<String> {
        let owner = match id {
            "balloon" if self.balloon.is_some() => "the memory balloon",
            "rng" if self.entropy.is_some() => "the random number generator",
            "vsock" if self.vsock.is_some() => "the vsock",
            _ => return None,
        };
        Some(format!("`{id}` is {owner}'s id; choose another"))
    }

    fn check_drives(&self, problems: &mut Vec<Problem>) {
        let drives = JsonPath::keys(["drives"]);
        let mut names = HashMap::new();
        let mut root = None;
        for (index, drive) in self.drives.iter().enumerate() {
            let path = drives.index(index);
            let mut wrong = |key, text: String| problems.push(Problem::new(path.key(key), text));
            if let Some(text) = bad_id(&drive.drive_id) {
                wrong("drive_id", text);
            } else if let Some(text) = self.reserved(&drive.drive_id) {
                wrong("drive_id", text);
            }
            if let Some(text) = drive.partuuid.as_deref().and_then(bad_partuuid) {
                wrong("partuuid", text);
            }
            if let Some(queues) = drive.num_queues.filter(|queues| !(1..=MAX_QUEUES).contains(queues)) {
                wrong("num_queues", format!("must be 1 to {MAX_QUEUES}, not {queues}"));
            }
            image::check(drive, &path, problems);
            let mut wrong = |key, text: String| problems.push(Problem::new(path.key(key), text));
            match names.entry(drive.drive_id.as_str()) {
                std::collections::hash_map::Entry::Vacant(free) => _ = free.insert(index),
                std::collections::hash_map::Entry::Occupied(first) => {
                    wrong("drive_id", format!("`{}` is drives[{}]'s id already", drive.drive_id, first.get()));
                }
            }
            match root {
                _ if !drive.is_root_device => {}
                None => root = Some(index),
                Some(first) => wrong("is_root_device", format!("drives[{first}] is the root device already")),
            }
        }
        let devices = self.drives.len()
            + usize::from(self.entropy.is_some())
            + usize::from(self.balloon.is_some())
            + usize::from(self.vsock.is_some())
            + self.network_interfaces.len()
            + self.pmem.len()
            + self.shares.len();
        if devices > layout::VIRTIO_MMIO_MAX {
            let text = format!("{devices} devices are too many: there is room for {}", layout::VIRTIO_MMIO_MAX);
            problems.push(Problem::new(drives, text));
        }
    }

    fn check_shares(&self, problems: &mut Vec<Problem>) {
        let list = JsonPath::keys(["shares"]);
        for (index, share) in self.shares.iter().enumerate() {
            let path = list.index(index);
            let tag = &share.tag;
            let first = self.shares.iter().take(index).position(|other| other.tag == *tag);
            let text = bad_id(tag).or_else(|| self.reserved(tag)).or_else(|| match first {
                Some(first) => Some(format!("`{tag}` is shares[{first}]'s tag already")),
                None if self.drives.iter().any(|drive| drive.drive_id == *tag) => {
                    Some(format!("`{tag}` is a drive's id already"))
                }
                None if self.network_interfaces.iter().any(|net| net.iface_id == *tag) => {
                    Some(format!("`{tag}` is a network interface's id already"))
                }
                None => {
                    (tag.len() > TAG_MAX).then(|| format!("is {} characters long; at most {TAG_MAX} fit", tag.len()))
                }
            });
            problems.extend(text.map(|text| Problem::new(path.key("tag"), text)));
        }
    }

    fn check_balloon(&self, problems: &mut Vec<Problem>) {
        let (mib, memory) =
            (self.balloon.as_ref().map_or(0, |balloon| balloon.amount_mib), self.machine_config.mem_size_mib);
        if u64::from(mib) >= memory && mib > 0 {
            let text = format!("must be less than the VM's memory ({memory} MiB), not {mib}");
            problems.push(Problem::new(JsonPath::keys(["balloon", "amount_mib"]), text));
        }
    }

    fn check_vsock(&self, problems: &mut Vec<Problem>) {
        let found = self.vsock.iter().flat_map(VsockConfig::problems);
        problems.extend(found.map(|(key, text)| Problem::new(JsonPath::keys(["vsock", key]), text)));
    }

    fn check_paths(&self, problems: &mut Vec<Problem>) {
        let len = self.gdb.as_ref().map_or(0, |path| path.as_os_str().len());
        if len > SOCKET_PATH_MAX {
            let text = format!("is {len} bytes long; a UNIX socket's path has at most {SOCKET_PATH_MAX}");
            problems.push(Problem::new(JsonPath::keys(["gdb"]), text));
        }
        for (path, file) in self.paths() {
            if file.as_os_str().is_empty() {
                problems.push(Problem::new(path, "is empty; a file's path is expected"));
            } else if file.as_os_str().as_encoded_bytes().contains(&0) {
                problems.push(Problem::new(path, "contains a NUL character"));
            }
        }
    }

    /// Every path of a host's file, with its place.
    fn paths(&self) -> impl Iterator<Item = (JsonPath, &std::path::Path)> {
        let drives = self.drives.iter().enumerate();
        let drives = drives.flat_map(|(index, drive)| drive_files(index, drive));
        let single = [
            (JsonPath::keys(["boot-source", "kernel_image_path"]), Some(&self.boot_source.kernel_image_path)),
            (JsonPath::keys(["boot-source", "initrd_path"]), self.boot_source.initrd_path.as_ref()),
            (JsonPath::keys(["vsock", "uds_path"]), self.vsock.as_ref().map(|vsock| &vsock.uds_path)),
            (JsonPath::keys(["gdb"]), self.gdb.as_ref()),
            (JsonPath::keys(["serial", "serial_out_path"]), self.serial.serial_out_path.as_ref()),
            (JsonPath::keys(["logger", "log_path"]), self.logger.as_ref().and_then(|logger| logger.log_path.as_ref())),
            (JsonPath::keys(["metrics", "metrics_path"]), self.metrics.as_ref().map(|metrics| &metrics.metrics_path)),
        ];
        let shares = self.shares.iter().enumerate().filter_map(|(index, share)| {
            Some((JsonPath::keys(["shares"]).index(index).key("path_on_host"), share.directory()?))
        });
        let pmem =
            self.pmem.iter().enumerate().map(|(index, pmem)| {
                (JsonPath::keys(["pmem"]).index(index).key("path_on_host"), Some(&pmem.path_on_host))
            });
        let programs = self.network_interfaces.iter().enumerate().map(|(index, net)| {
            let path = JsonPath::keys(["network-interfaces"]).index(index).key("user").key("passt");
            (path, net.user.as_ref().and_then(|user| user.passt.as_ref()))
        });
        single
            .into_iter()
            .chain(pmem)
            .chain(programs)
            .filter_map(|(path, file)| Some((path, file?.as_path())))
            .chain(shares)
            .chain(drives)
    }
}

/// What is wrong with an id: 1 to 64 letters, digits, `-` and `_`, as in Firecracker.
pub fn bad_id(id: &str) -> Option<String> {
    if id.is_empty() {
        return Some("is empty; 1 to 64 letters, digits, `-` or `_` are expected".into());
    }
    if let Some(bad) = id.chars().find(|char| !(char.is_ascii_alphanumeric() || *char == '-' || *char == '_')) {
        return Some(format!("`{id}` contains {bad:?}; letters, digits, `-` and `_` are allowed"));
    }
    (id.len() > ID_MAX).then(|| format!("is {} characters long; at most {ID_MAX} are allowed", id.len()))
}

/// What is wrong with a PARTUUID: it becomes part of a word of the kernel command line.
fn bad_partuuid(id: &str) -> Option<String> {
    if id.is_empty() {
        return Some("is empty; the partition's PARTUUID (as blkid prints it) is expected".into());
    }
    let bad = id.chars().find(|char| !(char.is_ascii_alphanumeric() || "-/=".contains(*char)))?;
    Some(format!("`{id}` contains {bad:?}; the partition's PARTUUID (as blkid prints it) is expected"))
}

#[cfg(test)]
mod tests;
