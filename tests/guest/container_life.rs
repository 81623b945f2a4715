//! The life of containers: left to themselves, looked at, spoken to, ended, started again; and what is known of them after.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::container::{image, store};
use crate::terminal::Terminal;
use crate::user_net::uplink;
use crate::vm::{PATIENCE, Vm, able, guest, program};

/// A user with a store of her own.
pub struct User(tempfile::TempDir);

impl User {
    /// Who has nothing yet.
    pub fn new() -> Self {
        if let Err(why) = able() {
            panic!("{why}");
        }
        Self(store())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Containers have no network, unless one is asked for.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        let (verb, rest) = words.split_at(1);
        let runs = verb == ["run"] && !words.contains(&"--network");
        command.args(verb).args(["--network", "none"].iter().filter(|_| runs)).args(rest);
        command.env("VMM_STORE", self.0.path()).env("VMM_KERNEL", guest("tuned/vmlinux"));
        command.env("VMM_RUNTIME_DIR", self.0.path().join("r")).stdin(Stdio::null());
        command
    }

    /// The same words, at which the user stays.
    pub fn stays(&self, words: &[&str]) -> Vm {
        let command = self.command(words);
        let vm = command
            .get_envs()
            .fold(Vm::new(), |vm, (name, value)| vm.env(name.to_str().expect("text"), value.expect("a value")));
        vm.args(command.get_args())
    }

    pub fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("vmm")
    }

    /// What it prints, when it goes well.
    pub fn says(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// What it says when it does not go well, and its exit status.
    pub fn refuses(&self, words: &[&str]) -> (i32, String) {
        let output = self.output(words);
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
        (output.status.code().expect("an exit status"), why)
    }

    /// A container that is left to itself.
    pub fn start(&self, options: &[&str], script: &str) -> String {
        let image = image();
        let words = [&["run", "-d"], options, &[&image, "sh", "-c", script]].concat();
        self.says(&words).trim_end().to_owned()
    }

    /// What `vmm ps` knows of a container.
    pub fn line(&self, name: &str) -> Option<Value> {
        let all: Value = serde_json::from_str(&self.says(&["ps", "-a", "--json"])).expect("JSON");
        all.as_array().expect("a list").iter().find(|line| line["name"] == name).cloned()
    }

    /// Waits until the log of a container has this.
    pub fn until_logged(&self, name: &str, words: &str) {
        let since = Instant::now();
        while !self.says(&["logs", name]).contains(words) {
            assert!(since.elapsed() < PATIENCE, "{name} did not write {words:?}: {}", self.says(&["logs", name]));
            sleep(Duration::from_millis(20));
        }
    }
}

/// What is left of VMs in the runtime directory.
fn rooms(store: &Path) -> usize {
    let rooms = store.join("r").read_dir().map(|entries| entries.count());
    rooms.unwrap_or(0)
}

#[test]
fn a_container_left_to_itself_is_found_and_ended() {
    let user = User::new();
    let script = "trap 'echo asked to end; exit 3' TERM; echo up $HOSTNAME; while :; do sleep 0.1; done";
    let name = user.start(&["--name", "db", "--label", "tier=back"], script);
    assert_eq!(name, "db");
    user.until_logged("db", "up db");
    let line = user.line("db").expect("it is listed");
    assert_eq!(
        (&line["state"], &line["labels"]["tier"], &line["kind"]),
        (&"Running".into(), &"back".into(), &"container".into())
    );
    assert_eq!(user.says(&["ps", "-q"]), "db\n");
    assert_eq!(user.says(&["exec", "db", "sh", "-c", "echo $$ > /tmp/n; hostname; exit 0"]), "db\n");
    assert_eq!(user.refuses(&["exec", "db", "sh", "-c", "exit 9"]).0, 9);
    assert_eq!(user.refuses(&["exec", "db", "no-such-program"]).0, 127);
    let (code, why) = user.refuses(&["run", "--name", "db", &image(), "true"]);
    assert!(code == 125 && why.contains("there is a container db already, and it runs"), "{why}");
    assert!(user.refuses(&["rm", "db"]).1.contains("container db runs"), "it runs");
    assert_eq!(user.says(&["stop", "db"]), "db\n");
    assert_eq!(user.says(&["wait", "db"]), "3\n");
    assert!(user.says(&["logs", "db"]).ends_with("asked to end\n"));
    assert_eq!(user.says(&["logs", "-n", "1", "db"]), "asked to end\n");
    let line = user.line("db").expect("it is known");
    assert_eq!((&line["state"], &line["exit_code"]), (&"Exited".into(), &3.into()));
    assert!(user.refuses(&["exec", "db", "true"]).1.contains("does not run"));
    assert_eq!(user.says(&["rm", "db"]), "db\n");
    assert!(user.line("db").is_none());
    assert_eq!(rooms(user.0.path()), 0, "no VM leaves anything");
}

