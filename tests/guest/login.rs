//! A whole distribution: Debian's minbase root, its own init, to the login prompt and back.

use std::process::Command;

use rustix::process::Signal;

use crate::vm::{Running, Vm, copy_of, program};

/// The API of a Debian, in its folder.
const SOCKET: &str = "api.sock";

#[test]
fn debian_12_boots_to_its_login_prompt() {
    logs_in("debian12/bzImage", "6.1.");
}

#[test]
fn debian_13_s_kernel_boots_it_too() {
    logs_in("debian13/bzImage", "6.12.");
}

fn logs_in(kernel: &str, release: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut vm = debian(kernel, folder.path());
    vm.send("root\n");
    vm.expect("# ");
    vm.send("echo release=$(uname -r) pid1=$(cat /proc/1/comm) root=$(findmnt -no SOURCE,FSTYPE /)\n");
    vm.expect(&format!("release={release}"));
    vm.expect("pid1=systemd root=/dev/vda ext4");
    vm.send("poweroff\n");
    vm.ends(0);
}

/// SIGTERM is the power button, and this guest listens to it.
#[test]
fn sigterm_asks_it_to_power_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let vm = debian("debian12/vmlinux", folder.path());
    vm.signal(Signal::TERM);
    let ended = vm.ends(0);
    assert_eq!(ended.why(), "vmm: the guest powered off");
    assert!(ended.console.contains("reboot: Power down"), "{}", ended.console);
}

/// `vmm ctl` presses it, too.
#[test]
fn a_request_asks_it_to_power_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let vm = debian("debian12/vmlinux", folder.path());
    let mut ctl = Command::new(program());
    let asked = ctl.arg("ctl").arg(folder.path().join(SOCKET)).arg("power-button").output().expect("run vmm");
    assert!(asked.status.success(), "{asked:?}");
    let ended = vm.ends(0);
    assert_eq!(ended.why(), "vmm: the guest powered off");
    assert!(ended.console.contains("reboot: Power down"), "{}", ended.console);
}

/// The same with busybox's init and acpid.
#[test]
fn sigint_asks_busybox_to_power_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = copy_of("busybox.ext4", folder.path());
    let args = ["--rootfs".into(), root.into_os_string(), "--grace".into(), "200".into()];
    let mut vm = Vm::boot("debian12/vmlinux").args(args).start();
    vm.expect("login: ");
    vm.signal(Signal::INT);
    assert_eq!(vm.ends(0).why(), "vmm: the guest powered off");
}

/// Boots a copy of the image to its prompt.
fn debian(kernel: &str, folder: &std::path::Path) -> Running {
    let root = copy_of("debian12.ext4", folder);
    let [root, socket] = [root, folder.join(SOCKET)].map(|path| path.display().to_string());
    // More grace than anyone needs: how long it takes is not what is tested.
    let args = ["--rootfs", &root, "--memory", "512M", "--cpus", "2", "--grace", "200", "--api-sock", &socket];
    let mut vm = Vm::boot(kernel).args(args).pipe().start();
    vm.expect("login: ");
    vm
}
