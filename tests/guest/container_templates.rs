//! VMs of containers that go on from a template in the place of booting: each is one of its own, and none depends on it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::container::image;
use crate::container_life::User;
use crate::user_net::uplink;
use crate::vm::{PATIENCE, guest};

/// The files of templates that end so.
fn files(user: &User, end: &str) -> Vec<PathBuf> {
    let all = user.path().join("templates").read_dir().expect("a folder").flatten().map(|entry| entry.path());
    all.filter(|path| path.extension().is_some_and(|it| it == end)).collect()
}

/// What a container prints, of which nothing is said on standard error.
fn says(user: &User, options: &[&str], script: &str) -> String {
    let image = image();
    let output = user.output(&[&["run", "--rm"], options, &[&image, "sh", "-c", script]].concat());
    let (said, why) = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text")).into();
    assert!(output.status.success() && why.is_empty(), "{said}{why}");
    said
}

/// A user with a template.
fn with_template() -> (User, PathBuf) {
    let user = User::new();
    for script in ["true", "true"] {
        says(&user, &[], script);
    }
    let memory = files(&user, "memory").pop().expect("the second one made it");
    (user, memory)
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// Two VMs of one template have other random numbers, other names and the host's time, and change nothing of it.
#[test]
fn each_vm_of_a_template_is_one_of_its_own() {
    let user = User::new();
    says(&user, &[], "true");
    assert_eq!((files(&user, "asked").len(), files(&user, "memory").len()), (1, 0), "the first one boots");
    says(&user, &[], "true");
    let memory = files(&user, "memory").pop().expect("the second one makes it");
    let state = memory.with_extension("state");
    assert_eq!([&memory, &state].map(|path| path.metadata().expect("a file").permissions().mode() & 0o777), [0o600; 2]);
    let before = fs::read(&memory).expect("memory");
    let script = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1; hostname; date +%s; \
                  dd if=/dev/urandom of=/root/big bs=1M count=20 2>/dev/null; wc -c < /root/big";
    let (mut unique, long_ago) = (BTreeSet::new(), SystemTime::UNIX_EPOCH + PATIENCE);
    for number in 0..3 {
        File::open(&state).and_then(|file| file.set_modified(long_ago)).expect("a time");
        let (since, said) = (seconds(), says(&user, &[], script));
        assert!(state.metadata().and_then(|facts| facts.modified()).expect("a time") > long_ago, "it was used");
        let lines: Vec<&str> = said.lines().collect();
        let [boot, random, hostname, date, big] = lines.as_slice() else { panic!("{said}") };
        let date: u64 = date.parse().expect("a time");
        assert!((since.saturating_sub(1)..=seconds() + 1).contains(&date), "{date} from {since} on");
        assert_eq!(*big, "20971520");
        unique.extend([boot, random, hostname].map(|line| (*line).to_owned()));
        assert_eq!(unique.len(), 3 * (number + 1), "{unique:?}");
    }
    assert!(fs::read(&memory).expect("memory") == before, "nobody writes to a template");
}

/// Who made a template goes on, for as long as its container; the VM that was saved has gone, and so have its helpers.
#[test]
fn nothing_is_left_of_a_making() {
    let user = User::new();
    says(&user, &[], "true");
    let name = user.start(&[], "exec sleep 1000");
    assert_eq!(files(&user, "memory").len(), 1, "the second one makes it");
    let owner = user.line(&name).expect("it is listed")["pid"].as_u64().expect("a number");
    let tasks = fs::read_dir(format!("/proc/{owner}/task")).expect("its threads").flatten();
    let children: String = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect();
    let programs: Vec<_> = children
        .split_whitespace()
        .map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).expect("a child"))
        .collect();
    assert_eq!(programs.len(), 1, "its monitor: {programs:?}");
    user.says(&["rm", "-f", &name]);
}

/// What is done to a state and its memory.
type Damage = fn(&PathBuf, &PathBuf);