#[test]
fn what_does_not_listen_is_killed_and_what_goes_with_its_end_is_gone() {
    let user = User::new();
    let name = user.start(&["--rm"], "trap '' TERM; echo deaf; while :; do sleep 0.1; done");
    user.until_logged(&name, "deaf");
    let waiting = user.command(&["wait", &name]).stdout(Stdio::piped()).spawn().expect("vmm wait");
    let following = user.command(&["logs", "-f", &name]).stdout(Stdio::piped()).spawn().expect("vmm logs");
    assert_eq!(user.says(&["stop", "-t", "0", &name]), format!("{name}\n"));
    let waited = waiting.wait_with_output().expect("ended");
    assert_eq!(String::from_utf8_lossy(&waited.stdout), "137\n");
    assert_eq!(following.wait_with_output().expect("ended").stdout, b"deaf\n");
    assert!(user.line(&name).is_none());
    assert!(user.refuses(&["logs", &name]).1.contains("there is no container"));
    // A container that cannot begin says why, where its user sees it.
    let (code, why) = user.refuses(&["run", "-d", "--rm", &image(), "no-such-program"]);
    assert!(code == 127 && why.contains("no-such-program"), "{code} {why}");
}

#[test]
fn one_that_fails_is_started_again_as_often_as_asked() {
    let user = User::new();
    let name = user.start(&["--restart", "on-failure:2"], "echo once more; exit 4");
    assert_eq!(user.says(&["wait", &name]), "4\n");
    assert_eq!(user.says(&["logs", &name]), "once more\n".repeat(3));
    let line = user.line(&name).expect("it is known");
    assert_eq!((&line["restarts"], &line["exit_code"]), (&2.into(), &4.into()));
}

#[test]
fn an_owner_that_is_killed_takes_its_vm_along() {
    let user = User::new();
    let name = user.start(&[], "echo up; sleep 1000");
    user.until_logged(&name, "up");
    let owner = user.line(&name).expect("it is listed")["pid"].as_u64().expect("a number");
    let owner = rustix::process::Pid::from_raw(i32::try_from(owner).expect("a number")).expect("a number");
    rustix::process::kill_process(owner, rustix::process::Signal::KILL).expect("killed");
    assert_eq!(user.says(&["wait", &name]), "137\n");
    let line = user.line(&name).expect("it is known");
    assert_eq!(line["state"], "Exited");
    assert_eq!(rooms(user.0.path()), 1, "the dead owner's");
    // The next command clears up.
    assert_eq!(user.says(&["run", "--rm", &image(), "echo", "next"]), "next\n");
    assert_eq!(rooms(user.0.path()), 0);
}

