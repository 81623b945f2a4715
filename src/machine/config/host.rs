//! What only the host can say about a configuration: files, memory, CPUs. Looks, opens nothing for long.
#![allow(unsafe_code)] // sysinfo(2)

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use devices::virtio::block::config::DriveConfig;
use kvm_ioctls::Kvm;

use super::fault::Problem;
use super::path::JsonPath;
use super::validate::drive_files;
use super::{TemplateName, VmConfig};
use crate::boot::{KernelError, identify};
use crate::cpu;
use crate::probe;
use crate::snapshot::SnapshotConfig;
use crate::x86_64::template::fixed::HostCpu;

/// What the host has to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    /// Memory and swap, MiB.
    pub memory_mib: Option<u64>,
    /// Most vCPUs of one VM, where it is known.
    pub cpus: Option<u32>,
}

impl HostLimits {
    /// Asks the host for its memory and KVM for its limit.
    pub fn of_this_host() -> Self {
        Self { memory_mib: memory_mib(), cpus: probe::max_vcpus() }
    }
}

fn memory_mib() -> Option<u64> {
    let mut info = MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: the kernel fills the structure behind the pointer, which is as large as it expects.
    let info = unsafe {
        if libc::sysinfo(info.as_mut_ptr()) != 0 {
            return None;
        }
        info.assume_init()
    };
    let units = u128::from(info.totalram) + u128::from(info.totalswap);
    u64::try_from((units * u128::from(info.mem_unit)) >> 20).ok()
}

impl VmConfig {
    /// Everything that this host cannot do for this configuration.
    pub fn check_host(&self, limits: &HostLimits) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut add = |path: JsonPath, text: Option<String>| problems.extend(text.map(|text| Problem::new(path, text)));
        let machine = &self.machine_config;
        let memory = limits.memory_mib.filter(|most| machine.mem_size_mib > *most);
        let memory =
            memory.map(|most| format!("this host has {most} MiB of memory and swap, not {}", machine.mem_size_mib));
        add(JsonPath::keys(["machine-config", "mem_size_mib"]), memory);
        let cpus = limits.cpus.filter(|most| machine.vcpu_count > *most);
        let cpus = cpus.map(|most| format!("this host's KVM allows {most} CPUs, not {}", machine.vcpu_count));
        add(JsonPath::keys(["machine-config", "vcpu_count"]), cpus);

        let name = machine.cpu_template;
        add(JsonPath::keys(["machine-config", "cpu_template"]), HostCpu::this().refuses(name));
        if let Some((place, text)) = self.missing_leaf() {
            add(place, Some(text));
        }

