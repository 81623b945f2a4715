//! VMs with names, found by the program's own verbs, and what those do to a running guest.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::disk::{empty, folder};
use crate::terminal::Terminal;
use crate::vm::{PATIENCE, Running, Vm, program};

/// A runtime directory.
struct Names(TempDir);

impl Names {
    fn new() -> Self {
        Self(folder())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("vmm")
    }

    /// A VM of this name in this runtime directory.
    fn start(&self, vm: Vm, id: &str) -> Running {
        vm.args(["--id", id]).env("VMM_RUNTIME_DIR", self.path()).start()
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(program()).args(args).env("VMM_RUNTIME_DIR", self.path()).output().expect("run vmm")
    }

    /// What a verb prints, which must succeed.
    fn ctl(&self, args: &[&str]) -> String {
        let output = self.run(&[&["ctl"], args].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn list(&self) -> Vec<Value> {
        serde_json::from_slice(&self.run(&["ps", "--json"]).stdout).expect("a list")
    }
}

#[test]
fn a_running_vm_is_found_and_listed() {
    let names = Names::new();
    let script = "echo READY; read go; dd if=/dev/urandom of=/dev/null bs=1M count=8 2>/dev/null; echo DONE; read go";
    let mut vm = names.start(Vm::tuned().args(["--cpus", "2", "--memory", "256M"]).run(script).pipe(), "guest-1");
    vm.expect("READY");
    let listed = names.list();
    let [before] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!(
        (&before["id"], &before["pid"], &before["state"]),
        (&"guest-1".into(), &vm.id().into(), &"Running".into())
    );
    assert_eq!((&before["vcpu_count"], &before["mem_size_mib"]), (&2.into(), &256.into()));
    vm.send("\n");
    vm.expect("DONE");
    names.ctl(&["guest-1", "pause"]);
    let after = names.list().remove(0);
    assert_eq!(after["state"], "Paused");
    for (key, least) in [("cpu_ms", 1), ("uptime_ms", 1), ("resident_bytes", 16 << 20)] {
        assert!(after[key].as_u64() >= before[key].as_u64() && after[key].as_u64() >= Some(least), "{key}: {after}");
    }
    names.ctl(&["guest-1", "resume"]);
    vm.send("\n");
    vm.ends(0);
    assert_eq!((names.list(), names.path().read_dir().expect("a directory").count()), (vec![], 0));
}

/// Without an API there is nothing to speak to, but the name is taken and listed.
#[test]
fn a_vm_without_an_api_is_listed() {
    let names = Names::new();
    let mut vm = names.start(Vm::tuned().args(["--no-api"]).run("echo READY; read go").pipe(), "quiet");
    vm.expect("READY");
    let listed = names.list().remove(0);
    assert_eq!((&listed["state"], &listed["vcpu_count"]), (&"No API".into(), &1.into()));
    let refused = names.run(&["ctl", "quiet", "pause"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("it has no API"), "{refused:?}");
    vm.kill();
    assert_eq!((names.list(), names.path().read_dir().expect("a directory").count()), (vec![], 0));
}

/// What else `vmm ctl` asks and changes.
#[test]
fn a_vm_tells_and_can_be_changed() {
    let names = Names::new();
    let folder = folder();
    let [disk, larger, memory, metrics] = ["disk", "larger", "memory", "metrics"].map(|name| folder.path().join(name));
    for (file, mib) in [(&disk, 1), (&larger, 2), (&memory, 2)] {
        std::fs::write(file, vec![0; mib << 20]).expect("a file");
    }
    let [data, log] = [("data", &disk), ("log", &memory)].map(|(id, file)| format!("{},id={id}", file.display()));
    let args = ["--disk", &data, "--pmem", &log, "--metrics-path", &metrics.display().to_string()].map(str::to_owned);
    let script =
        "echo READY; while [ $(cat /sys/block/vda/size) = 2048 ]; do usleep 100000; done; echo LARGER; read go";
    // A stock kernel: its initrd has the drivers of both.
    let mut vm = names.start(Vm::boot("debian12/vmlinux").args(args).run(script).pipe(), "asked");
    vm.expect("READY");
    let runtime = names.path();
    let mut events = Vm::new().args(["ctl", "asked", "events"]).env("VMM_RUNTIME_DIR", runtime).start();
    events.expect(r#""event":"started""#);
    names.ctl(&["asked", "update", "drives/data", &format!("path_on_host={}", larger.display())]);
    vm.expect("LARGER");
    names.ctl(&["asked", "update", "pmem/log", r#"rate_limiter={"ops":{"size":10,"refill_time":1000}}"#]);
    let config: Value = serde_json::from_str(&names.ctl(&["asked", "config"])).expect("JSON");
    assert_eq!(config["drives"][0]["path_on_host"], larger.display().to_string());
    assert_eq!(config["pmem"][0]["rate_limiter"]["ops"]["size"], 10);
    assert!(names.ctl(&["asked", "metrics"]).contains("vmm_block_bytes_in_total{id=\"data\"} "));
    let lines = || std::fs::read_to_string(&metrics).expect("metrics").lines().count();
    let before = lines();
    names.ctl(&["asked", "flush-metrics"]);
    assert!(lines() > before);
    vm.send("\n");
    vm.ends(0);
    events.expect(r#""event":"exit""#);
    events.ends(0);
}

/// The disk counts the boots. `on-reboot` is `exit`: a request is not the guest's own reboot.
#[test]
fn a_request_resets_a_guest_that_runs_or_is_paused() {
    let names = Names::new();
    let folder = folder();
    let image = empty(folder.path(), "boots", 4096);
    let script = r"boots=$(head -c 1 /dev/vda); boots=$((${boots:-0} + 1)); printf $boots | dd of=/dev/vda conv=fsync 2>/dev/null
        echo BOOT $boots; read go; [ $boots = 3 ] && poweroff -f; while :; do :; done";
    std::fs::write(&image, [&b"0"[..], &[0; 4095]].concat()).expect("a disk");
    let disk = ["--disk".to_owned(), image.display().to_string()];
    let mut vm = names.start(Vm::tuned().args(disk).args(["--cpus", "2"]).run(script).pipe(), "again");
    vm.expect("BOOT 1\n");
    vm.send("\n"); // the guest is busy now
    names.ctl(&["again", "reset"]);
    vm.expect("BOOT 2\n");
    let open = vm.open_files();
    names.ctl(&["again", "pause"]);
    names.ctl(&["again", "reset"]);
    let state: Value = serde_json::from_str(&names.ctl(&["again", "state"])).expect("JSON");
    assert_eq!(state["state"], "Running");
    vm.expect("BOOT 3\n");
    // What the VM before had open is closed; so is, soon, the connection of `vmm ctl`.
    let until = Instant::now() + PATIENCE;
    while vm.open_files() > open {
        assert!(Instant::now() < until, "{} files are open, and {open} were", vm.open_files());
        sleep(Duration::from_millis(20));
    }
    vm.send("\n");
    let ended = vm.ends(0);
    assert_eq!(ended.errors.matches("vmm: again: reset by a request").count(), 2, "{}", ended.errors);
    assert_eq!(ended.why(), "vmm: again: the guest powered off");
}

impl Names {
    /// `vmm ctl NAME console`, whose standard input and output are the test's.
    fn console(&self, name: &str, client: Vm) -> Running {
        client.args(["ctl", name, "console"]).env("VMM_RUNTIME_DIR", self.path()).start()
    }
}

const ECHO: &str = "echo READY; while read line; do [ $line = end ] && poweroff -f; echo heard $line; done";

/// Beside the monitor's own input and output, in pipes.
#[test]
fn a_client_has_the_console() {
    let names = Names::new();
    let mut vm = names.start(Vm::tuned().run(ECHO).pipe(), "spoken-to");
    vm.expect("READY\n");
    // As curl would; the answer says how long it took. The next client takes the place.
    let mut raw = UnixStream::connect(names.path().join("spoken-to/api.sock")).expect("the API's socket");
    let head = "GET /vm/console HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: vmm-console\r\n\r\n";
    raw.write_all(head.as_bytes()).expect("send");
    let lines: Vec<_> = BufReader::new(raw).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    assert_eq!(lines.first().map(String::as_str), Some("HTTP/1.1 101 Switching Protocols"), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("Server-Timing: total;dur=")), "{lines:?}");
    let mut client = names.console("spoken-to", Vm::new().pipe());
    client.expect("READY\n"); // what was there last comes first
    client.send("one\n");
    client.expect("heard one\n");
    vm.expect("heard one\n");
    vm.send("two\n");
    client.expect("heard two\n");
    // Another takes its place, and it is told.
    let mut second = names.console("spoken-to", Vm::new().pipe());
    second.expect("heard two\n");
    let first = client.ends(0);
    assert!(first.console.ends_with("[vmm: another client has the console now]\n"), "{}", first.console);
    assert_eq!(first.why(), "vmm: spoken-to: the console is closed");
    second.send("three\n");
    second.expect("heard three\n");
    vm.expect("heard three\n");
    // It is killed: the console is there for the next one, and for the monitor.
    second.kill();
    vm.send("four\n");
    vm.expect("heard four\n");
    let mut third = names.console("spoken-to", Vm::new().pipe());
    third.expect("heard four\n");
    third.send("end\n");
    vm.ends(0);
    assert_eq!(third.ends(0).why(), "vmm: spoken-to: the console is closed");
}

/// Through a reset, and in a pause; the escape key leaves, and the terminal is as it was.
#[test]
fn a_client_keeps_the_console_through_a_reset() {
    let names = Names::new();
    let mut vm = names.start(Vm::tuned().run(ECHO), "kept");
    vm.expect("READY\n");
    let terminal = Terminal::open();
    let before = terminal.settings();
    let mut client = names.console("kept", Vm::new().on(&terminal));
    client.expect("READY\n");
    assert!(!terminal.is_cooked());
    names.ctl(&["kept", "reset"]);
    client.expect("READY\n");
    client.send("again\r");
    client.expect("heard again\n");
    names.ctl(&["kept", "pause"]);
    client.send("later\r");
    names.ctl(&["kept", "resume"]);
    client.expect("heard later\n");
    client.send("\x01x");
    assert_eq!(client.ends(0).why(), "vmm: kept: left the console; the VM goes on");
    assert_eq!(terminal.settings(), before);
    assert!(vm.is_running());
    names.ctl(&["kept", "stop"]);
    vm.ends(12);
}

#[test]
fn a_vm_without_a_serial_port_has_no_console() {
    let names = Names::new();
    let vm = names.start(Vm::tuned().args(["--no-serial"]).run("sleep 10000"), "mute");
    while names.list().first().is_none_or(|vm| vm["state"] != "Running") {
        sleep(Duration::from_millis(20));
    }
    let refused = names.run(&["ctl", "mute", "console"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the VM has no serial port"), "{refused:?}");
    names.ctl(&["mute", "stop"]);
    vm.ends(12);
}

/// A reset would undo what a signal has asked for.
#[test]
fn a_vm_that_is_about_to_end_is_not_reset() {
    let names = Names::new();
    // Nobody in this guest hears the power button.
    let vm = Vm::tuned().args(["--grace", "100000"]).run("echo READY; sleep 10000");
    let mut vm = names.start(vm, "ending");
    vm.expect("READY");
    vm.signal(Signal::TERM);
    vm.expect_error("SIGTERM");
    let refused = names.run(&["ctl", "ending", "reset"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the VM is about to end"), "{refused:?}");
    vm.signal(Signal::TERM);
    vm.ends(10);
}
