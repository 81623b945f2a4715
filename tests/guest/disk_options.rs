//! Disks in all their options: blocks given back, a full host, no page cache, many requests in flight, limits.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::disk::{checksum, disk, empty, folder, full};
use crate::metrics::{lines, sum};
use crate::net::md5;
use crate::vm::{Vm, copy_of, host};

/// A file system of the host, mounted as long as this lives.
pub struct Mounted(pub PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, size: &str) -> Self {
        Self::of("tmpfs", at, &format!("size={size}"))
    }

    /// One in memory.
    fn of(kind: &str, at: &Path, options: &str) -> Self {
        std::fs::create_dir(at).expect("a mount point");
        host("mount", &["-t".as_ref(), kind.as_ref(), "-o".as_ref(), options.as_ref(), "x".as_ref(), at.as_os_str()]);
        Self(at.to_owned())
    }

    /// ext4 of `mib` MiB.
    pub fn ext4(folder: &Path, mib: u64) -> Self {
        let (store, at) = (empty(folder, "store", mib << 20), folder.join("mounted"));
        std::fs::create_dir(&at).expect("a mount point");
        host("mke2fs", &["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), store.as_os_str()]);
        host("mount", &["-o".as_ref(), "loop".as_ref(), store.as_os_str(), at.as_os_str()]);
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn blocks(path: &Path) -> u64 {
    File::open(path).and_then(|file| file.metadata()).expect("the image").blocks()
}

/// What the guest never wrote takes no place on the host.
#[test]
fn a_sparse_image_stays_sparse() {
    for engine in ["sync", "async"] {
        let folder = folder();
        let image = empty(folder.path(), "data", 64 << 20);
        let script = "dd if=/dev/urandom of=/dev/vda bs=1M count=1 seek=32 conv=fsync 2>/dev/null
            dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null; echo bytes=$(dd if=/dev/vda bs=1M 2>/dev/null | wc -c)";
        let ended = Vm::tuned().args(disk(&image, &format!(",engine={engine}"))).run(script).start().ends(0);
        assert_eq!(ended.number("bytes"), 64 << 20);
        let kib = blocks(&image) / 2;
        assert!((1024..2048).contains(&kib), "{kib} KiB for 1 MiB that was written");
    }
}

#[test]
fn a_trim_gives_the_host_its_blocks_back() {
    let folder = folder();
    let image = empty(folder.path(), "data.ext4", 64 << 20);
    host("mke2fs", &["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), image.as_os_str()]);
    let script = r"
        mkdir -p /mnt; mount -t ext4 /dev/vda /mnt
        echo granularity=$(cat /sys/block/vda/queue/discard_granularity)
        dd if=/dev/urandom of=/mnt/big bs=1M count=24 2>/dev/null; echo kept > /mnt/letter; sync; echo WRITTEN; read go
        rm /mnt/big; sync; fstrim /mnt && echo TRIMMED; umount /mnt; read go";
    for kernel in ["debian12/vmlinux", "debian13/vmlinux"] {
        let mut vm = Vm::boot(kernel).args(disk(&image, "")).pipe().run(script).start();
        vm.expect("WRITTEN");
        let before = blocks(&image);
        vm.send("\n");
        vm.expect("TRIMMED");
        let after = blocks(&image);
        vm.send("\n");
        let ended = vm.ends(0);
        assert_eq!(ended.number("granularity"), 4096);
        assert!(before >= 24 << 11 && after + (20 << 11) < before, "{before} blocks before, {after} after");
        let fsck = std::process::Command::new("e2fsck").arg("-fn").arg(&image).output().expect("e2fsck");
        assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
    }
}

#[test]
fn discarded_blocks_read_as_zeros() {
    let folder = folder();
    let image = full(folder.path(), "image", 16 << 20);
    let script = r"
        echo zeroes=$(cat /sys/block/vda/queue/write_zeroes_max_bytes)
        blkdiscard -o 4194304 -l 4194304 /dev/vda && echo discarded=yes
        sync; echo sum=$(md5sum /dev/vda | cut -d' ' -f1)";
    let before = blocks(&image);
    let mut wanted = std::fs::read(&image).expect("the image");
    wanted[4 << 20..8 << 20].fill(0);
    let metrics = folder.path().join("metrics");
    let vm = Vm::tuned().args(disk(&image, "")).args(["--metrics-path".into(), metrics.display().to_string()]);
    let ended = vm.run(script).start().ends(0);
    assert_eq!(ended.value("discarded"), "yes");
    assert_eq!(sum(&lines(&metrics), "block_disk1", "discards"), 1);
    assert_eq!(ended.number("zeroes"), 32 << 20);
    let copy = folder.path().join("wanted");
    std::fs::write(&copy, wanted).expect("the wanted bytes");
    assert_eq!((ended.value("sum"), checksum(&image)), (&*checksum(&copy), checksum(&copy)));
    assert!(blocks(&image) + (4 << 11) <= before, "a discard makes a hole");
}

/// Zeroed without a byte on its way, by util-linux of Debian's root: `fallocate -p` lets the host drop the blocks (UNMAP),
/// `blkdiscard -z` does not (BLKZEROOUT).
#[test]
fn zeroed_blocks_read_as_zeros() {
    for engine in ["sync", "async"] {
        let folder = folder();
        // A file system that can make a range zero and keep its blocks.
        let store = Mounted::ext4(folder.path(), 64);
        let (image, tools) = (full(&store.0, "image", 16 << 20), copy_of("debian12.ext4", folder.path()));
        let script = r"
            mount -o ro /dev/vdb /mnt; mount -t devtmpfs dev /mnt/dev; echo READY; read go
            chroot /mnt /sbin/blkdiscard -z -o 1048576 -l 4194304 /dev/vda && echo ZEROED; read go
            chroot /mnt fallocate -p -o 9437184 -l 4194304 /dev/vda && echo UNMAPPED; read go
            echo 3 > /proc/sys/vm/drop_caches; echo sum=$(md5sum </dev/vda | cut -d' ' -f1)";
        let mut wanted = std::fs::read(&image).expect("the image");
        wanted[1 << 20..5 << 20].fill(0);
        wanted[9 << 20..13 << 20].fill(0);
        let metrics = folder.path().join("metrics");
        let vm = Vm::tuned().args(disk(&image, &format!(",engine={engine}"))).args(disk(&tools, ",ro"));
        let vm = vm.args(["--metrics-path".into(), metrics.display().to_string()]);
        let mut vm = vm.run(script).pipe().start();
        let mut kept = Vec::new();
        for sign in ["READY", "ZEROED", "UNMAPPED"] {
            vm.expect(sign);
            File::open(&image).and_then(|file| file.sync_all()).expect("blocks have their places");
            kept.push(blocks(&image));
            vm.send("\n");
        }
        let ended = vm.ends(0);
        assert!(kept[1] >= kept[0] && kept[2] + (4 << 11) <= kept[1] + 64, "{engine}: {kept:?} blocks of the host");
        let all = md5(&wanted);
        assert_eq!((ended.value("sum"), checksum(&image)), (all.as_str(), all.clone()), "{engine}");
        let counted =
            ["write_zeroes", "discards", "write_bytes"].map(|name| sum(&lines(&metrics), "block_disk1", name));
        assert!(counted[0] >= 2, "{engine}: {counted:?}");
        assert_eq!(counted[1..], [0, 0], "{engine}");
    }
}

/// Where the host's file system is full, the guest gets I/O errors; what it can still do it does.
#[test]
fn a_full_host_disk_is_an_error_in_the_guest() {
    for engine in ["sync", "async"] {
        fills_the_host(&format!(",engine={engine}"));
    }
}

fn fills_the_host(options: &str) {
    let folder = folder();
    let small = Mounted::tmpfs(&folder.path().join("small"), "4M");
    let image = empty(&small.0, "image", 16 << 20);
    let script = r"
        dd if=/dev/urandom of=/dev/vda bs=1M count=2 oflag=direct 2>/dev/null && echo first=yes
        dd if=/dev/urandom of=/dev/vda bs=1M count=8 seek=4 oflag=direct 2>/dev/null || echo full=yes
        blkdiscard -o 0 -l 16777216 /dev/vda && echo discarded=yes
        dd if=/dev/urandom of=/dev/vda bs=1M count=2 seek=4 oflag=direct 2>/dev/null && echo again=yes";
    let mut vm = Vm::tuned().args(disk(&image, options)).run(script).start();
    vm.expect_error("No space left on device");
    let ended = vm.ends(0);
    let said = ["first", "full", "discarded", "again"].map(|name| ended.value(name).to_owned());
    assert_eq!(said, ["yes"; 4]);
}

/// What the host can not give back is refused as unsupported, which Linux passes over; the disk goes on, unchanged.
#[test]
fn a_file_system_without_holes_refuses_discards() {
    for engine in ["sync", "async"] {
        let folder = folder();
        let store = Mounted::of("ramfs", &folder.path().join("store"), "mode=700");
        let image = full(&store.0, "image", 4 << 20);
        let script = "blkdiscard /dev/vda; echo 3 > /proc/sys/vm/drop_caches
            echo after=$(md5sum </dev/vda | cut -d' ' -f1)
            dd if=/dev/vda of=/dev/vda bs=1M count=1 seek=3 conv=fsync 2>/dev/null && echo written=yes";
        let (before, metrics) = (checksum(&image), folder.path().join("metrics"));
        let args = ["--metrics-path".into(), metrics.display().to_string()];
        let vm = Vm::tuned().args(disk(&image, &format!(",engine={engine}"))).args(args);
        let ended = vm.run(script).start().ends(0);
        assert_eq!((ended.value("after"), ended.value("written")), (before.as_str(), "yes"));
        assert_eq!(sum(&lines(&metrics), "block_disk1", "execute_fails"), 1);
    }
}

/// Every byte, both ways, in requests of every size; the images on a file system that has O_DIRECT.
#[test]
fn bytes_arrive_unchanged_past_the_page_cache() {
    let folder = folder();
    let store = Mounted::ext4(folder.path(), 96);
    let (from, to) = (full(&store.0, "from", 16 << 20), empty(&store.0, "to", 16 << 20));
    host("sync", &[]);
    let script = r"
        md5sum /dev/vda | { read sum name; echo whole=$sum; }
        s=0; for bs in 512 4096 65536; do
            dd if=/dev/vda of=/dev/vdb bs=$bs skip=$s seek=$s count=$((4194304 / bs)) iflag=direct oflag=direct 2>&1 | grep -v records
            s=$((s + 1)); done
        dd if=/dev/vda of=/dev/vdb bs=1M conv=fsync 2>/dev/null";
    let vm = Vm::tuned().args(disk(&from, ",ro,direct")).args(disk(&to, ",direct"));
    let ended = vm.run(script).start().ends(0);
    assert_eq!(ended.value("whole"), checksum(&from));
    assert_eq!(checksum(&to), checksum(&from));
}

/// Every byte, both ways, with many requests in flight and several queues.
#[test]
fn bytes_arrive_unchanged_asynchronously() {
    let folder = folder();
    let (from, to) = (full(folder.path(), "from", 16 << 20), empty(folder.path(), "to", 16 << 20));
    let script = r"
        md5sum /dev/vda | { read sum name; echo whole=$sum; }
        for s in 0 1 2 3; do
            dd if=/dev/vda of=/dev/vdb bs=4096 skip=$((s * 1024)) seek=$((s * 1024)) count=1024 iflag=direct oflag=direct 2>/dev/null &
        done; wait; sync /dev/vdb
        echo bytes=$(cmp /dev/vda /dev/vdb && echo same); dd if=/dev/vda of=/dev/vdb bs=1M conv=fsync 2>/dev/null && echo synced=yes";
    for kernel in ["tuned/vmlinux", "debian13/vmlinux"] {
        let vm = Vm::boot(kernel).args(disk(&from, ",ro,engine=async,queues=2")).args(["--cpus", "2"]);
        let ended = vm.args(disk(&to, ",engine=async,queues=2")).run(script).start().ends(0);
        assert_eq!((ended.value("bytes"), ended.value("synced")), ("same", "yes"));
        assert_eq!(ended.value("whole"), checksum(&from));
        assert_eq!(checksum(&to), checksum(&from));
    }
}

#[test]
fn each_cpu_has_its_queue() {
    let folder = folder();
    let image = full(folder.path(), "image", 1 << 20);
    let script = "echo queues=$(ls /sys/block/vda/mq | wc -l); echo one=$(ls /sys/block/vdb/mq | wc -l)
        for c in 0 1; do taskset $((1 << c)) md5sum /dev/vda | cut -d' ' -f1 > /sum$c; echo 3 > /proc/sys/vm/drop_caches; done
        echo sums=$(cat /sum0) $(cat /sum1)";
    let other = empty(folder.path(), "other", 1 << 20);
    let vm = Vm::tuned().args(disk(&image, "")).args(disk(&other, ",queues=1")).args(["--cpus", "2"]);
    let ended = vm.run(script).start().ends(0);
    assert_eq!((ended.number("queues"), ended.number("one")), (2, 1));
    let sum = checksum(&image);
    assert_eq!(ended.value("sums"), format!("{sum} {sum}"));
}

/// More devices than interrupt lines: a driver's handler runs for its neighbour's interrupts as well.
#[test]
fn disks_that_share_an_interrupt_line_all_serve() {
    let folder = folder();
    let images: Vec<_> = (0..20).map(|n| full(folder.path(), &format!("i{n}"), 1 << 20)).collect();
    let script = r"
        for d in /dev/vd?; do md5sum $d > /sum.${d##*/} & done; wait
        echo same=$(cat /sum.* | cut -d' ' -f1 | sort | uniq -c)";
    let vm = images.iter().fold(Vm::tuned(), |vm, image| vm.args(disk(image, ",ro")));
    let ended = vm.run(script).start().ends(0);
    assert_eq!(ended.value("same"), format!("20 {}", checksum(&images[0])));
}

#[test]
fn a_limited_disk_takes_its_time() {
    let folder = folder();
    let image = empty(folder.path(), "image", 16 << 20);
    let limit = r#"drives[0].rate_limiter={"bandwidth":{"size":1048576,"refill_time":500,"one_time_burst":4194304}}"#;
    let script = r#"
        read up idle < /proc/uptime; dd if=/dev/vda of=/dev/null bs=1M count=9 iflag=direct 2>/dev/null && echo read=yes
        read now idle < /proc/uptime; awk "BEGIN { print \"ms=\" int(($now - $up) * 1000) }""#;
    let ended = Vm::tuned().args(disk(&image, "")).args(["--set", limit]).run(script).start().ends(0);
    assert_eq!(ended.value("read"), "yes");
    assert!(ended.number("ms") >= 1900, "{} ms", ended.number("ms"));
}

/// The root file system is the partition that the command line names.
#[test]
fn the_root_may_be_a_partition() {
    let folder = folder();
    let image = empty(folder.path(), "disk", 96 << 20);
    let part = copy_of("busybox.ext4", folder.path());
    // One partition from sector 2048 on (MBR, id 83), disk signature 0x76 6d 6d 01.
    let mut mbr = vec![0_u8; 512];
    mbr[440..444].copy_from_slice(&0x766d_6d01_u32.to_le_bytes());
    mbr[446 + 4] = 0x83;
    mbr[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    mbr[446 + 12..446 + 16].copy_from_slice(&(64_u32 << 11).to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut file = std::fs::OpenOptions::new().write(true).open(&image).expect("the disk");
    std::os::unix::fs::FileExt::write_all_at(&file, &mbr, 0).expect("a partition table");
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(1 << 20)).expect("the partition");
    std::io::copy(&mut File::open(part).expect("a root"), &mut file).expect("the root in it");
    let root = format!("{},partuuid=766d6d01-01", image.display());
    let mut vm = Vm::boot("debian12/bzImage").args(["--rootfs", &root, "--memory", "256M"]).pipe().start();
    vm.expect("login: ");
    vm.send("root\n");
    vm.expect(crate::console::PROMPT);
    vm.send("cat /proc/cmdline /sys/class/block/vda1/size; poweroff\n");
    vm.expect(" root=PARTUUID=766d6d01-01 rw");
    vm.expect("\n131072\n");
    vm.ends(0);
}

/// Layers of an image: each is a partition of one disk, in each kernel, and two VMs have them at once.
#[test]
fn files_are_the_partitions_of_one_disk() {
    let folder = folder();
    let file_system = empty(folder.path(), "base.ext4", 4 << 20);
    host("mke2fs", &["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), file_system.as_os_str()]);
    host("debugfs", &["-w", "-R", "mkdir /here", &file_system.display().to_string()].map(std::ffi::OsStr::new));
    // One of whole blocks, and one that the guest sees with zeros behind it.
    let (whole, broken) = (full(folder.path(), "whole", 3 << 20), full(folder.path(), "broken", (1 << 20) + 5001));
    let files = [&file_system, &whole, &broken];
    let sums = files.map(|path| {
        let mut bytes = std::fs::read(path).expect("the file");
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        let padded = folder.path().join("padded");
        std::fs::write(&padded, bytes).expect("what the guest sees");
        checksum(&padded)
    });
    let parts = serde_json::json!([
        { "path_on_host": &file_system, "name": "base" }, { "path_on_host": &whole }, { "path_on_host": &broken, "name": "ü" }
    ]);
    let drive = serde_json::json!({ "drive_id": "layers", "partitions": parts, "is_read_only": true });
    let set = format!("drives[+]={drive}");
    let script = r"
        for n in 1 2 3; do echo sum$n=$(md5sum < /dev/vda$n | cut -d' ' -f1); done
        echo parts=$(ls -d /sys/block/vda/vda* | wc -l) ro=$(cat /sys/block/vda/ro)
        echo name=$(sed -n s/PARTNAME=//p /sys/block/vda/vda1/uevent)
        mkdir -p /mnt; mount -t ext4 -o ro,noload /dev/vda1 /mnt && echo mounted=$(ls -d /mnt/here)
        echo READY; read go";
    let start = |kernel| Vm::boot(kernel).args(["--set", &set]).pipe().run(script).start();
    let mut both = ["tuned/vmlinux", "debian13/vmlinux"].map(start);
    for vm in &mut both {
        vm.expect("READY");
    }
    for mut vm in both {
        vm.send("\n");
        let ended = vm.ends(0);
        assert_eq!(["sum1", "sum2", "sum3"].map(|name| ended.value(name)), sums.each_ref().map(String::as_str));
        assert_eq!((ended.value("parts"), ended.value("name")), ("3 ro=1", "base"));
        assert_eq!(ended.value("mounted"), "/mnt/here");
    }
}
