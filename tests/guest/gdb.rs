//! gdb itself against the tuned kernel: it waits for gdb, is looked at, stepped, interrupted, and let go.
//!
//! The lab's emulated processor stops at no breakpoint by itself; a module of the lab's kernel helps it (docs/lab.md).

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::vm::{PATIENCE, Running, Vm, guest, program};

/// Address of a symbol of the tuned kernel.
fn address(symbol: &str) -> u64 {
    let map = fs::read_to_string(guest("tuned/System.map")).expect("a file");
    let line = map.lines().find(|line| line.split(' ').nth(2) == Some(symbol)).expect("the symbol");
    u64::from_str_radix(line.split(' ').next().unwrap_or_default(), 16).expect("an address")
}

/// Where the kernel keeps what a system call was given (`struct pt_regs`), and the host's name in `struct uts_namespace`.
const PT_REGS_SI: u64 = 104;
const PT_REGS_DI: u64 = 112;
const NODENAME: u64 = 65;

fn gdb(socket: &Path, commands: &[String]) -> Child {
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx", "-ex", "set architecture i386:x86-64", "-ex", "set confirm off"]);
    gdb.arg("-ex").arg(format!("target remote {}", socket.display()));
    commands.iter().for_each(|command| _ = gdb.args(["-ex", command]));
    gdb.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    gdb.spawn().expect("the program gdb (tools/test installs it)")
}

/// What gdb has printed, when it has ended.
fn said(mut gdb: Child) -> String {
    let until = Instant::now() + PATIENCE;
    while gdb.try_wait().expect("waiting").is_none() {
        if Instant::now() > until {
            let _ = gdb.kill();
            let Output { stdout, stderr, .. } = gdb.wait_with_output().expect("output");
            panic!("gdb did not end:\n{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        }
        sleep(Duration::from_millis(20));
    }
    let Output { stdout, stderr, .. } = gdb.wait_with_output().expect("output");
    format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr))
}

/// The number that gdb printed behind `name=`.
fn number(text: &str, name: &str) -> u64 {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("=0x"));
    let digits = found.unwrap_or_else(|| panic!("no {name}= in\n{text}"));
    u64::from_str_radix(digits.trim(), 16).unwrap_or_else(|_| panic!("{name}=0x{digits}\n{text}"))
}

fn print(name: &str, expression: &str) -> String {
    format!("printf \"{name}=0x%lx\\n\", (unsigned long){expression}")
}

fn ctl(socket: &Path, verb: &str) -> String {
    let ended =
        Command::new(program()).arg("ctl").args([socket.as_os_str(), verb.as_ref()]).output().expect("a program");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

/// A guest with a gdb socket and an API, which says `ready` and then waits for a line.
fn start(dir: &Path, cpus: &str) -> Running {
    let sockets = [dir.join("gdb.sock"), dir.join("api.sock")];
    let [gdb, api] = sockets.map(|path| path.display().to_string());
    let vm = Vm::tuned().args(["--cpus", cpus, "--gdb", &gdb, "--api-sock", &api]).pipe();
    let vm = vm.run("echo ready\nread line\necho got=$line\nhostname stopped\necho host=$(hostname)").start();
    let until = Instant::now() + PATIENCE;
    while !(dir.join("gdb.sock").exists() && dir.join("api.sock").exists()) {
        assert!(Instant::now() < until, "no socket");
        sleep(Duration::from_millis(10));
    }
    vm
}

#[test]
fn the_guest_waits_is_stepped_and_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut vm = start(dir.path(), "1");
    assert!(ctl(&dir.path().join("api.sock"), "state").contains("Running"), "the API answers while the guest waits");
    let mut commands = vec![print("start", "$rip"), print("cr0", "$cr0"), print("kernel", "*(unsigned int *)$rip")];
    for step in 1..=5 {
        commands.extend(["stepi".into(), print(&format!("step{step}"), "$rip")]);
    }
    // A register is written and read, then put back.
    commands.extend(["set $old = $r15", "set $r15 = 0x1234567890"].map(String::from));
    commands.extend([print("written", "$r15"), "set $r15 = $old".into(), "info threads".into(), "detach".into()]);
    let text = said(gdb(&dir.path().join("gdb.sock"), &commands));
    let start = number(&text, "start");
    assert!(start != 0 && number(&text, "cr0") & 1 == 1 && number(&text, "kernel") != 0, "{text}");
    let mut before = start;
    for step in 1..=5 {
        let rip = number(&text, &format!("step{step}"));
        assert!(rip != before, "step {step} did not move\n{text}");
        before = rip;
    }
    assert_eq!(number(&text, "written"), 0x12_3456_7890, "{text}");
    assert!(text.contains("vCPU 0"), "{text}");
    vm.expect("ready");
    vm.send("hello\n");
    let ended = vm.ends(0);
    assert_eq!(ended.value("got"), "hello");
}

