//! What is said of virtual machines and containers, shown on this system: docs/vm-vs-container.md names these tests.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::container::image;
use crate::container_life::User;
use crate::vm::{PATIENCE, host};

/// Mounts control groups, as hosts have them and the lab has not.
pub fn control_groups() {
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        host("busybox", &["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"].map(AsRef::as_ref));
    }
}

fn first(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

/// Namespaces that the VM's own processes are in have these numbers, whatever the kernel (linux/proc_ns.h).
const OF_THE_VM: [&str; 4] = ["cgroup:[4026531835]", "pid:[4026531836]", "uts:[4026531838]", "ipc:[4026531839]"];

/// What only the host has, and the host's own facts.
#[test]
fn a_container_sees_a_world_of_its_own() {
    let user = User::new();
    let mark = user.path().join("a-file-of-the-host");
    fs::write(&mark, "secret").expect("a file");
    let script = format!(
        "echo $$; hostname changed; hostname; cat /proc/version; ls {} 2>&1; ls /proc | grep -c '^[0-9]'; \
         cut -d ' ' -f 2 /proc/self/mounts | tr '\\n' ' '; echo; ls /sys/class/net; cat /proc/sysvipc/shm | wc -l; \
         for space in cgroup pid uts ipc; do readlink /proc/self/ns/$space; done",
        mark.display()
    );
    let options = ["run", "--rm", "--name", "own", "--cap-add", "SYS_ADMIN"];
    let said = user.says(&[&options[..], &[&image(), "sh", "-c", &script]].concat());
    let lines: Vec<&str> = said.lines().collect();
    let [pid, name, version, file, processes, mounts, interfaces, shm, spaces @ ..] = lines.as_slice() else {
        panic!("{said}")
    };
    let ours = fs::read_to_string("/proc/version").expect("a version");
    assert_eq!(*pid, "1", "PID 1 is the command: {said}");
    assert_eq!(*name, "changed", "its host name is its own: {said}");
    assert_ne!(version.split_whitespace().nth(2), ours.split_whitespace().nth(2), "its kernel is another one: {said}");
    assert!(file.contains("No such file"), "the host's files are not there: {said}");
    assert!(processes.parse::<u32>().is_ok_and(|count| count < 8), "nor are its processes: {said}");
    let mounts: Vec<&str> = mounts.split_whitespace().collect();
    let own = |path: &str| ["/proc", "/sys", "/dev", "/etc/"].iter().any(|top| path.starts_with(top));
    assert!(mounts[0] == "/" && mounts[1..].iter().all(|path| own(path)), "nor its mounts, or the VM's: {said}");
    assert_eq!(*interfaces, "lo", "nor its network: {said}");
    assert_eq!(*shm, "1", "shared memory: the head of an empty table: {said}");
    for (space, of_the_vm) in spaces.iter().zip(OF_THE_VM) {
        assert_ne!(*space, of_the_vm, "it is not in the VM's: {said}");
    }
    assert_eq!(spaces.len(), OF_THE_VM.len(), "{said}");
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_ne!(name, "changed", "the host keeps its name");
}

/// What a container does to its name, its files, its mounts, its network and its messages is not seen by a neighbour.
#[test]
fn neighbours_share_a_kernel_and_an_image_and_no_writes() {
    let user = User::new();
    let start = |name: &str, seconds: &str| {
        let options = ["--vm", "t", "--name", name, "--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN"];
        user.start(&options, &format!("exec sleep {seconds}"))
    };
    let (one, two) = (start("one", "4141"), start("two", "4242"));
    let script = "set -e; hostname changed; echo mine > /etc/passwd; rm /bin/ls; mkdir /own; mount -t tmpfs own /own; \
        ip addr add 192.0.2.1/32 dev lo; touch /dev/mqueue/own";
    user.says(&["exec", &one, "sh", "-c", script]);
    let look = "hostname; head -n 1 /etc/passwd; [ -e /bin/ls ] && echo ls; grep -c ' /own ' /proc/self/mounts; \
        ip addr show dev lo | grep -c 192.0.2.1; find /dev/mqueue -mindepth 1 | wc -l";
    let sees = |name: &str| user.says(&["exec", name, "sh", "-c", look]);
    assert_eq!(sees(&one), "changed\nmine\n1\n1\n1\n");
    assert_eq!(sees(&two), "two\nroot:x:0:0:root:/root:/bin/sh\nls\n0\n0\n0\n");
    let boot = |name: &str| user.says(&["exec", name, "cat", "/proc/sys/kernel/random/boot_id"]);
    assert_eq!(boot(&one), boot(&two), "one kernel");
    let script = "for space in cgroup ipc mnt net pid uts; do readlink /proc/1/ns/$space; done";
    let spaces = |name: &str| user.says(&["exec", name, "sh", "-c", script]);
    let (of_one, of_two) = (spaces(&one), spaces(&two));
    assert_eq!((of_one.lines().count(), of_two.lines().count()), (6, 6));
    for (one, two) in of_one.lines().zip(of_two.lines()) {
        assert_ne!(one, two, "each is of its own");
    }
    let runs = |name: &str| ["sleep 4141", "sleep 4242"].map(|it| user.says(&["exec", name, "ps"]).contains(it));
    assert_eq!((runs(&one), runs(&two)), ([true, false], [false, true]), "no process of the neighbour's");
    user.says(&["rm", "-f", "one"]);
    user.says(&["rm", "-f", "two"]);
    assert!(user.says(&["run", "--rm", &image(), "cat", "/etc/passwd"]).contains("root:"), "nor did the image change");
}

#[test]
fn a_panic_ends_its_tenant_only() {
    let user = User::new();
    let good = user.start(&["--vm", "good", "--name", "good"], "echo up; while :; do sleep 0.1; done");
    let bad =
        user.start(&["--vm", "bad", "--name", "bad", "--cap-add", "SYS_ADMIN"], "echo up; while :; do sleep 0.1; done");
    let beside = user.start(&["--vm", "bad", "--name", "beside"], "echo up; while :; do sleep 0.1; done");
    // A system of files of the kernel's own, in which nothing is hidden.
    let words = ["exec", &bad, "sh", "-c", "mkdir /p; mount -t proc proc /p && echo c > /p/sysrq-trigger"];
    let panicking = user.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("vmm exec");
    for name in [&bad, &beside] {
        assert_eq!(first(&user.says(&["wait", name])), "125", "its VM is gone");
    }
    assert!(!panicking.wait_with_output().expect("ended").status.success());
    assert_eq!(user.says(&["exec", &good, "echo", "alive"]), "alive\n");
    let line = user.line("beside").expect("it is known");
    assert_eq!(line["state"], "Exited");
    user.says(&["rm", "-f", "good"]);
    // The tenant may come again.
    let since = Instant::now();
    let again = || user.output(&["run", "--rm", "--vm", "bad", &image(), "echo", "back"]);
    while again().stdout != b"back\n" {
        assert!(since.elapsed() < PATIENCE, "{}", String::from_utf8_lossy(&again().stderr));
    }
}

/// A limit on one is not felt by another.
#[test]
fn a_neighbour_of_one_that_uses_its_memory_up_lives_on() {
    let user = User::new();
    let calm = user.start(&["--vm", "t", "--name", "calm"], "echo up; while :; do sleep 0.1; done");
    let hungry = ["run", "--vm", "t", "--name", "hungry", "--memory", "32m"];
    let script = ["sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1"];
    let (code, why) = user.refuses(&[&hungry[..], &[&image()], &script].concat());
    assert!(code == 137 && why.contains("its memory was used up"), "{code} {why}");
    let line = user.line("hungry").expect("it is known");
    assert_eq!((&line["oom_killed"], &line["exit_code"]), (&true.into(), &137.into()));
    assert_eq!(user.says(&["exec", &calm, "echo", "alive"]), "alive\n");
    user.says(&["rm", "-f", "calm"]);
}

/// What a VM may use holds on the host, too.
#[test]
fn a_vm_has_a_control_group_of_the_host() {
    control_groups();
    let user = User::new();
    let name = user.start(&["--vm-memory", "200", "--vm-cpus", "1"], "echo up; while :; do sleep 0.1; done");
    user.until_logged(&name, "up");
    let owner = user.line(&name).expect("it is listed")["pid"].to_string();
    let children = fs::read_to_string(format!("/proc/{owner}/task/{owner}/children")).expect("children");
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", children.trim())).expect("groups");
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).expect("a group of version 2").to_owned();
    assert!(group.starts_with("vmm-") && group.contains("-vm."), "{groups}");
    let limit = |name: &str| fs::read_to_string(Path::new("/sys/fs/cgroup").join(&group).join(name)).expect("a limit");
    assert_eq!(limit("memory.max").trim(), ((200_u64 + 256) << 20).to_string());
    assert_eq!(limit("cpu.max").trim(), "200000 100000");
    user.says(&["rm", "-f", &name]);
    let since = Instant::now();
    while Path::new("/sys/fs/cgroup").join(&group).exists() {
        assert!(since.elapsed() < PATIENCE, "it goes with its VM");
        sleep(Duration::from_millis(10));
    }
}
