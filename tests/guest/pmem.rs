//! Files as memory of the guest: what is in them, what is written, who shares them, and what happens when one is cut off.

use std::path::{Path, PathBuf};

use crate::disk::{checksum, empty, folder, full};
use crate::vm::{Vm, copy_of, host};

const MIB: usize = 1 << 20;
/// A kernel whose initrd has the drivers.
const STOCK: &str = "debian12/vmlinux";

fn pmem(path: &Path, options: &str) -> [String; 2] {
    ["--pmem".to_owned(), format!("{}{options}", path.display())]
}

/// A file with an ext4 whose blocks are pages, as DAX needs.
fn ext4(folder: &Path, name: &str) -> PathBuf {
    let image = empty(folder, name, 32 << 20);
    host("mke2fs", &["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), "-b".as_ref(), "4096".as_ref(), image.as_os_str()]);
    image
}

/// Every byte of files of any size, in the order of the flags; with stock kernels, too.
#[test]
fn the_guest_sees_the_files() {
    let folder = folder();
    let (first, odd) = (full(folder.path(), "first", 4 * MIB), full(folder.path(), "odd", 3 * MIB + 5000));
    let script = r"
        for i in $(seq 100); do [ -b /dev/pmem1 ] && break; usleep 50000; done
        echo first=$(md5sum /dev/pmem0 | cut -d' ' -f1) size=$(cat /sys/block/pmem0/size)
        echo odd=$(head -c 3150728 /dev/pmem1 | md5sum | cut -d' ' -f1) size=$(cat /sys/block/pmem1/size)";
    for kernel in [STOCK, "debian13/bzImage"] {
        let vm = Vm::boot(kernel).args(pmem(&first, ",ro")).args(pmem(&odd, ",private,id=odd")).run(script);
        let ended = vm.start().ends(0);
        assert_eq!(ended.value("first"), format!("{} size=8192", checksum(&first)), "{kernel}");
        assert_eq!(ended.value("odd"), format!("{} size=8192", checksum(&odd)), "{kernel}");
    }
}

/// What was written and synced is in the file although the guest's power goes, and the guest has no other copy of it.
#[test]
fn what_was_synced_is_in_the_file() {
    let folder = folder();
    let image = ext4(folder.path(), "data.ext4");
    let script = r"
        mkdir -p /mnt; mount -t ext4 -o dax /dev/pmem0 /mnt && echo MOUNTED; grep /mnt /proc/mounts
        echo written inside > /mnt/letter; sync; echo SYNCED; sleep 10000";
    let mut vm = Vm::boot(STOCK).args(pmem(&image, "")).args(["--memory", "256M"]).run(script).start();
    vm.expect("MOUNTED");
    vm.expect("dax=always");
    vm.expect("SYNCED");
    drop(vm); // killed
    let fsck = std::process::Command::new("e2fsck").arg("-p").arg(&image).output().expect("e2fsck");
    assert!(fsck.status.code().is_some_and(|code| code <= 1), "{}", String::from_utf8_lossy(&fsck.stdout));
    let letter = host("debugfs", &["-R".as_ref(), "cat /letter".as_ref(), image.as_os_str()]);
    assert_eq!(letter, "written inside\n");
}

/// Linux takes the device for a writable one: its writes are dropped, and it goes on.
#[test]
fn read_only_really_is() {
    let folder = folder();
    let image = full(folder.path(), "image", 2 * MIB);
    let before = checksum(&image);
    let script = r"
        dd if=/dev/zero of=/dev/pmem0 bs=4096 count=1 oflag=direct conv=fsync 2>/dev/null; echo TRIED
        echo sum=$(dd if=/dev/pmem0 bs=1M iflag=direct 2>/dev/null | md5sum | cut -d' ' -f1)";
    let ended = Vm::boot(STOCK).args(pmem(&image, ",ro")).run(script).start().ends(0);
    assert_eq!(ended.value("sum"), before);
    assert_eq!(checksum(&image), before);
    assert!(ended.errors.contains("the guest writes to read-only memory"), "{}", ended.errors);
}

/// What a process has of a file in its memory, KiB: resident, and its share of that (/proc/PID/smaps).
fn resident(process: u32, file: &Path) -> (usize, usize) {
    let smaps = std::fs::read_to_string(format!("/proc/{process}/smaps")).expect("the monitor runs");
    let mapping = smaps.split_once(&format!("{}\n", file.display())).expect("a mapping of the file").1;
    let number = |name: &str| {
        let line = mapping.lines().find_map(|line| line.strip_prefix(name)).expect("a line of that name");
        line.trim().strip_suffix(" kB").and_then(|kib| kib.parse().ok()).expect("KiB")
    };
    (number("Rss:"), number("Pss:"))
}

/// Each has all of the file mapped, and both together have it once.
#[test]
fn two_readers_share_the_host_s_pages() {
    const KIB: usize = 16 << 10;
    let folder = folder();
    let image = full(folder.path(), "image", KIB << 10);
    let script =
        "echo sum=$(dd if=/dev/pmem0 bs=1M iflag=direct 2>/dev/null | md5sum | cut -d' ' -f1); echo READY; read go";
    let start = || Vm::boot(STOCK).args(pmem(&image, ",ro")).run(script).pipe().start();
    let mut vms = [start(), start()];
    vms.iter_mut().for_each(|vm| vm.expect("READY"));
    let shares = [0, 1].map(|which| resident(vms[which].id(), &image));
    for vm in vms {
        let mut vm = vm;
        vm.send("\n");
        assert_eq!(vm.ends(0).value("sum"), checksum(&image));
    }
    assert!(shares.iter().all(|(resident, _)| *resident == KIB), "{shares:?} of {KIB} KiB");
    let together: usize = shares.iter().map(|(_, share)| share).sum();
    assert!((KIB - 64..=KIB + 64).contains(&together), "{shares:?} of {KIB} KiB");
}

/// Two VMs read one file, and what each of them writes stays its own.
#[test]
fn two_vms_share_a_file() {
    let folder = folder();
    let image = full(folder.path(), "image", 4 * MIB);
    let before = checksum(&image);
    let script = |word: &str| {
        format!(
            "echo before=$(md5sum /dev/pmem0 | cut -d' ' -f1)
             echo {word} | dd of=/dev/pmem0 bs=4096 conv=sync,fsync 2>/dev/null
             read go; echo first=$(head -n 1 /dev/pmem0)"
        )
    };
    let start = |word: &str| Vm::boot(STOCK).args(pmem(&image, ",private")).run(&script(word)).pipe().start();
    let mut vms = [start("mine"), start("yours")];
    vms.iter_mut().for_each(|vm| vm.expect(&format!("before={before}")));
    vms.iter_mut().for_each(|vm| vm.send("\n"));
    let [mine, yours] = vms.map(|vm| vm.ends(0));
    assert_eq!((mine.value("first"), yours.value("first")), ("mine", "yours"));
    assert_eq!(checksum(&image), before);
}

#[test]
fn a_file_has_one_writer_or_many_readers() {
    let folder = folder();
    let image = empty(folder.path(), "image", 2 << 20);
    let start = |options| Vm::tuned().args(pmem(&image, options)).run("echo READY; sleep 10000").start();
    let mut writer = start("");
    writer.expect("READY");
    assert!(start("").ends(1).why().contains("another process uses the image"));
    assert!(start(",private").ends(1).why().contains("another process has the image open for writing"));
    drop(writer);
    let mut readers = [start(",ro"), start(",private")];
    readers.iter_mut().for_each(|reader| reader.expect("READY"));
    assert!(start("").ends(1).why().contains("another process uses the image"));
    drop(readers);
    start("").expect("READY");
}

/// The root file system is such a file. (Not by DAX: its blocks are smaller than pages.)
#[test]
fn the_root_may_be_memory() {
    let folder = folder();
    let root = copy_of("busybox.ext4", folder.path());
    let boot = || {
        let mut vm = Vm::boot(STOCK).args(["--memory", "256M"]).args(pmem(&root, ",root")).pipe().start();
        vm.expect("login: ");
        vm.send("root\n");
        vm.expect(crate::console::PROMPT);
        vm
    };
    let mut first = boot();
    first.send("grep ' / ' /proc/mounts; echo kept > /root/note; sync; poweroff\n");
    first.expect("/dev/pmem0 / ext4 rw");
    first.ends(0);
    let mut second = boot();
    second.send("cat /root/note; poweroff\n");
    second.expect("\nkept\n");
    second.ends(0);
}

/// A restart takes the file over from the VM before.
#[test]
fn a_restarted_vm_has_its_file_again() {
    let folder = folder();
    let image = full(folder.path(), "image", 2 * MIB);
    let script = r"
        head -n 1 /dev/pmem0 | grep -q '^second$' && echo AGAIN && poweroff -f
        echo second | dd of=/dev/pmem0 bs=4096 conv=sync,fsync 2>/dev/null; reboot -f";
    let vm = Vm::boot(STOCK).args(pmem(&image, "")).args(["--on-reboot", "restart"]).run(script);
    assert!(vm.start().ends(0).console.contains("AGAIN"));
}

/// A file that the host makes shorter ends the VM with a reason, not the monitor by a signal.
#[test]
fn a_file_cut_off_ends_the_vm_and_says_why() {
    let folder = folder();
    let image = full(folder.path(), "image", 4 * MIB);
    let script = "echo READY; read go; dd if=/dev/pmem0 of=/dev/null bs=1M iflag=direct; echo READ";
    let mut vm = Vm::boot(STOCK).args(pmem(&image, ",ro")).run(script).pipe().start();
    vm.expect("READY");
    std::fs::File::options().write(true).open(&image).and_then(|file| file.set_len(0)).expect("cutting it off");
    vm.send("\n");
    let ended = vm.ends(9);
    assert!(ended.why().contains("made shorter while the VM runs?"), "{}", ended.errors);
}