        let boot = &self.boot_source;
        add(JsonPath::keys(["boot-source", "kernel_image_path"]), bad_kernel(&boot.kernel_image_path));
        let initrd = boot.initrd_path.as_ref().and_then(|path| bad_image(path));
        add(JsonPath::keys(["boot-source", "initrd_path"]), initrd);
        for (key, path) in self.snapshot.iter().flat_map(SnapshotConfig::files) {
            add(JsonPath::keys(["snapshot", key]), bad_image(path));
        }
        for (index, drive) in self.drives.iter().enumerate() {
            for (path, file) in drive_files(index, drive) {
                let bad = bad_disk(file, drive.is_read_only).or_else(|| bad_partition(drive, file));
                add(path, bad.or_else(|| self.shared_disk(index, file)));
            }
        }
        for (index, pmem) in self.pmem.iter().enumerate() {
            let path = JsonPath::keys(["pmem"]).index(index).key("path_on_host");
            add(path, bad_memory(&pmem.path_on_host, pmem.writes_file()).or_else(|| self.shared_pmem(index)));
        }
        for (index, share) in self.shares.iter().enumerate() {
            let path = JsonPath::keys(["shares"]).index(index).key("path_on_host");
            add(path, share.directory().and_then(bad_directory));
        }
        for (index, net) in self.network_interfaces.iter().enumerate() {
            let path = JsonPath::keys(["network-interfaces"]).index(index).key("user").key("passt");
            let program = net.user.as_ref().and_then(|user| user.passt.as_ref());
            add(path, program.and_then(|program| bad_image(program)));
        }
        let serial = self.serial.serial_out_path.as_ref().filter(|_| self.serial.enabled);
        add(JsonPath::keys(["serial", "serial_out_path"]), serial.and_then(|path| bad_output(path)));
        let log = self.logger.as_ref().and_then(|logger| logger.log_path.as_ref());
        add(JsonPath::keys(["logger", "log_path"]), log.and_then(|path| bad_output(path)));
        let metrics = self.metrics.as_ref().and_then(|metrics| bad_output(&metrics.metrics_path));
        add(JsonPath::keys(["metrics", "metrics_path"]), metrics);
        problems
    }

    /// A leaf of CPUID that the template changes and that this host's KVM does not have. Without KVM nobody knows.
    fn missing_leaf(&self) -> Option<(JsonPath, String)> {
        let template = self.template();
        if template.cpuid.is_empty() {
            return None;
        }
        let supported = cpu::supported(&Kvm::new().ok()?).ok()?;
        let (place, missing) = template.missing_leaf(supported.as_slice())?;
        let (leaf, subleaf) = (missing.leaf, missing.subleaf);
        let text = format!("this host's KVM has no leaf {leaf:#x}, subleaf {subleaf:#x} of CPUID");
        let path = match self.machine_config.cpu_template {
            TemplateName::None => JsonPath::keys(["cpu-config", "cpuid_modifiers"]).index(place).key("leaf"),
            _ => JsonPath::keys(["machine-config", "cpu_template"]),
        };
        Some((path, text))
    }

    /// Whether a drive's file is that of an earlier drive, and one of them writes.
    fn shared_disk(&self, index: usize, path: &Path) -> Option<String> {
        let file = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
        let (drive, earlier) = (self.drives.get(index)?, self.drives.get(..index)?);
        let this = file(path)?;
        let same = |other: &&DriveConfig| other.files().any(|other| file(other) == Some(this));
        let writes = |other: &&DriveConfig| !(other.is_read_only && drive.is_read_only);
        let other = earlier.iter().filter(writes).find(same)?;
        Some(format!("{} is drive {}'s file too; both must be read-only", path.display(), other.drive_id))
    }

    /// Whether a pmem device's file is that of a drive or of an earlier one, and one of them writes.
    fn shared_pmem(&self, index: usize) -> Option<String> {
        let pmem = self.pmem.get(index)?;
        let drives = self
            .drives
            .iter()
            .flat_map(|drive| drive.files().map(move |path| ("drive", &drive.drive_id, path, !drive.is_read_only)));
        let earlier = self.pmem.iter().take(index);
        let earlier = earlier.map(|other| ("pmem", &other.id, other.path_on_host.as_path(), other.writes_file()));
        let file = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
        let this = file(&pmem.path_on_host)?;
        let (device, id, ..) = drives
            .chain(earlier)
            .filter(|(.., writes)| *writes || pmem.writes_file())
            .find(|(_, _, path, _)| file(path) == Some(this))?;
        Some(format!("{} is {device} {id}'s file too; both must only read it", pmem.path_on_host.display()))
    }
}

/// What is wrong with a file that shall be memory of the guest.
fn bad_memory(path: &Path, writes: bool) -> Option<String> {
    bad_image(path).or_else(|| match OpenOptions::new().read(true).write(writes).open(path) {
        Ok(file) => {
            let empty = file.metadata().is_ok_and(|found| found.len() == 0);
            empty.then(|| format!("{} is empty", path.display()))
        }
        Err(error) => {
            let refused = refused_to("write", path, &error);
            Some(format!("{refused}; it can be read: make the device read-only or private?"))
        }
    })
}

fn bad_image(path: &Path) -> Option<String> {
    let found = match path.metadata() {
        Ok(found) => found,
        Err(error) => return Some(refused(path, &error)),
    };
    match kind(&found) {
        None => File::open(path).err().map(|error| refused(path, &error)),
        Some(kind) => Some(format!("{} is {kind}, not a file", path.display())),
    }
}

