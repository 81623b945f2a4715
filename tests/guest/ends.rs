//! Every way a VM can end: its exit code, and the one line that says why.

use rustix::process::Signal;
use serde_json::json;

use crate::api::Remote;
use crate::terminal::Terminal;
use crate::vm::{Ended, Vm};

#[test]
fn poweroff() {
    let ended = Vm::boot("debian12/vmlinux").args(["--cpus", "2"]).run("poweroff -f").start().ends(0);
    assert_eq!(ended.why(), "vmm: the guest powered off");
}

#[test]
fn reboot() {
    let ended = Vm::boot("debian12/vmlinux").args(["--cpus", "2"]).run("reboot -f").start().ends(3);
    assert_eq!(ended.why(), "vmm: the guest asked for a reset");
}

/// The ways to reset that a guest's `reboot=` chooses from: the keyboard controller and ACPI's reset register.
#[test]
fn reboot_by_every_register() {
    for way in ["reboot=k", "reboot=a"] {
        let ended = Vm::boot("debian12/vmlinux").append(way).run("reboot -f").start().ends(3);
        assert_eq!(ended.why(), "vmm: the guest asked for a reset", "{way}");
    }
}

/// Firecracker's guests end so, and its clients take another status for an error.
#[test]
fn reboot_as_firecracker() {
    for (way, why) in [("reboot=k", "vmm: the guest asked for a reset"), ("reboot=t", "triple fault")] {
        let vm = Vm::boot("debian12/vmlinux").called("firecracker").args(["--no-api"]).append(way).run("reboot -f");
        let ended = vm.start().ends(0);
        assert!(ended.why().contains(why), "{}", ended.errors);
    }
}

/// Waits for the driver of the keyboard, by the name that Linux gives it.
const WITH_KEYBOARD: &str =
    "until grep -q 'AT Translated Set 2 keyboard' /proc/bus/input/devices; do usleep 100000; done";

fn send_ctrl_alt_del(remote: &Remote) {
    remote.call("PUT", "/actions", json!({ "action_type": "SendCtrlAltDel" }));
}

/// What takes notice is the kernel's virtual terminal; the script's shell, process 1, does nothing.
#[test]
fn three_keys_reboot_a_guest_with_a_keyboard() {
    for (kernel, name, status) in [("debian12/vmlinux", "vmm", 3), ("debian13/vmlinux", "firecracker", 0)] {
        let script = format!("{WITH_KEYBOARD}; echo READY; sleep 10000");
        let vm = Vm::only(kernel).called(name).run(&script);
        let mut remote = Remote::start(if name == "vmm" { vm.args(["--keyboard"]) } else { vm });
        remote.vm.expect("READY");
        // Keys that are pressed in a pause are there after it.
        remote.set_state("Paused");
        send_ctrl_alt_del(&remote);
        remote.set_state("Resumed");
        let ended = remote.vm.ends(status);
        assert_eq!(ended.why(), "vmm: the guest asked for a reset", "{kernel}");
    }
}

/// The tuned kernel has no virtual terminal: who reads the event device sees each key pressed and let go.
#[test]
fn keys_reach_a_guest() {
    // Of struct input_event, 16 bytes of time, then type (EV_KEY is 1), code and value. Three events for each change of a key.
    let script = format!(
        r"{WITH_KEYBOARD}
        event=$(sed -n '/AT Translated/,/^$/s/.*\(event[0-9]*\).*/\1/p' /proc/bus/input/devices)
        exec 3< /dev/input/$event; echo READY
        dd bs=24 count=18 <&3 2>/dev/null | xxd -p -c 24 | cut -c 33- | sed -n 's/^0100\(..\)00\(..\)000000$/KEY \1 \2/p'"
    );
    let mut remote = Remote::start(Vm::only("tuned/vmlinux").args(["--keyboard"]).run(&script));
    remote.vm.expect("READY");
    send_ctrl_alt_del(&remote);
    let ended = remote.vm.ends(0);
    let keys: Vec<_> = ended.console.lines().filter_map(|line| line.trim().strip_prefix("KEY ")).collect();
    let (ctrl, alt, del) = ("1d", "38", "6f"); // KEY_LEFTCTRL, KEY_LEFTALT, KEY_DELETE
    let wanted = [(ctrl, "01"), (alt, "01"), (del, "01"), (del, "00"), (alt, "00"), (ctrl, "00")];
    assert_eq!(keys, wanted.map(|(key, value)| format!("{key} {value}")), "{}", ended.console);
}

/// Where nobody listens to a keyboard, because there is none or the guest wants none, the request is the power button.
#[test]
fn three_keys_without_a_keyboard_power_a_guest_off() {
    for (args, append) in [(&[][..], ""), (&["--keyboard"], "initcall_blacklist=i8042_init")] {
        let folder = tempfile::tempdir().expect("a folder");
        let root = crate::vm::copy_of("busybox.ext4", folder.path());
        let vm =
            Vm::boot("debian12/vmlinux").args(["--rootfs".into(), root.into_os_string()]).args(args).append(append);
        let mut remote = Remote::start(vm);
        remote.vm.expect("login: ");
        send_ctrl_alt_del(&remote);
        assert_eq!(remote.vm.ends(0).why(), "vmm: the guest powered off", "{args:?}");
    }
}