/// The lab's emulated processor needs help to stop at breakpoints (docs/lab.md).
fn breakpoints() {
    if std::env::var_os("LAB").is_some() {
        let loaded = Command::new("insmod").arg("/lab/svm_debug.ko").output().expect("the program insmod");
        let there = Path::new("/sys/module/svm_debug").exists();
        assert!(there, "{}", String::from_utf8_lossy(&loaded.stderr));
    }
}

#[test]
fn breakpoints_and_watchpoints_stop_the_kernel() {
    breakpoints();
    let dir = tempfile::tempdir().expect("a directory");
    let mut vm = start(dir.path(), "2");
    let [start, call, name] = ["start_kernel", "__x64_sys_sethostname", "init_uts_ns"].map(address);
    let name = name + NODENAME;
    let commands = [
        // Before the kernel has its page tables only the processor can stop there.
        format!("hbreak *{start:#x}"),
        "continue".into(),
        print("start", "$rip"),
        "delete".into(),
        format!("break *{call:#x}"),
        "continue".into(),
        print("call", "$rip"),
        print("from", "*(unsigned long *)$rsp"),
        print("length", &format!("*(unsigned long *)($rdi + {PT_REGS_SI})")),
        format!("printf \"name=%s\\n\", *(char **)($rdi + {PT_REGS_DI})"),
        "info threads".into(),
        "stepi".into(),
        print("stepped", "$rip"),
        "delete".into(),
        format!("watch *(char *){name:#x}"),
        "continue".into(),
        print("written", &format!("*(unsigned char *){name:#x}")),
        "delete".into(),
        "detach".into(),
    ];
    let gdb = gdb(&dir.path().join("gdb.sock"), &commands);
    vm.expect("ready");
    vm.send("go\n");
    let text = said(gdb);
    assert_eq!((number(&text, "start"), number(&text, "call")), (start, call), "{text}");
    assert!(number(&text, "from") >> 32 == 0xffff_ffff, "it was called by the kernel\n{text}");
    assert_eq!(number(&text, "length"), 7, "{text}");
    assert!(text.contains("name=stopped"), "{text}");
    assert!(text.contains("vCPU 0") && text.contains("vCPU 1"), "{text}");
    assert!((call + 1..call + 16).contains(&number(&text, "stepped")), "{text}");
    assert_eq!(number(&text, "written"), u64::from(b's'), "{text}");
    let ended = vm.ends(0);
    assert_eq!((ended.value("got"), ended.value("host")), ("go", "stopped"));
}