#[test]
fn a_tenants_containers_share_a_vm_and_nothing_else() {
    let user = User::new();
    let a =
        user.start(&["--vm", "tenant-a", "--name", "one"], "echo mine > /tmp/f; echo up; while :; do sleep 0.1; done");
    user.until_logged(&a, "up");
    // The same image once more, and another one that the VM has not seen.
    let script = "cat /tmp/f; ls /proc | grep -c '^[0-9]'; hostname; cat /proc/sys/kernel/random/boot_id";
    let image = image();
    let two = user.refuses(&[
        "run",
        "--rm",
        "--vm",
        "tenant-a",
        "--name",
        "two",
        &image,
        "sh",
        "-c",
        &format!("{script}; exit 6"),
    ]);
    assert!(two.0 == 6 && two.1.contains("can't open '/tmp/f'"), "{two:?}");
    let boot = |name: &str| user.says(&["exec", name, "cat", "/proc/sys/kernel/random/boot_id"]);
    let layered = user.start(&["--vm", "tenant-a", "--name", "three"], "while :; do sleep 0.1; done");
    assert_eq!(boot("one"), boot(&layered), "one kernel");
    let own = user.start(&["--name", "four"], "while :; do sleep 0.1; done");
    assert_ne!(boot("one"), boot(&own), "two kernels");
    assert_eq!(user.line("three").expect("it is listed")["vm"], "tenant-a");
    // One is killed with its owner; the other lives on.
    let owner = user.line("three").expect("it is listed")["pid"].as_u64().expect("a number");
    let owner = rustix::process::Pid::from_raw(i32::try_from(owner).expect("a number")).expect("a number");
    rustix::process::kill_process(owner, rustix::process::Signal::KILL).expect("killed");
    user.says(&["wait", "three"]);
    let since = Instant::now();
    let again = || user.output(&["run", "--rm", "--vm", "tenant-a", "--name", "three", &image, "true"]);
    user.says(&["rm", "three"]);
    while !again().status.success() {
        assert!(since.elapsed() < PATIENCE, "its name is free: {}", String::from_utf8_lossy(&again().stderr));
    }
    assert_eq!(user.says(&["exec", "one", "cat", "/tmp/f"]), "mine\n");
    user.says(&["stop", "-t", "0", "one", "four"]);
    // With the last container the VM ends; the next one starts another.
    let since = Instant::now();
    while user.says(&["ps", "--json"]).contains("tenant-a") {
        assert!(since.elapsed() < PATIENCE, "the VM ends: {}", user.says(&["ps"]));
    }
    assert_eq!(user.says(&["run", "--rm", "--vm", "tenant-a", &image, "echo", "new"]), "new\n");
}

#[test]
fn volumes_are_the_hosts_and_outlive_containers() {
    let user = User::new();
    let image = image();
    let dir = user.0.path().join("shared");
    std::fs::create_dir(&dir).expect("a directory");
    std::fs::write(dir.join("in"), "from the host\n").expect("a file");
    let (dir, file) = (dir.display().to_string(), dir.join("in").display().to_string());
    let script =
        "cat /s/in /one; echo back > /s/out; echo no > /r/x; echo kept > /named/f; cat /etc/app/passwd | head -n 1";
    let volumes = [format!("{dir}:/s"), format!("{dir}:/r:ro"), format!("{file}:/one:ro"), "data:/named".to_owned()];
    let options: Vec<&str> = volumes.iter().flat_map(|volume| ["-v", volume.as_str()]).collect();
    let words = [&["run", "--rm"], options.as_slice(), &["-v", "etc:/etc/app", &image, "sh", "-c", script]].concat();
    let output = user.output(&words);
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.starts_with("from the host\nfrom the host\n"), "{said} {why}");
    assert!(why.contains("can't create /r/x: Read-only file system"), "{why}");
    assert_eq!(std::fs::read_to_string(format!("{dir}/out")).expect("written"), "back\n");
    // A volume by name is still there for the next container, also in a VM that runs already.
    let first = user.start(&["--vm", "t", "--name", "first"], "echo up; while :; do sleep 0.1; done");
    user.until_logged(&first, "up");
    let in_vm = ["run", "--rm", "--vm", "t", "-v", "data:/d", "-v", "conf:/etc", &image];
    assert_eq!(
        user.says(&[&in_vm[..], &["sh", "-c", "cat /d/f; ls /d; grep -c root /etc/passwd"]].concat()),
        "kept\nf\n1\n"
    );
    let late = format!("{dir}:/s");
    assert_eq!(user.says(&["run", "--rm", "--vm", "t", "-v", &late, &image, "cat", "/s/out"]), "back\n");
    // Nobody else writes to it meanwhile.
    let (code, why) = user.refuses(&["run", "--rm", "-v", "data:/d", &image, "true"]);
    assert!(code == 125 && why.contains("data"), "{why}");
    user.says(&["rm", "-f", "first"]);
    let (code, why) = user.refuses(&["run", "--rm", "-v", "/no/such:/d", &image, "true"]);
    assert!(code == 125 && why.contains("/no/such: No such file"), "{why}");
}