fn bad_kernel(path: &Path) -> Option<String> {
    bad_image(path).or_else(|| {
        let looked = File::open(path).map_err(KernelError::from).and_then(|file| identify(&file));
        looked.err().map(|error| format!("{} is no kernel: {error}", path.display()))
    })
}

fn bad_disk(path: &Path, read_only: bool) -> Option<String> {
    let found = match path.metadata() {
        Ok(found) => found,
        Err(error) => return Some(refused(path, &error)),
    };
    match kind(&found) {
        Some(kind) if !found.file_type().is_block_device() => {
            Some(format!("{} is {kind}, not a disk image or a block device", path.display()))
        }
        _ => match OpenOptions::new().read(true).write(!read_only).open(path) {
            Ok(_) => None,
            Err(error) if !read_only && File::open(path).is_ok() => {
                Some(format!("{}; it can be read: make the drive read-only?", refused_to("write", path, &error)))
            }
            Err(error) => Some(refused(path, &error)),
        },
    }
}

/// What is wrong with a file that shall be a partition, as far as any other disk's may be so.
fn bad_partition(drive: &DriveConfig, path: &Path) -> Option<String> {
    let empty = |found: Metadata| found.is_file() && found.len() == 0;
    let refused = !drive.partitions.is_empty() && path.metadata().is_ok_and(empty);
    refused.then(|| format!("{} is empty; a partition has at least one byte", path.display()))
}

fn bad_directory(path: &Path) -> Option<String> {
    match path.metadata() {
        Ok(found) if found.is_dir() => path.read_dir().err().map(|error| refused(path, &error)),
        Ok(found) => Some(format!("{} is {}, not a directory", path.display(), kind(&found).unwrap_or("a file"))),
        Err(error) => Some(refused(path, &error)),
    }
}

/// An output file may be missing, its directory may not.
fn bad_output(path: &Path) -> Option<String> {
    match path.metadata() {
        Ok(found) if found.is_dir() => Some(format!("{} is a directory, not a file", path.display())),
        Ok(found) if !found.is_file() => None, // a FIFO or a terminal: opening it here could wait or hang up
        Ok(_) => OpenOptions::new().append(true).open(path).err().map(|error| refused_to("write", path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            match directory.metadata() {
                Ok(found) if found.is_dir() => None,
                Ok(_) => Some(format!("{} is not a directory", directory.display())),
                Err(_) => Some(format!("the directory {} does not exist", directory.display())),
            }
        }
        Err(error) => Some(refused(path, &error)),
    }
}

/// What a file is when it is no regular file.
fn kind(found: &Metadata) -> Option<&'static str> {
    let kind = found.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_block_device() => Some("a block device"),
        () if kind.is_char_device() => Some("a character device"),
        () if kind.is_fifo() => Some("a FIFO"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("something else"),
    }
}

fn refused(path: &Path, error: &io::Error) -> String {
    refused_to("read", path, error)
}

