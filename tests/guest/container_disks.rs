//! Disks that containers write to: their own, for what goes to the root file system (`--storage-opt`), and how fast.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::container::image;
use crate::container_life::User;
use crate::vm::PATIENCE;

/// The disk image of a container's writable layer.
fn disk(user: &User, name: &str) -> PathBuf {
    user.path().join("containers").join(name).join("writable.ext4")
}

/// Bytes that a file takes on the host's disk.
fn taken(path: &Path) -> u64 {
    fs::metadata(path).expect("a file").blocks() * 512
}

#[test]
fn what_is_written_goes_to_a_disk_and_ends_with_the_container() {
    let user = User::new();
    // More than half of the VM's memory, which is what a container without the option may write, and more than all of it.
    let script = "dd if=/dev/zero of=/big bs=1M count=140 2>/dev/null && echo written; \
        dd if=/dev/zero of=/more bs=1M count=60 2>&1 | grep -o 'No space left on device'; \
        rm /big /more; sync; echo removed; while :; do sleep 0.1; done";
    let options = ["--name", "w", "--vm-memory", "128", "--storage-opt", "size=160m", "--device-write-bps", "/:8g"];
    user.start(&options, script);
    let file = disk(&user, "w");
    assert_eq!(fs::metadata(&file).expect("it is there").len(), 160 << 20);
    user.until_logged("w", "removed");
    assert_eq!(user.says(&["logs", "w"]), "written\nNo space left on device\nremoved\n");
    let since = Instant::now();
    while taken(&file) > 40 << 20 {
        assert!(since.elapsed() < PATIENCE, "what was removed takes no room: {} bytes", taken(&file));
        sleep(Duration::from_millis(20));
    }
    let limits = user.says(&["exec", "w", "sh", "-c", "cat /sys/class/block/vdb/dev /sys/fs/cgroup/io.max"]);
    let (device, limits) = limits.split_once('\n').expect("lines");
    assert!(limits.contains(&format!("{device} rbps=max wbps=8589934592 riops=max wiops=max")), "{device}: {limits}");
    user.says(&["stop", "-t", "0", "w"]);
    assert!(!file.exists() && user.line("w").is_some());
}

#[test]
fn it_outlives_a_new_start_and_not_its_owner() {
    let user = User::new();
    let storage = ["--storage-opt", "size=16m"];
    let script = "if test -e /mark; then echo again; else touch /mark; exit 4; fi";
    let name = user.start(&[&storage[..], &["--restart", "on-failure:1"]].concat(), script);
    assert_eq!(user.says(&["wait", &name]), "0\n");
    assert_eq!(user.says(&["logs", &name]), "again\n");
    assert!(!disk(&user, &name).exists());
    user.start(&[&storage[..], &["--name", "killed"]].concat(), "echo up; sleep 1000");
    user.until_logged("killed", "up");
    let owner = user.line("killed").expect("it is listed")["pid"].as_u64().expect("a number");
    let owner = Pid::from_raw(i32::try_from(owner).expect("a number")).expect("a number");
    kill_process(owner, Signal::KILL).expect("killed");
    assert_eq!(user.says(&["wait", "killed"]), "137\n");
    assert!(disk(&user, "killed").exists(), "nobody was there to remove it");
    assert_eq!(user.line("killed").expect("it is known")["state"], "Exited"); // the next command clears up
    assert!(!disk(&user, "killed").exists());
}

#[test]
fn a_tenants_vm_takes_disks_back() {
    let user = User::new();
    user.start(&["--vm", "t", "--name", "first"], "echo up; while :; do sleep 0.1; done");
    user.until_logged("first", "up");
    let image = image();
    let run = |more: &[&str], script: &str| {
        user.output(&[&["run", "--rm", "--vm", "t"], more, &[image.as_str(), "sh", "-c", script]].concat())
    };
    // More of them, one after the other, than the VM has disks. Each finds an empty one.
    for number in 0..10 {
        let output = run(&["--storage-opt", "size=16m"], "test ! -e /mine && touch /mine && df -m / | tail -n 1");
        assert!(output.status.success(), "{number}: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let size: u64 = said.split_whitespace().nth(1).and_then(|size| size.parse().ok()).expect("a size");
        assert!((8..=16).contains(&size), "{said}");
    }
    // The VM has one CPU; the kernel would not say so.
    let refused = run(&["--cpuset-cpus", "0-5"], "true");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(125), "{why}");
    assert!(why.contains("--cpuset-cpus 0-5: the VM has the CPUs 0, and 1 is not one of them"), "{why}");
    user.says(&["rm", "-f", "first"]);
}