#[test]
fn what_a_container_uses_and_has_is_told_and_copied() {
    let user = User::new();
    let name =
        user.start(&["--name", "busy", "--memory", "64m", "--pids-limit", "9"], "sleep 1000 & while :; do :; done");
    let looked: Value = serde_json::from_str(&user.says(&["stats", "--json", "--no-stream"])).expect("JSON");
    let line = &looked[0];
    let number = |key: &str| line[key].as_u64().unwrap_or_else(|| panic!("{key}: {line}"));
    assert_eq!(
        (&line["name"], number("memory_limit"), number("pids_limit"), number("pids")),
        (&"busy".into(), 64 << 20, 9, 2)
    );
    assert!(number("memory_bytes") > 0 && number("memory_bytes") < number("memory_limit"), "{line}");
    assert!(line["cpu_percent"].as_f64().expect("a number") > 0.0, "{line}");
    let top: Value = serde_json::from_str(&user.says(&["top", "--json", "busy"])).expect("JSON");
    let commands: Vec<_> =
        top.as_array().expect("a list").iter().map(|it| (it["pid"].as_u64(), it["command"].as_str())).collect();
    assert!(
        commands.iter().any(|(pid, command)| *pid == Some(1) && command.is_some_and(|it| it.starts_with("sh -c"))),
        "{top}"
    );
    assert!(commands.iter().any(|(_, command)| *command == Some("sleep 1000")), "{top}");

    // In, under another name and into a directory, and out again.
    let host = user.0.path().join("files");
    std::fs::create_dir_all(host.join("tree/sub")).expect("directories");
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(host.join("tree/sub/big"), &content).expect("a file");
    std::os::unix::fs::symlink("sub/big", host.join("tree/link")).expect("a link");
    let path = |rest: &str| host.join(rest).display().to_string();
    user.says(&["cp", &path("tree"), "busy:/tmp"]);
    user.says(&["cp", &path("tree/sub/big"), "busy:/tmp/renamed"]);
    assert_eq!(
        user.says(&["exec", &name, "sh", "-c", "cmp /tmp/renamed /tmp/tree/link && ls /tmp"]),
        "renamed\ntree\n"
    );
    user.says(&["cp", "busy:/tmp/tree", &path("out")]);
    assert_eq!(std::fs::read(host.join("out/link")).expect("a file"), content);
    user.says(&["cp", "busy:/tmp/renamed", &path("out")]);
    assert_eq!(std::fs::read(host.join("out/renamed")).expect("a file"), content);
    // Links of a container lead nowhere outside of it.
    user.says(&["exec", &name, "sh", "-c", "ln -s /run/vmm /tmp/escape; mkdir -p /run/vmm; echo own > /run/vmm/f"]);
    user.says(&["cp", "busy:/tmp/escape/f", &path("f")]);
    assert_eq!(std::fs::read_to_string(host.join("f")).expect("a file"), "own\n");
    for (from, to, why) in [
        ("busy:/none", path("x"), "/none: No such file"),
        ("busy:/tmp/../etc", path("x"), "is not a path from / on"),
        ("busy:/etc", "busy:/tmp".to_owned(), "one of FROM and TO"),
    ] {
        let said = user.refuses(&["cp", from, &to]).1;
        assert!(said.contains(why), "{from}: {said}");
    }
    assert!(user.refuses(&["cp", &path("tree"), "busy:/no/such/place"]).1.contains("there is no such directory"));
    user.says(&["rm", "-f", "busy"]);
}

#[test]
fn health_is_looked_at_again_and_again() {
    let user = User::new();
    let options = ["--health-cmd", "test ! -e /tmp/ill", "--health-interval", "200ms", "--health-retries", "2"];
    let name = user.start(&options, "echo up; while :; do sleep 0.1; done");
    let until = |wanted: &str| {
        let since = Instant::now();
        while user.line(&name).expect("it is listed")["health"] != wanted {
            assert!(since.elapsed() < PATIENCE, "{wanted}: {:?}", user.line(&name));
            sleep(Duration::from_millis(50));
        }
    };
    until("healthy");
    user.says(&["exec", &name, "touch", "/tmp/ill"]);
    until("unhealthy");
    assert!(user.says(&["ps"]).contains("Running (unhealthy)"));
    user.says(&["exec", &name, "rm", "/tmp/ill"]);
    until("healthy");
    user.says(&["rm", "-f", &name]);
}

/// The filter of system calls is the container's, not its first process's.
#[test]
fn further_processes_are_filtered_too() {
    let user = User::new();
    let name = user.start(&[], "sleep 1000");
    let said = user.says(&["exec", &name, "grep", "-E", "^(Seccomp|CapEff):", "/proc/self/status"]);
    assert_eq!(said, "CapEff:\t00000000a80425fb\nSeccomp:\t2\n");
    let (_, why) = user.refuses(&["exec", &name, "unshare", "-u", "true"]);
    assert!(why.contains("Operation not permitted"), "{why}");
    user.says(&["rm", "-f", &name]);
}