#[test]
fn control_c_shows_a_kernel_that_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut vm = start(dir.path(), "2");
    let banner = address("linux_banner");
    let commands = [
        "continue".to_owned(),
        print("rip", "$rip"),
        print("cr3", "$cr3"),
        print("gs", "$gs_base"),
        format!("printf \"banner=%s\\n\", (char *){banner:#x}"),
        "info threads".into(),
        "stepi".into(),
        print("stepped", "$rip"),
        "detach".into(),
    ];
    let gdb = gdb(&dir.path().join("gdb.sock"), &commands);
    vm.expect("ready");
    let id = Pid::from_raw(gdb.id().cast_signed()).expect("a process id");
    kill_process(id, Signal::INT).expect("a signal");
    let text = said(gdb);
    assert!(text.contains("SIGINT"), "{text}");
    assert!(text.contains("banner=Linux version 6.1"), "{text}");
    assert!(number(&text, "cr3") != 0 && text.contains("vCPU 1"), "{text}");
    assert!(number(&text, "rip") >> 32 == 0xffff_ffff || number(&text, "rip") < 1 << 47, "{text}");
    assert!(number(&text, "stepped") != number(&text, "rip"), "{text}");
    vm.send("again\n");
    let ended = vm.ends(0);
    assert_eq!(ended.value("got"), "again");
}

#[test]
fn a_gdb_that_is_killed_leaves_a_guest_that_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut vm = start(dir.path(), "1");
    let held = dir.path().join("held");
    let holds = format!("shell touch {}; exec sleep 1000", held.display());
    let mut gdb = gdb(&dir.path().join("gdb.sock"), &["stepi".into(), holds]);
    let until = Instant::now() + PATIENCE;
    while !held.exists() {
        assert!(Instant::now() < until, "gdb did not come to hold the guest");
        sleep(Duration::from_millis(20));
    }
    gdb.kill().expect("a process");
    gdb.wait().expect("a process");
    vm.expect("ready");
    let api = dir.path().join("api.sock");
    ctl(&api, "pause");
    ctl(&api, "resume");
    vm.send("alone\n");
    assert_eq!(vm.ends(0).value("got"), "alone");
    assert!(!dir.path().join("gdb.sock").exists(), "the socket's name is gone");
}

/// The kernel's own note is in the file: crash(8) reads the release from it, without the kernel's symbols.
#[test]
fn crash_knows_the_kernel_of_a_core_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let (core, api) = (dir.path().join("guest.core"), dir.path().join("api.sock"));
    let vm = Vm::boot("debian12/vmlinux").args(["--api-sock", &api.display().to_string()]).pipe();
    let mut vm = vm.run("echo release=$(uname -r)\necho ready\nread line").start();
    vm.expect("ready");
    let written =
        Command::new(program()).arg("ctl").args([api.as_os_str(), "core".as_ref(), core.as_os_str()]).output();
    assert!(written.expect("a program that runs").status.success());
    let known = Command::new("crash").arg("--osrelease").arg(&core).output();
    let known = known.expect("the program crash (tools/test installs it)");
    vm.send("on\n");
    let ended = vm.ends(0);
    assert_eq!(String::from_utf8_lossy(&known.stdout).trim(), ended.value("release"));
}

#[test]
fn gdb_reads_a_core_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let (core, api) = (dir.path().join("guest.core"), dir.path().join("api.sock"));
    let vm = Vm::tuned().args(["--cpus", "2", "--api-sock", &api.display().to_string()]).pipe();
    let mut vm = vm.run("echo ready\nread line\necho got=$line").start();
    vm.expect("ready");
    let write = || {
        let command =
            Command::new(program()).arg("ctl").args([api.as_os_str(), "core".as_ref(), core.as_os_str()]).output();
        command.expect("a program that runs")
    };
    assert!(write().status.success());
    let again = write();
    assert!(String::from_utf8_lossy(&again.stderr).contains("File exists"), "{again:?}");
    let commands = [
        "set architecture i386:x86-64".to_owned(),
        format!("core-file {}", core.display()),
        "info threads".into(),
        print("rip", "$rip"),
        format!("printf \"banner=%s\\n\", (char *){:#x}", address("linux_banner")),
    ];
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx"]);
    commands.iter().for_each(|command| _ = gdb.args(["-ex", command]));
    gdb.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let text = said(gdb.spawn().expect("the program gdb (tools/test installs it)"));
    assert!(text.contains("banner=Linux version 6.1"), "{text}");
    assert!(number(&text, "rip") != 0 && text.contains("LWP 2"), "{text}");
    vm.send("on\n");
    assert_eq!(vm.ends(0).value("got"), "on");
}
