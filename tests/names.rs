//! VMs with a name, from outside and without KVM: found, listed, refused twice, and gone when their monitor is.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// A runtime directory, and a folder for other things.
struct Room(TempDir);

/// A `vmm` at work; dropping it kills it.
struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Room {
    fn new() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    fn runtime(&self) -> PathBuf {
        self.0.path().join("vmm")
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.args(line.split(' ')).current_dir(self.0.path()).env("VMM_RUNTIME_DIR", self.runtime());
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().expect("run vmm")
    }

    /// Starts a VM that waits for its pieces, and waits for its API.
    fn start(&self, id: &str, socket: &str) -> Monitor {
        let mut command = self.command(&format!("--id {id} --api-sock {socket}"));
        let monitor = Monitor(command.stderr(Stdio::piped()).spawn().expect("start vmm"));
        let until = Instant::now() + PATIENCE;
        while !self.run(&format!("ctl {socket} state")).status.success() {
            assert!(Instant::now() < until, "no API");
            std::thread::sleep(Duration::from_millis(5));
        }
        monitor
    }

    /// What `vmm ps --json` prints.
    fn list(&self) -> Vec<Value> {
        let output = self.run("ps --json");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("a list")
    }

    fn is_clean(&self) -> bool {
        self.runtime().read_dir().is_ok_and(|mut entries| entries.next().is_none())
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_vm_is_found_by_its_name() {
    let room = Room::new();
    assert_eq!(room.list(), Vec::<Value>::new());
    let mut one = room.start("one", "./one.sock");
    let mut two = room.start("two", "./two.sock");
    let told = room.run("ctl two state");
    let told: Value = serde_json::from_slice(&told.stdout).expect("JSON");
    assert_eq!((&told["id"], &told["state"]), (&"two".into(), &"Not started".into()));
    let listed = room.list();
    let names: Vec<_> = listed.iter().map(|vm| vm["id"].as_str().expect("a name")).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!((&listed[0]["pid"], &listed[0]["state"]), (&one.0.id().into(), &"Not started".into()));
    assert!(
        listed[0]["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20) && listed[0]["vcpu_count"].is_null()
    );
    let table = String::from_utf8(room.run("ps").stdout).expect("text");
    assert!(table.starts_with("ID ") && table.lines().count() == 3 && table.contains("Not started"), "{table}");
    for path in [room.runtime(), room.runtime().join("one")] {
        assert_eq!(path.metadata().expect("a directory").permissions().mode() & 0o777, 0o700);
    }
    for (monitor, name) in [(&mut one, "one"), (&mut two, "two")] {
        assert!(room.run(&format!("ctl {name} stop")).status.success());
        assert_eq!(monitor.0.wait().expect("waiting").code(), Some(12));
    }
    assert!(room.is_clean());
    let gone = room.run("ctl one state");
    assert_eq!((gone.status.code(), errors(&gone).contains("there is no VM of this name")), (Some(1), true));
}

#[test]
fn a_name_has_one_vm_at_a_time() {
    let room = Room::new();
    let mut first = room.start("a", "./first.sock");
    let second = room.run("--id a --api-sock ./second.sock");
    assert_eq!(second.status.code(), Some(1));
    let wanted = format!("a VM named `a` runs already (process {})", first.0.id());
    assert!(errors(&second).contains(&wanted), "{second:?}");
    assert!(room.run("ctl a state").status.success(), "the first one is as it was");
    first.0.kill().expect("kill");
    first.0.wait().expect("waiting");
    // Killed, it could clear nothing up; the next one does.
    assert!(room.runtime().join("a/api.sock").symlink_metadata().is_ok());
    let third = room.start("a", "./first.sock");
    assert_eq!(room.list()[0]["pid"], third.0.id());
}

#[test]
fn a_killed_vm_is_not_listed_and_leaves_nothing() {
    let room = Room::new();
    let mut monitor = room.start("a", "./a.sock");
    monitor.0.kill().expect("kill");
    monitor.0.wait().expect("waiting");
    assert!(!room.is_clean());
    assert_eq!(room.list(), Vec::<Value>::new());
    assert!(room.is_clean());
}

/// A monitor that stands still answers nobody, and is listed all the same.
#[test]
fn a_vm_that_does_not_answer_is_listed() {
    let room = Room::new();
    let monitor = room.start("a", "./a.sock");
    let pid = i32::try_from(monitor.0.id()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, Signal::STOP).expect("stop it");
    let listed = room.list();
    kill_process(pid, Signal::CONT).expect("let it go on");
    assert_eq!((listed.len(), &listed[0]["state"]), (1, &"No answer".into()));
}

#[test]
fn a_start_that_fails_leaves_nothing() {
    let room = Room::new();
    std::fs::write(room.0.path().join("kernel"), "no kernel").expect("a file");
    assert!(!room.run("--id a --kernel kernel").status.success());
    assert_eq!(room.list(), Vec::<Value>::new());
    assert!(!room.runtime().exists() || room.is_clean());
}

/// Without a directory for it a VM has no name to be found by, but runs.
#[test]
fn a_vm_runs_without_a_runtime_directory() {
    let room = Room::new();
    let mut command = room.command("--id a --api-sock a.sock");
    let mut monitor =
        Monitor(command.env("VMM_RUNTIME_DIR", "/proc/none").stderr(Stdio::piped()).spawn().expect("start"));
    let until = Instant::now() + PATIENCE;
    while !room.run("ctl a.sock stop").status.success() {
        assert!(Instant::now() < until, "no API");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut told = String::new();
    monitor.0.stderr.take().expect("a pipe").read_to_string(&mut told).expect("text");
    assert!(told.contains("vmm: a: it will not be found by its name: make the directory /proc/none"), "{told}");
}

/// A word with a `.` or a `/` in it is no name: it never leads out of the runtime directory.
#[test]
fn what_is_no_name_is_a_path() {
    let room = Room::new();
    let _monitor = room.start("a", "./a.sock");
    for path in ["vmm/a/api.sock", "./vmm/../a.sock"] {
        assert!(room.run(&format!("ctl {path} state")).status.success(), "{path}");
    }
    assert!(!room.run("ctl ../a state").status.success());
    assert!(Path::new(&room.runtime().join("a")).is_dir());
}
