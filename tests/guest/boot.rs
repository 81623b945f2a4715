//! Every kernel format with every kernel: found by what it is, booted to init, its devices found by ACPI alone.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::vm::{Ended, Vm, copy_of, guest, host, program};

/// Looks around. `devices` lists where in the tree of devices the virtio ones hang.
const LOOK: &str = r"
echo release=$(uname -r)
echo cpus=$(grep -c ^processor /proc/cpuinfo)
echo memory=$(sed -n 's/^MemTotal: *//p' /proc/meminfo | cut -d' ' -f1)
echo devices=$(for d in /sys/bus/virtio/devices/*; do readlink -f $d; done)
echo acpi=$(ls /sys/bus/acpi/devices | grep -c ^LNRO0005)
echo cmdline=$(cat /proc/cmdline)
echo disk=$(cat /sys/block/vda/size)
echo INIT HAS RUN
";

#[test]
fn debian_12_from_bzimage() {
    boots("debian12/bzImage", "6.1.");
}

#[test]
fn debian_12_from_vmlinux_by_pvh() {
    boots("debian12/vmlinux", "6.1.");
}

#[test]
fn debian_12_from_vmlinux_by_the_64_bit_protocol() {
    boots("debian12/vmlinux-nopvh", "6.1.");
}

#[test]
fn debian_13_from_bzimage() {
    boots("debian13/bzImage", "6.12.");
}

#[test]
fn debian_13_from_vmlinux_by_pvh() {
    boots("debian13/vmlinux", "6.12.");
}

#[test]
fn debian_13_from_vmlinux_by_the_64_bit_protocol() {
    boots("debian13/vmlinux-nopvh", "6.12.");
}

#[test]
fn tuned_from_bzimage() {
    boots("tuned/bzImage", "");
}

#[test]
fn tuned_from_vmlinux_by_pvh() {
    boots("tuned/vmlinux", "");
}

#[test]
fn tuned_from_vmlinux_by_the_64_bit_protocol() {
    boots("tuned/vmlinux-nopvh", "");
}

/// Boots `kernel` with two CPUs, 256 MiB and a disk.
fn boots(kernel: &str, release: &str) {
    let disk = format!("{},ro", guest("busybox.ext4").display());
    let vm = Vm::boot(kernel).args(["--cpus", "2", "--memory", "256M", "--disk", &disk]).run(LOOK).start();
    let ended = vm.ends(0);
    assert!(ended.console.contains("INIT HAS RUN"), "{}", ended.console);
    assert!(ended.value("release").starts_with(release), "{}", ended.value("release"));
    assert_eq!(ended.number("cpus"), 2);
    let memory = ended.number("memory") >> 10;
    assert!((180..=256).contains(&memory), "the guest has {memory} of 256 MiB");
    by_acpi_alone(&ended);
    assert_eq!(ended.number("disk"), std::fs::metadata(guest("busybox.ext4")).expect("the image").len() / 512);
    assert_eq!(ended.why(), "vmm: the guest powered off");
}

/// At least the disk is there; every virtio device was announced by ACPI and none on the command line.
fn by_acpi_alone(ended: &Ended) {
    let devices: Vec<&str> = ended.value("devices").split_ascii_whitespace().collect();
    assert!(!devices.is_empty() && devices.iter().all(|path| path.contains("LNRO0005")), "{devices:?}");
    assert_eq!(ended.number("acpi"), devices.len() as u64);
    assert!(!ended.value("cmdline").contains("virtio_mmio"), "{}", ended.value("cmdline"));
}

/// The shortest command: a kernel that has all it needs built in, and a root file system.
#[test]
fn a_kernel_and_a_root_file_system() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = copy_of("busybox.ext4", folder.path());
    let vm = Vm::new().args(["--kernel".into(), guest("tuned/vmlinux"), "--rootfs".into(), root]);
    let ended = vm.run("echo root=$(grep ' / ext4 ' /proc/mounts)").start().ends(0);
    assert!(ended.value("root").starts_with("/dev/root / ext4 rw"), "{}", ended.value("root"));
}

#[test]
fn an_initrd_of_several_hundred_mib() {
    const SIZE: usize = 300 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let initrd = large_initrd(folder.path(), SIZE);
    let vm = Vm::new()
        .args(["--kernel".into(), guest("tuned/vmlinux"), "--initrd".into(), initrd])
        .args(["--memory", "1G"])
        .run("echo size=$(stat -c %s /large) first=$(head -c 9 /large) last=$(tail -c 9 /large)");
    let ended = vm.start().ends(0);
    assert_eq!(ended.value("size"), format!("{SIZE} first=beginning last=its_last_"));
}

/// The tuned kernel's initrd with one more archive behind it, which holds a file `large`. The kernel unpacks both.
fn large_initrd(folder: &Path, size: usize) -> PathBuf {
    let path = folder.join("initrd");
    let mut initrd = std::fs::read(guest("tuned/initrd")).expect("the initrd");
    initrd.resize(initrd.len().next_multiple_of(512), 0);
    let mut out = BufWriter::new(File::create(&path).expect("a file"));
    out.write_all(&initrd).expect("writing");
    let mut content = vec![0; size];
    content[..9].copy_from_slice(b"beginning");
    content[size - 9..].copy_from_slice(b"its_last_");
    for (name, mode, content) in [("large", 0o100_644, content.as_slice()), ("TRAILER!!!", 0, &[])] {
        // newc (Linux, Documentation/driver-api/early-userspace/buffer-format.rst): thirteen numbers, name, content,
        // the latter two each padded to four bytes.
        let fields = [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        let numbers: String = fields.iter().map(|number| format!("{number:08x}")).collect();
        let mut head = format!("070701{numbers}{name}\0").into_bytes();
        head.resize(head.len().next_multiple_of(4), 0);
        out.write_all(&head).expect("writing");
        out.write_all(content).expect("writing");
        out.write_all(&[0; 3][..content.len().next_multiple_of(4) - content.len()]).expect("writing");
    }
    out.into_inner().expect("writing");
    path
}

#[test]
fn the_waterfall_shows_every_phase() {
    let ended = Vm::tuned().args(["--timings", "--id", "stopwatch"]).run("echo up").start().ends(0);
    assert_eq!(ended.why(), "vmm: stopwatch: the guest powered off");
    for phase in ["process started", "guest entered", "first console byte", "VM ended"] {
        assert!(ended.errors.lines().any(|line| line.starts_with(phase)), "no line for {phase:?}:\n{}", ended.errors);
    }

    let ended = Vm::tuned().args(["--timings=json"]).run("echo up").start().ends(0);
    let json = ended.errors.lines().find(|line| line.starts_with('{')).expect("a line of JSON");
    let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
    let phases = json["timings"].as_array().expect("timings").iter();
    let times: Vec<f64> = phases.map(|phase| phase["at_us"].as_f64().expect("a time")).collect();
    assert!(times.len() >= 8 && times.is_sorted(), "{times:?}");
}

/// A config in Firecracker's dialect boots the same VM as the flags do.
#[test]
fn from_a_config_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vm.json");
    let config = serde_json::json!({
        "boot-source": {
            "kernel_image_path": guest("debian12/vmlinux"),
            "initrd_path": guest("debian12/initrd"),
            "boot_args": "console=ttyS0 quiet panic=-1 from=config",
        },
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 256 },
        "drives": [{
            "drive_id": "rootfs",
            "path_on_host": guest("busybox.ext4"),
            "is_root_device": false,
            "is_read_only": true,
        }],
        "entropy": {},
    });
    std::fs::write(&path, config.to_string()).expect("writing the config");
    let ended = Vm::new().args(["--config".into(), path]).run(LOOK).start().ends(0);
    assert_eq!((ended.number("cpus"), ended.value("devices").split_ascii_whitespace().count()), (2, 2));
    assert!(ended.value("cmdline").contains("from=config"), "{}", ended.value("cmdline"));
    by_acpi_alone(&ended);
}

/// The program needs nothing of the host but its kernel: no library, no file outside those it was given.
#[test]
fn from_an_empty_root() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    for (from, to) in [(program().into(), "vmm"), (guest("tuned/vmlinux"), "kernel"), (guest("tuned/initrd"), "initrd")]
    {
        std::fs::copy(from, root.join(to)).expect("a copy");
    }
    std::fs::create_dir(root.join("dev")).expect("a folder");
    // In namespaces of its own, /dev/kvm is all of /dev.
    let script = r#"
        touch "$1/dev/kvm" && mount --bind /dev/kvm "$1/dev/kvm" &&
        exec chroot "$1" /vmm --kernel /kernel --initrd /initrd --append "$2" </dev/null 2>&1"#;
    let args = ["--mount", "--map-root-user", "sh", "-c", script, "sh"].map(AsRef::as_ref);
    let tail = [root.as_os_str(), "vmm.run=ZWNobyBhbG9uZQo=".as_ref()];
    let printed = host("unshare", &[&args[..], &tail[..]].concat());
    assert!(printed.contains("alone"), "{printed}");
}