/// The disk tells the second boot from the first.
#[test]
fn reboot_with_restart_boots_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk");
    std::fs::write(&disk, [0; 4096]).expect("a disk");
    let script = r"
        if [ $(head -c 5 /dev/vda) = again ]; then echo SECOND BOOT; poweroff -f; fi
        echo FIRST BOOT; printf again | dd of=/dev/vda conv=fsync 2>/dev/null; reboot -f";
    let args = ["--on-reboot", "restart", "--cpus", "2", "--disk", &disk.display().to_string()];
    let ended = Vm::boot("debian12/vmlinux").args(args).run(script).start().ends(0);
    let (first, second) = (ended.console.find("FIRST BOOT"), ended.console.find("SECOND BOOT"));
    assert!(first.is_some() && first < second, "{}", ended.console);
    assert_eq!(ended.console.matches(" BOOT\n").count(), 2, "{}", ended.console);
    assert!(ended.errors.contains("the guest asked for a reset"), "{}", ended.errors);
    assert_eq!(ended.why(), "vmm: the guest powered off");
}

#[test]
fn panic() {
    for kernel in ["debian12/vmlinux", "debian13/vmlinux", "tuned/vmlinux"] {
        let ended = Vm::boot(kernel).args(["--cpus", "2"]).run("echo c > /proc/sysrq-trigger").start().ends(4);
        assert_eq!(ended.why(), "vmm: the guest's kernel panicked", "{kernel}");
        // Its last words are not lost.
        assert!(ended.console.contains("Kernel panic - not syncing"), "{kernel}:\n{}", ended.console);
    }
}

#[test]
fn triple_fault() {
    let ended = Vm::boot("debian12/vmlinux").append("reboot=t").run("reboot -f").start().ends(5);
    assert!(ended.why().contains("triple fault"), "{}", ended.errors);
    for register in ["rip", "rsp", "cr3"] {
        assert!(ended.errors.contains(&format!("{register} 0x")), "no {register}:\n{}", ended.errors);
    }
}

#[test]
fn halt() {
    for cpus in ["1", "2"] {
        let ended = Vm::boot("debian12/vmlinux").args(["--cpus", cpus]).run("halt -f").start().ends(6);
        assert_eq!(ended.why(), "vmm: the guest halted: no vCPU can wake", "{cpus} CPUs");
    }
}

/// A guest that only waits is not one that has halted.
#[test]
fn an_idle_guest_goes_on() {
    let ended = Vm::boot("debian12/vmlinux").args(["--cpus", "2"]).run("sleep 10; echo AWAKE").start().ends(0);
    assert!(ended.console.contains("AWAKE"), "{}", ended.console);
}

/// The script's shell is the only process: nobody hears the power button.
const DEAF: &str = "echo READY; sleep 10000";

fn killed_by(signal: Signal) -> Ended {
    let mut vm = Vm::boot("debian12/vmlinux").args(["--grace", "2"]).run(DEAF).start();
    vm.expect("READY");
    vm.signal(signal);
    vm.ends(10)
}

#[test]
fn a_guest_that_ignores_a_signal_is_killed_after_its_grace() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT"), (Signal::HUP, "SIGHUP")] {
        let ended = killed_by(signal);
        assert_eq!(ended.why(), format!("vmm: killed after {name}: the guest did not power off in time"));
    }
}

#[test]
fn a_second_signal_kills_at_once() {
    let mut vm = Vm::tuned().args(["--grace", "100000"]).run(DEAF).start();
    vm.expect("READY");
    vm.signal(Signal::TERM);
    vm.expect_error("SIGTERM");
    assert!(vm.is_running());
    vm.signal(Signal::TERM);
    let ended = vm.ends(10);
    assert!(ended.why().starts_with("vmm: killed after SIGTERM"), "{}", ended.why());
}

#[test]
fn the_escape_key_leaves() {
    let terminal = Terminal::open();
    let mut vm = Vm::tuned().on(&terminal).run(DEAF).start();
    vm.expect("READY");
    vm.send("\x01x");
    assert_eq!(vm.ends(11).why(), "vmm: left by the escape key");
}

/// A kernel without a root file system or an initrd panics early, and resets: there is no driver yet that could tell.
#[test]
fn no_root_file_system() {
    let kernel = crate::vm::guest("debian12/vmlinux").display().to_string();
    let ended = Vm::new().args(["--kernel", &kernel]).start().ends(3);
    assert!(ended.console.contains("VFS: Unable to mount root fs"), "{}", ended.console);
}

/// A fault of the command line and the same fault in a config: Firecracker's exit codes tell them apart.
#[test]
fn a_missing_kernel() {
    let missing = "/nowhere/vmlinux";
    let ended = Vm::new().args(["--kernel", missing]).start().ends(153);
    assert!(ended.errors.contains(missing), "{}", ended.errors);

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vm.json");
    let config = serde_json::json!({ "boot-source": { "kernel_image_path": missing }, "drives": [] });
    std::fs::write(&path, config.to_string()).expect("writing the config");
    let ended = Vm::new().args(["--config".into(), path]).start().ends(152);
    assert!(ended.errors.contains(missing), "{}", ended.errors);
}
