//! What is done with a container that runs, by words with which nothing else here is done: signals by name, times of a log,
//! environment and directory of a further process, tars on standard streams; and what ended processes leave.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::container_life::User;
use crate::vm::{host, until};

#[test]
fn a_container_that_runs_is_spoken_to_in_every_way() {
    let user = User::new();
    let script = "trap 'echo heard USR1' USR1; trap 'echo heard USR2' USR2; echo up; while :; do sleep 0.1; done";
    let name = user.start(&["--init", "--env", "OF=it"], script);
    user.until_logged(&name, "up");
    signals_by_name_and_number(&user, &name);
    a_log_has_times(&user, &name);
    a_further_process_has_words_of_its_own(&user, &name);
    a_tar_goes_in_and_out(&user, &name);
    ended_processes_leave_nothing(&user, &name);
    user.says(&["rm", "-f", &name]);
}

fn signals_by_name_and_number(user: &User, name: &str) {
    user.says(&["kill", "-s", "USR1", name]);
    user.until_logged(name, "heard USR1");
    user.says(&["kill", "--signal", "12", name]);
    user.until_logged(name, "heard USR2");
    assert_eq!(user.line(name).expect("it is listed")["state"], "Running");
}

fn a_log_has_times(user: &User, name: &str) {
    let said = user.says(&["logs", "-t", name]);
    let lines: Vec<_> = said.lines().map(|line| line.split_once(' ').expect("a time and words")).collect();
    let words: Vec<_> = lines.iter().map(|(_, words)| *words).collect();
    assert_eq!(words, ["up", "heard USR1", "heard USR2"]);
    // As in RFC 3339, in UTC.
    let shape = |time: &str| time.replace(|letter: char| letter.is_ascii_digit(), "0");
    assert!(lines.iter().all(|(time, _)| shape(time) == "0000-00-00T00:00:00.000000000Z"), "{said}");
    assert!(lines.is_sorted_by_key(|(time, _)| *time), "{said}");
}

fn a_further_process_has_words_of_its_own(user: &User, name: &str) {
    let script = "pwd; echo $OF $GIVEN $TAKEN";
    let words = ["exec", "-e", "GIVEN=a b", "-e", "TAKEN", "-w", "/srv", name, "sh", "-c", script];
    let output = user.command(&words).env("TAKEN", "from outside").output().expect("vmm exec");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "/srv\nit a b from outside\n", "{output:?}");
    for (folder, wrong) in [("/not/there", "the container has no such directory"), ("srv", "it is a path from / on")] {
        let (code, why) = user.refuses(&["exec", "-w", folder, name, "true"]);
        assert_eq!((code, why), (125, format!("vmm: working directory {folder}: {wrong}\n")));
    }
}

fn a_tar_goes_in_and_out(user: &User, name: &str) {
    let tree = user.path().join("tree");
    fs::create_dir_all(tree.join("sub")).expect("directories");
    fs::write(tree.join("sub/file"), "words\n").expect("a file");
    std::os::unix::fs::symlink("sub/file", tree.join("link")).expect("a link");
    let tar = |words: &[&str], at: &Path| {
        let mut command = Command::new("tar");
        command.arg("-C").arg(at).args(words);
        command
    };
    let mut packing = tar(&["-c", "tree"], user.path()).stdout(Stdio::piped()).spawn().expect("tar");
    let packed = packing.stdout.take().expect("a pipe");
    let output = user.command(&["cp", "-", &format!("{name}:/tmp")]).stdin(packed).output().expect("vmm cp");
    assert!(output.status.success() && packing.wait().expect("its end").success(), "{output:?}");
    assert_eq!(user.says(&["exec", name, "cat", "/tmp/tree/link"]), "words\n");
    let back = user.path().join("back");
    fs::create_dir(&back).expect("a directory");
    let mut copying =
        user.command(&["cp", &format!("{name}:/tmp/tree"), "-"]).stdout(Stdio::piped()).spawn().expect("vmm cp");
    let packed = copying.stdout.take().expect("a pipe");
    let unpacked = tar(&["-x"], &back).stdin(packed).status().expect("tar");
    assert!(unpacked.success() && copying.wait().expect("its end").success());
    host("diff", &["-r".as_ref(), "--no-dereference".as_ref(), tree.as_os_str(), back.join("tree").as_os_str()]);
}

/// Neither the processes of `vmm exec` stay as zombies nor what these have left behind, nobody's children: not in the
/// container, and not in the VM, all of whose processes and threads /proc/loadavg counts.
fn ended_processes_leave_nothing(user: &User, name: &str) {
    const TIMES: u32 = 8;
    let all = || -> u32 {
        let load = user.says(&["exec", name, "cat", "/proc/loadavg"]);
        let counts = load.split_whitespace().nth(3).and_then(|counts| counts.split_once('/'));
        counts.and_then(|(_, all)| all.parse().ok()).unwrap_or_else(|| panic!("{load}"))
    };
    let before = all();
    for _ in 0..TIMES {
        user.says(&["exec", name, "sh", "-c", "(sleep 0.2 &)"]);
    }
    let zombies = || user.says(&["exec", name, "sh", "-c", "cat /proc/[0-9]*/status | grep -c '^State:.Z'; true"]);
    let seen = || format!("{} of {before} and {TIMES}: {}", all(), user.says(&["top", name]));
    until("nothing is left", || zombies() == "0\n" && all() < before + TIMES, seen);
}
