//! `vmm run`: containers of an image in VMs of their own, as a user at a shell sees them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::termios::{Winsize, tcsetwinsize};

use crate::terminal::Terminal;
use crate::vm::{Vm, able, done, guest, program};

/// A store of its own for each test, with nothing in it.
pub fn store() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

pub fn image() -> String {
    format!("oci:{}", guest("images/busybox").display())
}

/// `vmm run` with these arguments, on this image.
fn command(store: &Path, options: &[&str], words: &[&str]) -> Command {
    if let Err(why) = able() {
        panic!("{why}");
    }
    let mut command = Command::new(program());
    command.args(["run", "--network", "none"]).args(options).arg(image()).args(words);
    command.env("VMM_STORE", store).env("VMM_KERNEL", guest("tuned/vmlinux")).stdin(Stdio::null());
    command
}

fn run(options: &[&str], words: &[&str]) -> Output {
    command(store().path(), options, words).output().expect("vmm run")
}

/// Its standard output, when it went well.
fn says(options: &[&str], words: &[&str]) -> String {
    let output = run(options, words);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_command_runs_in_a_world_of_its_own() {
    let script =
        "echo $$ $(id -u) $(hostname) $(pwd) $A; ls /proc | grep -c '^[0-9]'; ls /sys/class/net; cat /etc/hostname";
    let options = ["--hostname", "inside", "--env", "A=from outside", "--workdir", "/made/here"];
    let said = says(&options, &["sh", "-c", script]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "1 0 inside /made/here from outside");
    let processes: u32 = lines[1].parse().expect("a number");
    assert!(processes <= 4, "{said}"); // the shell, ls and grep
    assert_eq!(lines[2..], ["lo", "inside"], "{said}");
}

#[test]
fn the_exit_status_is_the_containers() {
    let store = store();
    let status = |words: &[&str]| {
        let output = command(store.path(), &[], words).output().expect("vmm run");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(status(&["sh", "-c", "exit 7"]).0, Some(7));
    assert_eq!(status(&["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).0, Some(137));
    let (code, why) = status(&["no-such-program"]);
    assert_eq!(code, Some(127), "{why}");
    assert!(why.contains("no-such-program: no such program in "), "{why}");
    let (code, why) = status(&["/etc/passwd"]);
    assert_eq!(code, Some(126), "{why}");
    let output = command(store.path(), &["--user", "nobody"], &["true"]).output().expect("vmm run");
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the image has no user nobody"));
}

#[test]
fn streams_arrive_whole_and_apart() {
    let script = "cat | md5sum; echo complaint >&2; dd if=/dev/zero bs=64k count=32 2>/dev/null; echo END";
    let store = store();
    let mut child = command(store.path(), &["-i"], &["sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("vmm run");
    let mut stdin = child.stdin.take().expect("a pipe");
    let sent = vec![b'x'; 1 << 20];
    stdin.write_all(&sent).expect("written");
    drop(stdin); // half-closed: the answer still comes
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "complaint\n");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("b561f87202d04959e37588ee05cf5b10  -\n"), "{:?}", text.get(..80));
    assert!(text.ends_with("\0END\n"));
    assert_eq!(output.stdout.iter().filter(|byte| **byte == 0).count(), 2 << 20);
}

#[test]
fn limits_hold() {
    let oom = run(&["--memory", "32m"], &["sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1"]);
    assert_eq!(oom.status.code(), Some(137), "{}", String::from_utf8_lossy(&oom.stderr));
    assert!(String::from_utf8_lossy(&oom.stderr).contains("its memory was used up"));
    let limits = ["--pids-limit", "4", "--cpus", "0.5"];
    let said = says(&limits, &["cat", "/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/cpu.max"]);
    assert_eq!(said, "4\n50000 100000\n");
    let crowd = run(&limits, &["sh", "-c", "sleep 9 & sleep 9 & sleep 9 & sleep 9 & sleep 9"]);
    assert_ne!(crowd.status.code(), Some(0));
    assert!(
        String::from_utf8_lossy(&crowd.stderr).contains("can't fork"),
        "{}",
        String::from_utf8_lossy(&crowd.stderr)
    );
}

#[test]
fn a_container_has_the_cpus_that_were_named() {
    let script = "grep -c ^processor /proc/cpuinfo; cat /sys/fs/cgroup/cpuset.cpus.effective; grep Cpus_allowed_list /proc/self/status";
    assert_eq!(says(&["--cpuset-cpus", "1"], &["sh", "-c", script]), "2\n1\nCpus_allowed_list:\t1\n");
    let few = run(&["--cpuset-cpus", "0-2", "--vm-cpus", "2"], &["true"]);
    let why = String::from_utf8_lossy(&few.stderr).into_owned();
    assert_eq!(few.status.code(), Some(125), "{why}");
    assert_eq!(why, "vmm: --cpuset-cpus 0-2: the VM has no more than 2 (--vm-cpus), numbered from 0\n");
}

#[test]
fn disks_have_limits() {
    let options = [
        "--device-read-bps",
        "/:10mb",
        "--device-read-iops",
        "/:1000",
        "-v",
        "data:/data",
        "--device-write-bps",
        "/data:1m",
        "--device-write-iops",
        "/data:200",
    ];
    let script = "cat /sys/class/block/vda/dev /sys/class/block/vdb/dev /sys/fs/cgroup/io.max";
    let said = says(&options, &["sh", "-c", script]);
    let lines: Vec<&str> = said.lines().collect();
    let [image, volume, limits @ ..] = lines.as_slice() else { panic!("{said}") };
    assert_eq!(limits.len(), 2, "{said}");
    for wanted in [
        format!("{image} rbps=10485760 wbps=max riops=1000 wiops=max"),
        format!("{volume} rbps=max wbps=1048576 riops=max wiops=200"),
    ] {
        assert!(limits.contains(&wanted.as_str()), "{wanted}: {said}");
    }
    for (option, limit, wanted) in [
        ("--device-write-bps", "/:1mb", "what is written there stays in the VM's memory"),
        ("--device-read-iops", "/dev/sda:5", "a container sees no disks of the host"),
    ] {
        let refused = run(&[option, limit], &["true"]);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(125) && why.contains(wanted), "{why}");
    }
}

#[test]
fn rights_are_those_that_were_given() {
    let script = "id -u; id -g; touch /x 2>/dev/null || echo read-only; touch /t/x && echo written; grep CapEff /proc/self/status";
    let said = says(&["--user", "web", "--read-only", "--tmpfs", "/t:mode=1777"], &["sh", "-c", script]);
    assert_eq!(said, "33\n33\nread-only\nwritten\nCapEff:\t0000000000000000\n");
    let said = says(&["--user", "web", "--group-add", "7", "--group-add", "root"], &["id", "-G"]);
    assert_eq!(said, "33 0 7\n");
    let options = ["--shm-size", "3m", "--dns", "192.0.2.53", "--add-host", "db:192.0.2.7"];
    let script = "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2; cat /etc/resolv.conf; grep db /etc/hosts";
    assert_eq!(says(&options, &["sh", "-c", script]), "3072\nnameserver 192.0.2.53\n192.0.2.7\tdb\n");
    let said = says(&["--cap-drop", "ALL", "--cap-add", "CHOWN"], &["sh", "-c", "grep CapEff /proc/self/status"]);
    assert_eq!(said, "CapEff:\t0000000000000001\n");
}

#[test]
fn a_terminal_has_the_users_size_and_keys() {
    let (terminal, store) = (Terminal::open(), store());
    let size = |rows, columns| Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal.user(), size(33, 99)).expect("a size");
    let before = terminal.settings();
    let vm = Vm::new().args(["run", "-it", "--network", "none", &image(), "sh"]).env("VMM_STORE", store.path());
    let mut vm = vm.env("VMM_KERNEL", guest("tuned/vmlinux")).on(&terminal).start();
    vm.expect("# ");
    vm.send("stty size; tty\n");
    vm.expect("33 99");
    vm.expect("/dev/pts/0");
    tcsetwinsize(terminal.user(), size(22, 77)).expect("a size");
    vm.send("echo RUN''NING; sleep 1000\n");
    vm.expect("RUNNING"); // the shell no longer reads keys
    vm.send("\x03"); // Ctrl-C is for the program in the container
    vm.expect("^C");
    vm.send("stty size; exit 5\n");
    vm.expect("22 77");
    vm.ends(5);
    assert_eq!(terminal.settings(), before);
}

/// What the kernel's own people need is denied, whoever asks: mounts without the capability, which is not given either.
#[test]
fn system_calls_are_filtered() {
    let script =
        "grep -E '^(Seccomp|CapEff|CapBnd):' /proc/self/status; mkdir -p /m; unshare -u true; mount -t tmpfs x /m";
    let of = |options: &[&str]| {
        let output = run(options, &["sh", "-c", script]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr), output.status.code())
    };
    let usual = "00000000a80425fb";
    let (said, complaints, code) = of(&[]);
    assert_eq!(said, format!("CapEff:\t{usual}\nCapBnd:\t{usual}\nSeccomp:\t2\n"));
    assert!(complaints.contains("unshare: unshare(0x4000000): Operation not permitted"), "{complaints}");
    assert!(complaints.contains("mount: permission denied"), "{complaints}");
    assert_ne!(code, Some(0));
    // Of no use to who is not root, either.
    let (said, ..) = of(&["--user", "web", "--security-opt", "no-new-privileges"]);
    assert_eq!(said, format!("CapEff:\t{:016x}\nCapBnd:\t{usual}\nSeccomp:\t2\n", 0));
    let (said, complaints, code) = of(&["--cap-add", "SYS_ADMIN"]);
    assert_eq!((complaints.as_str(), code), ("", Some(0)), "{said}");
    assert!(said.ends_with("Seccomp:\t2\n"), "{said}");
    let (said, complaints, _) = of(&["--security-opt", "seccomp=unconfined"]);
    assert!(said.ends_with("Seccomp:\t0\n"), "{said}");
    assert!(complaints.contains("Operation not permitted"), "{complaints}"); // it has not the capability
}

#[test]
fn a_profile_of_a_file_decides() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}]}"#;
    std::fs::write(file.path(), profile).expect("written");
    let option = format!("seccomp={}", file.path().display());
    let output = run(&["--security-opt", &option], &["mkdir", "/x"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("quota exceeded"), "{output:?}");
    std::fs::write(file.path(), "{}").expect("written");
    let output = run(&["--security-opt", &option], &["true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("missing field `defaultAction`"), "{output:?}");
}

/// A layer whose root hides all lower ones: overlayfs alone would show them.
#[test]
fn an_opaque_root_hides_all_that_is_under_it() {
    let room = store();
    let (layout, top) = (room.path().join("layout"), room.path().join("top"));
    done(Command::new("cp").arg("-r").arg(guest("images/busybox")).arg(&layout));
    std::fs::create_dir_all(top.join("bin")).expect("a folder");
    std::fs::copy("/bin/busybox", top.join("bin/busybox")).expect("a static busybox");
    std::os::unix::fs::symlink("busybox", top.join("bin/ls")).expect("a link");
    let insert = ["insert", "--image", "layout:latest", "--tag", "opaque", "--opaque", "top", "/"];
    done(Command::new("umoci").args(insert).current_dir(room.path()));
    let mut command = Command::new(program());
    command.args(["run", "--network", "none", &format!("oci:{}:opaque", layout.display()), "ls", "/etc", "/bin"]);
    command.env("VMM_STORE", room.path().join("store")).env("VMM_KERNEL", guest("tuned/vmlinux")).stdin(Stdio::null());
    let output = command.output().expect("vmm run");
    let said = String::from_utf8_lossy(&output.stdout);
    // /etc has nothing but the files that are mounted there.
    assert_eq!(said, "/bin:\nbusybox\nls\n\n/etc:\nhostname\nhosts\nresolv.conf\n", "{output:?}");
}