fn refused_to(doing: &str, path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("{path} does not exist"),
        io::ErrorKind::PermissionDenied => format!("no permission to {doing} {path}"),
        io::ErrorKind::ReadOnlyFilesystem => format!("{path} is on a read-only file system"),
        io::ErrorKind::NotADirectory => format!("{path} does not exist: a part of its path is a file"),
        _ => format!("cannot {doing} {path}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    const PLENTY: HostLimits = HostLimits { memory_mib: Some(1 << 20), cpus: Some(64) };

    fn problems(document: serde_json::Value, limits: &HostLimits) -> Vec<String> {
        let config: VmConfig = serde_json::from_value(document).unwrap();
        config.check_host(limits).into_iter().map(|p| format!("{}: {}", p.path, p.text)).collect()
    }

    /// A file that could be a kernel, by its first bytes.
    fn write_kernel(path: &Path) {
        let mut bytes = vec![0; 1024];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn files_are_looked_at_each_in_its_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::write(path("file"), "x").unwrap();
        write_kernel(&dir.path().join("kernel"));
        let good = json!({
            "boot-source": { "kernel_image_path": path("kernel"), "initrd_path": path("file") },
            "drives": [{ "drive_id": "a", "path_on_host": path("file") }],
            "shares": [{ "tag": "t", "path_on_host": dir.path() }],
            "serial": { "serial_out_path": path("new") }, "logger": { "log_path": path("file") }
        });
        assert!(problems(good, &PLENTY).is_empty());
        let bad = json!({
            "boot-source": { "kernel_image_path": path("none"), "initrd_path": dir.path() },
            "drives": [{ "drive_id": "a", "path_on_host": "/dev/null" }, { "drive_id": "b", "path_on_host": path("file/x") }],
            "shares": [{ "tag": "t", "path_on_host": path("file") }, { "tag": "u", "path_on_host": path("none") }],
            "serial": { "serial_out_path": path("none/new") }, "logger": { "log_path": dir.path() }
        });
        let (dir, none, below) = (dir.path().display(), path("none"), path("file/x"));
        assert_eq!(
            problems(bad, &PLENTY),
            [
                format!("boot-source.kernel_image_path: {none} does not exist"),
                format!("boot-source.initrd_path: {dir} is a directory, not a file"),
                "drives[0].path_on_host: /dev/null is a character device, not a disk image or a block device".into(),
                format!("drives[1].path_on_host: {below} does not exist: a part of its path is a file"),
                format!("shares[0].path_on_host: {} is a file, not a directory", path("file")),
                format!("shares[1].path_on_host: {none} does not exist"),
                format!("serial.serial_out_path: the directory {none} does not exist"),
                format!("logger.log_path: {dir} is a directory, not a file"),
            ]
        );
    }

    #[test]
    fn a_kernel_must_look_like_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = || problems(json!({ "boot-source": { "kernel_image_path": file.path() } }), &PLENTY).join("\n");
        let place = format!("boot-source.kernel_image_path: {} is no kernel: it looks like", file.path().display());
        assert!(text().starts_with(&format!("{place} an empty file; expected is")), "{}", text());
        fs::write(file.path(), b"\x1f\x8b\x08").unwrap();
        assert!(text().starts_with(&format!("{place} gzip data; unpack it first")), "{}", text());
        write_kernel(file.path());
        assert_eq!(text(), "");
    }

    #[test]
    fn two_drives_share_a_file_only_to_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write_kernel(file.path());
        let path = file.path().display().to_string();
        let shared = |first, second| {
            let drive = |id: &str, ro| json!({ "drive_id": id, "path_on_host": path, "is_read_only": ro });
            let boot = json!({ "kernel_image_path": path });
            problems(json!({ "boot-source": boot, "drives": [drive("a", first), drive("b", second)] }), &PLENTY)
        };
        let wanted = format!("drives[1].path_on_host: {path} is drive a's file too; both must be read-only");
        assert_eq!(shared(true, true), [""; 0]);
        for (first, second) in [(false, false), (true, false), (false, true)] {
            assert_eq!(shared(first, second), [wanted.as_str()]);
        }
    }

    #[test]
    fn partitions_are_looked_at_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        write_kernel(&dir.path().join("kernel"));
        fs::write(path("empty"), "").unwrap();
        fs::write(path("one"), "x").unwrap();
        let part = |name: &str| json!({ "path_on_host": path(name) });
        let drives = json!([
            { "drive_id": "w", "path_on_host": path("one") },
            { "drive_id": "a", "partitions": [part("one"), part("empty"), part("none"), part("kernel")], "is_read_only": true }
        ]);
        let pmem = json!([{ "id": "m", "path_on_host": path("kernel") }]);
        let boot = json!({ "kernel_image_path": path("kernel") });
        assert_eq!(
            problems(json!({ "boot-source": boot, "drives": drives, "pmem": pmem }), &PLENTY),
            [
                format!(
                    "drives[1].partitions[0].path_on_host: {} is drive w's file too; both must be read-only",
                    path("one")
                ),
                format!(
                    "drives[1].partitions[1].path_on_host: {} is empty; a partition has at least one byte",
                    path("empty")
                ),
                format!("drives[1].partitions[2].path_on_host: {} does not exist", path("none")),
                format!("pmem[0].path_on_host: {} is drive a's file too; both must only read it", path("kernel")),
            ]
        );
    }

    #[test]
    fn memory_is_a_file_and_has_one_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        write_kernel(&dir.path().join("file"));
        fs::write(path("empty"), "").unwrap();
        let found = |drives: serde_json::Value, pmem: serde_json::Value| {
            let boot = json!({ "kernel_image_path": path("file") });
            problems(json!({ "boot-source": boot, "drives": drives, "pmem": pmem }), &PLENTY)
        };
        let pmem = |id: &str, file: &str, mode: &str| {
            let mut pmem = json!({ "id": id, "path_on_host": path(file) });
            pmem[mode] = json!(true);
            pmem
        };
        assert_eq!(
            found(
                json!([]),
                json!([pmem("a", "", "private"), pmem("b", "none", "read_only"), pmem("c", "empty", "private")])
            ),
            [
                format!("pmem[0].path_on_host: {}/ is a directory, not a file", dir.path().display()),
                format!("pmem[1].path_on_host: {} does not exist", path("none")),
                format!("pmem[2].path_on_host: {} is empty", path("empty")),
            ]
        );
        let only_read = json!([pmem("a", "file", "private"), pmem("b", "file", "read_only")]);
        let drive = |ro| json!([{ "drive_id": "d", "path_on_host": path("file"), "is_read_only": ro }]);
        assert_eq!(found(drive(true), only_read.clone()), [""; 0]);
        let too = |device: &str| format!("{} is {device}'s file too; both must only read it", path("file"));
        let (first, second) = ("pmem[0].path_on_host: ", "pmem[1].path_on_host: ");
        let wanted = [format!("{first}{}", too("drive d")), format!("{second}{}", too("drive d"))];
        assert_eq!(found(drive(false), only_read), wanted);
        let writer = json!([pmem("a", "file", "private"), { "id": "b", "path_on_host": path("file") }]);
        assert_eq!(found(json!([]), writer), [format!("{second}{}", too("pmem a"))]);
    }

    #[test]
    fn the_host_has_limits() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write_kernel(file.path());
        let document = json!({
            "boot-source": { "kernel_image_path": file.path() }, "machine-config": { "vcpu_count": 8, "mem_size_mib": 4096 }
        });
        assert!(problems(document.clone(), &HostLimits { memory_mib: None, cpus: None }).is_empty());
        assert_eq!(
            problems(document, &HostLimits { memory_mib: Some(2048), cpus: Some(4) }),
            [
                "machine-config.mem_size_mib: this host has 2048 MiB of memory and swap, not 4096",
                "machine-config.vcpu_count: this host's KVM allows 4 CPUs, not 8",
            ]
        );
        assert!(HostLimits::of_this_host().memory_mib.is_some_and(|mib| mib > 0));
    }

    #[test]
    fn a_template_is_for_this_host() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write_kernel(file.path());
        let boot = json!({ "kernel_image_path": file.path() });
        let named = |name: &str| json!({ "boot-source": boot, "machine-config": { "cpu_template": name } });
        let found = [problems(named("T2"), &PLENTY), problems(named("T2A"), &PLENTY)].concat();
        let other = found.iter().filter(|text| text.contains("; this host has one of"));
        assert!(other.count() >= 1, "no processor is both makers': {found:?}");
        let absent = json!([{ "leaf": "0x3fffffff", "subleaf": "7", "flags": 0, "modifiers": [] }]);
        let found = problems(json!({ "boot-source": boot, "cpu-config": { "cpuid_modifiers": absent } }), &PLENTY);
        let place = "cpu-config.cpuid_modifiers[0].leaf";
        let text = format!("{place}: this host's KVM has no leaf 0x3fffffff, subleaf 0x7 of CPUID");
        assert_eq!(found, Kvm::new().map_or(Vec::new(), |_| vec![text]));
    }

    #[test]
    fn errors_read_as_sentences() {
        let error = |kind| refused_to("write", Path::new("/x"), &io::Error::from(kind));
        assert_eq!(error(io::ErrorKind::PermissionDenied), "no permission to write /x");
        assert_eq!(error(io::ErrorKind::ReadOnlyFilesystem), "/x is on a read-only file system");
        assert_eq!(error(io::ErrorKind::TimedOut), "cannot write /x: timed out");
    }
}