#[test]
fn a_first_process_reaps_and_hands_signals_on() {
    let user = User::new();
    let script = "trap 'echo heard; exit 5' TERM; (sleep 0.1 & exec true) ; echo up; while :; do sleep 0.1; done";
    let name = user.start(&["--init"], script);
    user.until_logged(&name, "up");
    let top = user.says(&["top", &name]);
    assert!(top.contains("/dev/vmm-init sh -c"), "{top}");
    let since = Instant::now();
    // An orphan that has ended is nobody's after the first process has reaped it.
    while user.says(&["exec", &name, "sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status; true"]).contains("status") {
        assert!(since.elapsed() < PATIENCE, "{}", user.says(&["top", &name]));
    }
    user.says(&["stop", &name]);
    assert_eq!(user.says(&["wait", &name]), "5\n");
    assert!(user.says(&["logs", &name]).ends_with("heard\n"));
    assert_eq!(user.refuses(&["run", "--rm", "--init", &image(), "no-such-program"]).0, 127);
}

#[test]
fn a_container_can_have_users_of_its_own() {
    let user = User::new();
    let script = "id -u; tr -s ' ' < /proc/self/uid_map; stat -c '%u %g' / /bin /etc/passwd /made/here /etc/hostname /tmp; \
        touch /new && chown 33:34 /new && stat -c '%u %g' /new; echo out > /dev/stdout; \
        mknod /node c 1 3 2>&1 | grep -o 'Operation not permitted'; ls -d /sys/class/net; echo up; sleep 1000";
    user.start(&["--name", "p", "--userns", "private", "--workdir", "/made/here"], script);
    user.until_logged("p", "up");
    let owners = "0 0\n".repeat(6);
    let wanted = format!("0\n 0 100000 65536\n{owners}33 34\nout\nOperation not permitted\n/sys/class/net\nup\n");
    assert_eq!(user.says(&["logs", "p"]), wanted);
    // So has a further process, with a terminal, too.
    let script =
        "id -u; tr -s ' ' < /proc/self/uid_map; echo again > /dev/stdout; mknod /n c 1 3 2> /dev/null || echo no";
    assert_eq!(user.says(&["exec", "p", "sh", "-c", script]), "0\n 0 100000 65536\nagain\nno\n");
    assert_eq!(user.says(&["exec", "p", "cat", "/proc/self/cgroup"]), "0::/\n", "it is in the container's group");
    let terminal = Terminal::open();
    let mut vm = user.stays(&["exec", "-it", "p", "sh"]).on(&terminal).start();
    vm.expect("# ");
    vm.send("tty; tr -s ' ' < /proc/self/uid_map; exit 5\n");
    vm.expect("/dev/pts/0");
    vm.expect(" 0 100000 65536");
    vm.ends(5);
    assert_eq!(
        user.says(&["exec", "-u", "web", "p", "sh", "-c", "id -u; touch /x 2> /dev/null || echo no"]),
        "33\nno\n"
    );
    let top: Value = serde_json::from_str(&user.says(&["top", "--json", "p"])).expect("JSON");
    assert!(top.as_array().expect("a list").iter().all(|process| process["uid"] == 0), "{top}");
    let file = user.path().join("file");
    std::fs::write(&file, "copied\n").expect("a file");
    user.says(&["cp", &file.display().to_string(), "p:/tmp/f"]);
    assert_eq!(user.says(&["exec", "p", "sh", "-c", "cat /tmp/f; stat -c '%u %g' /tmp/f"]), "copied\n0 0\n");
    user.says(&["rm", "-f", "p"]);
    uplink();
    let (image, script) = (image(), "ls /sys/class/net; ip -4 addr show eth0 | grep -c 'inet 172'");
    let words = ["run", "--rm", "--network", "user", "--userns", "private", "--storage-opt", "size=16m", &image];
    assert_eq!(user.says(&[&words[..], &["sh", "-c", script]].concat()), "eth0\nlo\n1\n");
    let (code, why) = user.refuses(&["run", "--userns", "private", "--ulimit", "nofile=9999999", &image, "true"]);
    assert!(code == 125 && why.contains("--ulimit nofile: with users of its own a container can have"), "{why}");
    let (code, why) = user.refuses(&["run", "--userns", "private", "-v", "data:/d", &image, "true"]);
    assert!(
        code == 125 && why.contains("--userns private: what is in a volume (/d) belongs to the VM's users"),
        "{why}"
    );
}