/// Each failure is told, and the container runs; the next VM makes another template, but after two failures none.
#[test]
fn a_template_that_is_of_no_use_is_told_of_and_made_anew() {
    let (user, memory) = with_template();
    let state = memory.with_extension("state");
    let damages: [(&str, Damage); 3] = [
        ("it is damaged", |state, _| {
            let mut bytes = fs::read(state).expect("a state");
            *bytes.last_mut().expect("bytes") ^= 1;
            fs::write(state, bytes).expect("a state");
        }),
        ("of memory", |_, memory| fs::write(memory, [0; 4096]).expect("memory")),
        ("it is no snapshot", |state, _| fs::write(state, "{}\n").expect("a state")),
    ];
    for (number, (told, damage)) in damages.into_iter().enumerate() {
        damage(&state, &memory);
        let output = user.output(&["run", "--rm", &image(), "echo", "it runs"]);
        let (said, why) = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text")).into();
        assert_eq!((said.as_str(), output.status.code()), ("it runs\n", Some(0)), "{why}");
        assert!(
            why.starts_with("vmm: a template was of no use, so the VM has booted: ") && why.contains(told),
            "{why}"
        );
        assert!(!state.exists() && !memory.exists());
        if number == 1 {
            says(&user, &[], "true");
            assert!(!state.exists(), "two failures are enough");
            user.says(&["image", "prune"]);
            says(&user, &[], "true");
        }
        assert_eq!(says(&user, &[], "echo again"), "again\n");
        assert!(state.exists() && memory.exists(), "that one made it anew");
    }
    let printed = user.says(&["image", "prune"]);
    assert!(printed.contains(" 1 templates ") && !state.exists() && !memory.exists(), "{printed}");
}

/// What a container has of the host is its own VM's: volumes, a disk for what it writes, published ports.
#[test]
fn volumes_disks_and_ports_are_those_of_the_vm_that_goes_on() {
    let user = User::new();
    let options = ["-v", "data:/d", "--storage-opt", "size=64m"];
    let script = "cat /d/n; echo x >> /d/n; ls /root; echo y > /root/file; df -k / | grep -c overlay";
    for lines in 0..4 {
        assert_eq!(says(&user, &options, &format!("touch /d/n; {script}")), "x\n".repeat(lines) + "1\n");
    }
    assert_eq!(files(&user, "state").len(), 1);
    assert_eq!(files(&user, "state")[0].metadata().expect("a file").mode() & 0o777, 0o600);
    uplink();
    for port in ["7181", "7182", "7183"] {
        let published = format!("127.0.0.1:{port}:80");
        let words = ["run", "--rm", "--network", "user", "-p", &published, &image(), "nc", "-l", "-p", "80"];
        let mut child = user.command(&words).stdout(Stdio::piped()).spawn().expect("vmm");
        let since = std::time::Instant::now();
        // passt listens before the container does, and hangs up then.
        let said = loop {
            let called = TcpStream::connect(format!("127.0.0.1:{port}"));
            let _ = called.and_then(|mut stream| std::io::Write::write_all(&mut stream, b"hello\n"));
            match child.try_wait().expect("its end") {
                Some(_) => break std::io::read_to_string(child.stdout.take().expect("a pipe")).expect("text"),
                None => assert!(since.elapsed() < PATIENCE, "port {port} leads nowhere"),
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        };
        assert_eq!(said, "hello\n", "{port}");
    }
    assert_eq!(files(&user, "state").len(), 2, "one of each kind");
}

/// Neither used nor made where it is not wanted, nor for a VM with a directory of the host, whose memory another process has.
#[test]
fn a_vm_that_shall_boot_boots() {
    let user = User::new();
    let folder = tempfile::tempdir().expect("a folder");
    let share = format!("{}:/d", folder.path().display());
    for options in [["--templates", "never"], ["-v", &share]] {
        for _ in 0..2 {
            says(&user, &options, "true");
        }
        assert!(!user.path().join("templates").exists(), "{options:?}");
    }
}

/// So does a VM with several CPUs, all of which work.
#[test]
fn several_cpus_go_on() {
    let user = User::new();
    let script = "nproc; for cpu in 0 1; do taskset -c $cpu sh -c 'grep ^Cpus_allowed_list /proc/self/status'; done";
    for _ in 0..4 {
        let said = says(&user, &["--vm-cpus", "2"], script);
        assert_eq!(
            said.split_whitespace().collect::<Vec<_>>(),
            ["2", "Cpus_allowed_list:", "0", "Cpus_allowed_list:", "1"]
        );
    }
    assert_eq!(files(&user, "state").len(), 1);
}

/// A kernel with modules goes on like any other.
#[test]
fn a_distributions_kernel_goes_on_too() {
    let user = User::new();
    let image = image();
    let [kernel, modules] = ["debian12/bzImage", "modules/debian12"].map(|name| guest(name).display().to_string());
    for number in 0..3 {
        let words = ["run", "--rm", "--kernel", &kernel, "--modules", &modules, &image, "uname", "-r"];
        let said = user.says(&words);
        assert!(said.starts_with("6.1."), "{said}");
        assert_eq!(files(&user, "state").len(), usize::from(number > 0));
    }
}
