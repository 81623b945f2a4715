//! What is said of virtual machines and containers, shown on this system: docs/vm-vs-container.md names these tests.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::container::image;
use crate::container_life::User;
use crate::vm::{PATIENCE, host};

fn first(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

/// What only the host has, and the host's own facts.
#[test]
fn a_container_sees_a_world_of_its_own() {
    let user = User::new();
    let mark = user.path().join("a-file-of-the-host");
    fs::write(&mark, "secret").expect("a file");
    let script = format!(
        "echo $$; hostname changed; hostname; cat /proc/version; ls {} 2>&1; ls /proc | grep -c '^[0-9]'; \
         grep -c . /proc/self/mounts; ls /sys/class/net; cat /proc/sysvipc/shm | wc -l; readlink /proc/self/ns/net",
        mark.display()
    );
    let said = user.says(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--name",
        "own",
        "--cap-add",
        "SYS_ADMIN",
        &image(),
        "sh",
        "-c",
        &script,
    ]);
    let lines: Vec<&str> = said.lines().collect();
    let ours = fs::read_to_string("/proc/version").expect("a version");
    assert_eq!(lines[0], "1", "PID 1 is the command: {said}");
    assert_eq!(lines[1], "changed", "its host name is its own: {said}");
    assert_ne!(lines[2].split_whitespace().nth(2), ours.split_whitespace().nth(2), "its kernel is another one: {said}");
    assert!(lines[3].contains("No such file"), "the host's files are not there: {said}");
    assert!(lines[4].parse::<u32>().is_ok_and(|count| count < 8), "nor are its processes: {said}");
    assert_eq!(lines[6], "lo", "nor its network: {said}");
    assert_eq!(lines[7], "1", "shared memory: the head of an empty table: {said}");
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_ne!(name, "changed", "the host keeps its name");
}

/// A name that a container gives itself is neither its VM's nor its neighbour's.
#[test]
fn neighbours_share_a_kernel_and_an_image_and_no_writes() {
    let user = User::new();
    let start = |name: &str| {
        let options = ["--vm", "t", "--name", name, "--cap-add", "SYS_ADMIN"];
        user.start(&options, "echo up; while :; do sleep 0.1; done")
    };
    let (one, two) = (start("one"), start("two"));
    user.says(&["exec", &one, "sh", "-c", "hostname changed; echo mine > /etc/passwd; rm /bin/ls"]);
    assert_eq!(user.says(&["exec", &one, "hostname"]), "changed\n");
    assert_eq!(user.says(&["exec", &two, "hostname"]), "two\n");
    assert!(
        user.says(&["exec", &two, "sh", "-c", "ls /; cat /etc/passwd"]).contains("root:"),
        "the image is as it was"
    );
    let kernel = |name: &str| user.says(&["exec", name, "cat", "/proc/sys/kernel/random/boot_id"]);
    assert_eq!(kernel(&one), kernel(&two));
    let script = "for space in pid mnt ipc uts; do readlink /proc/1/ns/$space; done";
    let space = |name: &str| user.says(&["exec", name, "sh", "-c", script]);
    assert_ne!(space(&one), space(&two));
    assert!(!user.says(&["exec", &one, "ps"]).contains("two"), "no process of the neighbour's");
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
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        host("busybox", &["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"].map(AsRef::as_ref));
    }
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
