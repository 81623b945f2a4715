//! Disks: what the guest writes is in the image, what it must not write is not, and no image has two writers.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::vm::{Vm, host};

/// An empty disk of `size` bytes, all hole.
pub fn empty(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).expect("a disk").set_len(size).expect("its size");
    path
}

pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// So many bytes that do not repeat.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// A disk full of them.
pub fn full(folder: &Path, name: &str, size: usize) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, noise(size)).expect("a disk");
    path
}

pub fn checksum(path: &Path) -> String {
    host("md5sum", &[path.as_os_str()]).split(' ').next().expect("a checksum").to_owned()
}

pub fn disk(path: &Path, options: &str) -> [String; 2] {
    ["--disk".to_owned(), format!("{}{options}", path.display())]
}

#[test]
fn what_the_guest_wrote_is_in_the_image() {
    let folder = folder();
    let image = empty(folder.path(), "data.ext4", 64 << 20);
    host("mke2fs", &["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), image.as_os_str()]);
    // No unmount: what is synced must be there.
    let script = "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; echo written inside > /mnt/letter; sync; poweroff -f";
    Vm::boot("debian12/vmlinux").args(disk(&image, "")).run(script).start().ends(0);
    // Replays the journal, as the next mount would.
    let fsck = std::process::Command::new("e2fsck").arg("-p").arg(&image).output().expect("e2fsck");
    assert!(fsck.status.code().is_some_and(|code| code <= 1), "{}", String::from_utf8_lossy(&fsck.stdout));
    let letter = host("debugfs", &["-R".as_ref(), "cat /letter".as_ref(), image.as_os_str()]);
    assert_eq!(letter, "written inside\n");
}

#[test]
fn the_guest_s_root_keeps_what_was_written() {
    let folder = folder();
    let root = crate::vm::copy_of("busybox.ext4", folder.path());
    let boot = || {
        let args = ["--rootfs", &root.display().to_string(), "--memory", "256M"];
        let mut vm = Vm::boot("debian12/bzImage").args(args).pipe().start();
        vm.expect("login: ");
        vm.send("root\n");
        vm.expect(crate::console::PROMPT);
        vm
    };
    let mut first = boot();
    first.send("echo kept > /root/note; sync; poweroff\n");
    first.ends(0);
    let mut second = boot();
    second.send("cat /root/note; poweroff\n");
    second.expect("\nkept\n");
    second.ends(0);
}

/// Every byte, both ways, in requests of every size.
#[test]
fn bytes_arrive_unchanged() {
    let folder = folder();
    let (from, to) = (full(folder.path(), "from", 48 << 20), empty(folder.path(), "to", 48 << 20));
    let script = r"
        md5sum /dev/vda | { read sum name; echo whole=$sum; }
        s=0; for bs in 512 4096 65536 1048576; do
            dd if=/dev/vda of=/dev/vdb bs=$bs skip=$s seek=$s count=$((12582912 / bs)) iflag=direct oflag=direct 2>&1 | grep -v records
            s=$((s + 1)); done
        dd if=/dev/vda of=/dev/vdb bs=1M conv=fsync 2>/dev/null";
    let vm = Vm::tuned().args(disk(&from, ",ro")).args(disk(&to, "")).args(["--cpus", "2"]).run(script);
    let ended = vm.start().ends(0);
    assert_eq!(ended.value("whole"), checksum(&from));
    assert_eq!(checksum(&to), checksum(&from));
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let folder = folder();
    let image = full(folder.path(), "image", 1 << 20);
    let before = checksum(&image);
    let script = r"
        echo ro=$(cat /sys/block/vda/ro)
        blockdev --setrw /dev/vda; dd if=/dev/zero of=/dev/vda count=8 conv=fsync && echo WRITTEN
        echo sum=$(md5sum /dev/vda | cut -d' ' -f1)";
    for kernel in ["debian12/vmlinux", "tuned/vmlinux"] {
        let ended = Vm::boot(kernel).args(disk(&image, ",ro")).run(script).start().ends(0);
        assert_eq!(ended.number("ro"), 1);
        assert!(!ended.console.contains("WRITTEN"), "{}", ended.console);
        assert_eq!((ended.value("sum"), checksum(&image)), (&*before, before.clone()));
    }
}

/// The root comes first, then the disks in the order of their flags; each is known by its id.
#[test]
fn disks_have_their_order_and_their_ids() {
    let folder = folder();
    let (a, b, root) =
        (empty(folder.path(), "a", 1 << 20), empty(folder.path(), "b", 2 << 20), empty(folder.path(), "r", 3 << 20));
    let script = r"for d in vda vdb vdc vdd; do
        [ ! -e /sys/block/$d ] || echo $d=$(cat /sys/block/$d/size) $(cat /sys/block/$d/serial) $(cat /sys/block/$d/ro); done";
    let vm = Vm::boot("debian12/vmlinux").args(disk(&a, ",id=first")).args(disk(&b, ",ro,id=a-name-of-20-letters"));
    let ended = vm.args(["--rootfs", &root.display().to_string()]).run(script).start().ends(0);
    assert_eq!(ended.value("vda"), "6144 rootfs 0");
    assert_eq!(ended.value("vdb"), "2048 first 0");
    assert_eq!(ended.value("vdc"), "4096 a-name-of-20-letters 1");
    assert!(!ended.console.contains("\nvdd="), "{}", ended.console);
}

#[test]
fn an_image_has_one_writer_or_many_readers() {
    let folder = folder();
    let image = empty(folder.path(), "image", 1 << 20);
    let start = |options| Vm::tuned().args(disk(&image, options)).run("echo READY; sleep 10000").start();
    let mut writer = start("");
    writer.expect("READY");
    for (options, reason) in
        [("", "another process uses the image"), (",ro", "another process has the image open for writing")]
    {
        let refused = start(options).ends(1);
        let why = refused.why();
        assert!(why.contains(&image.display().to_string()) && why.contains(reason), "{why}");
    }
    drop(writer);

    let mut readers = [start(",ro"), start(",ro")];
    readers.iter_mut().for_each(|reader| reader.expect("READY"));
    assert!(start("").ends(1).why().contains("another process uses the image"));
    drop(readers);

    // The lock is gone with its holder, even though that was killed.
    start("").expect("READY");
}

/// The host knows when the guest says flush, if the config asks for it.
#[test]
fn the_cache_type_decides_about_flushes() {
    let folder = folder();
    let image = empty(folder.path(), "image", 1 << 20);
    for (cache, seen) in [("Writeback", "write back"), ("Unsafe", "write through")] {
        let config = serde_json::json!({
            "boot-source": {
                "kernel_image_path": crate::vm::guest("tuned/vmlinux"),
                "initrd_path": crate::vm::guest("tuned/initrd"),
            },
            "drives": [{ "drive_id": "d", "path_on_host": &image, "is_root_device": false, "cache_type": cache }],
        });
        let path = folder.path().join("vm.json");
        std::fs::write(&path, config.to_string()).expect("writing the config");
        let script = "echo cache=$(cat /sys/block/vda/queue/write_cache); sync /dev/vda && echo flushed=yes";
        let ended = Vm::new().args(["--config".into(), path]).run(script).start().ends(0);
        assert_eq!((ended.value("cache"), ended.value("flushed")), (seen, "yes"));
    }
}

/// Same config, same machine: all that the guest can see of it.
#[test]
fn a_second_boot_of_the_same_config_behaves_the_same() {
    let folder = folder();
    let image = empty(folder.path(), "image", 1 << 20);
    let script = r"
        echo BEGIN; cat /proc/cmdline /proc/iomem /proc/ioports
        sed 's/^ *\([^:]*\):.*  \(.*\)/\1 \2/' /proc/interrupts
        grep -v -e MHz -e bogomips /proc/cpuinfo; ls /sys/bus/virtio/devices /sys/bus/acpi/devices
        for d in /sys/bus/virtio/devices/*; do echo $d; cat $d/vendor $d/device $d/features; readlink -f $d; done
        cat /sys/block/vda/serial; md5sum /sys/firmware/acpi/tables/*; echo END";
    let boot = || {
        let vm = Vm::boot("debian12/vmlinux").args(disk(&image, ",id=same")).args(["--cpus", "2"]).append("nokaslr");
        let console = vm.run(script).start().ends(0).console;
        let seen = console.split_once("BEGIN\n").and_then(|(_, rest)| rest.split_once("END\n"));
        seen.unwrap_or_else(|| panic!("the script did not come to its end:\n{console}")).0.to_owned()
    };
    let (first, second) = (boot(), boot());
    for (first, second) in first.lines().zip(second.lines()) {
        assert_eq!(first, second);
    }
    assert_eq!(first.lines().count(), second.lines().count());
    assert!(first.lines().count() > 50, "{first}");
}
