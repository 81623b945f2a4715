//! Options of `vmm run` with which nothing else here is run, and what an image says in their place: several containers in
//! one tenant's VM.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::container::image;
use crate::container_life::User;
use crate::vm::{self, guest, host};

const LOOPS: &str = "echo up; while :; do sleep 0.1; done";

/// `vmm run` in the VM `t`.
fn in_vm<'a>(options: &[&'a str], words: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--vm", "t"], options, words].concat()
}

/// Waits until a container's line has this.
fn until(user: &User, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) {
    let line = || user.line(name).expect("it is listed");
    vm::until(what, || is_so(&line()), || line().to_string());
}

#[test]
fn options_do_what_they_say() {
    let user = User::new();
    user.start(&["--vm", "t", "--name", "first"], "exec sleep 100000");
    variables_come_from_files(&user);
    programs_and_limits_are_those_that_were_asked_for(&user);
    its_own_signal_ends_it(&user);
    one_that_shall_always_run_is_ended_by_stop(&user);
    a_busy_one_is_held_back(&user);
    a_check_that_takes_too_long_is_killed(&user);
    an_image_has_words_of_its_own(&user);
    user.says(&["rm", "-f", "first"]);
}

fn variables_come_from_files(user: &User) {
    let file = user.path().join("variables");
    fs::write(&file, "# a note\n\nONE=1 and more\nTWO=of the file\nTAKEN\n").expect("a file");
    let (file, image) = (file.display().to_string(), image());
    let words = [&image, "sh", "-c", "echo $ONE; echo $TWO; echo $TAKEN"];
    let words = in_vm(&["--rm", "--env-file", &file, "-e", "TWO=of the flag"], &words);
    let output = user.command(&words).env("TAKEN", "from outside").output().expect("vmm run");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "1 and more\nof the flag\nfrom outside\n", "{}", String::from_utf8_lossy(&output.stderr));
    let (code, why) = user.refuses(&in_vm(&["--rm", "--env-file", "/not/there"], &[&image, "true"]));
    assert!(code == 125 && why.contains("--env-file /not/there: No such file"), "{code} {why}");
}

fn programs_and_limits_are_those_that_were_asked_for(user: &User) {
    let image = image();
    let said = user.says(&in_vm(&["--rm", "--entrypoint", "echo"], &[&image, "words", "of", "it"]));
    assert_eq!(said, "words of it\n");
    let options = ["--rm", "--ulimit", "nofile=100:200", "--ulimit", "core=0"];
    let said = user.says(&in_vm(&options, &[&image, "sh", "-c", "ulimit -n; ulimit -Hn; ulimit -c"]));
    assert_eq!(said, "100\n200\n0\n");
}

fn its_own_signal_ends_it(user: &User) {
    let script = format!("trap 'exit 6' USR1; {LOOPS}");
    let name = user.start(&["--vm", "t", "--stop-signal", "SIGUSR1"], &script);
    user.until_logged(&name, "up");
    user.says(&["stop", "-t", "1000", &name]);
    assert_eq!(user.says(&["wait", &name]), "6\n");
}

fn one_that_shall_always_run_is_ended_by_stop(user: &User) {
    let name = user.start(&["--vm", "t", "--restart", "always"], "echo once more");
    user.until_logged(&name, &"once more\n".repeat(3));
    user.says(&["stop", &name]);
    assert_eq!(user.says(&["wait", &name]), "0\n");
    let line = user.line(&name).expect("it is known");
    assert_eq!(line["state"], "Exited", "{line}");
    let restarts = line["restarts"].as_u64().expect("a number");
    let starts = user.says(&["logs", &name]).lines().count() as u64;
    assert!(restarts >= 2 && starts == restarts + 1, "{starts} starts, {line}");
}

fn a_busy_one_is_held_back(user: &User) {
    let name = user.start(&["--vm", "t", "--cpus", "0.1"], "while :; do :; done");
    let held_back = || -> u64 {
        let said = user.says(&["exec", &name, "cat", "/sys/fs/cgroup/cpu.stat"]);
        let found = said.lines().find_map(|line| line.strip_prefix("nr_throttled ")?.parse().ok());
        found.unwrap_or_else(|| panic!("{said}"))
    };
    vm::until("it is held back", || held_back() > 0, || user.says(&["top", &name]));
    user.says(&["rm", "-f", &name]);
}

fn a_check_that_takes_too_long_is_killed(user: &User) {
    let check = "[ -e /tmp/well ] || exec sleep 4343";
    let options = ["--vm", "t", "--health-cmd", check, "--health-timeout", "3s", "--health-interval", "100ms"];
    let name = user.start(&[&options[..], &["--health-retries", "1"]].concat(), LOOPS);
    until(user, &name, "it is found ill", |line| line["health"] == "unhealthy");
    // The next ones go through only where the one before has ended.
    user.says(&["exec", &name, "touch", "/tmp/well"]);
    until(user, &name, "it is found well", |line| line["health"] == "healthy");
    let left = user.says(&["exec", &name, "ps"]);
    assert!(!left.contains("sleep 4343"), "{left}");
    user.says(&["rm", "-f", &name]);
}

/// HEALTHCHECK and STOPSIGNAL of an image count where no flag says otherwise.
fn an_image_has_words_of_its_own(user: &User) {
    let changed = with_config(user.path(), |config| {
        config["StopSignal"] = "SIGUSR2".into();
        config["Healthcheck"] =
            json!({"Test": ["CMD-SHELL", "test -e /tmp/well"], "Interval": 100_000_000, "Retries": 2});
    });
    let script = format!("trap 'exit 7' USR2; {LOOPS}");
    user.says(&in_vm(&["-d", "--name", "own"], &[&changed, "sh", "-c", &script]));
    until(user, "own", "it is found ill", |line| line["health"] == "unhealthy");
    user.says(&["exec", "own", "touch", "/tmp/well"]);
    until(user, "own", "it is found well", |line| line["health"] == "healthy");
    user.says(&["stop", "-t", "1000", "own"]);
    assert_eq!(user.says(&["wait", "own"]), "7\n");
    user.says(&in_vm(&["-d", "--name", "not", "--no-healthcheck"], &[&changed, "sleep", "1000"]));
    assert_eq!(user.line("not").expect("it is listed")["health"], Value::Null);
    user.says(&["rm", "-f", "not"]);
}

/// The image with another configuration, as an OCI layout: umoci knows nothing of health.
fn with_config(folder: &Path, change: impl FnOnce(&mut Value)) -> String {
    let layout = folder.join("changed");
    host("cp", &["-r".as_ref(), guest("images/busybox").as_os_str(), layout.as_os_str()]);
    let blob = |digest: &Value| layout.join("blobs").join(digest.as_str().expect("a digest").replace(':', "/"));
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).expect("a document")).expect("JSON") };
    // A document becomes a blob; its descriptor says so.
    let write = |descriptor: &mut Value, document: &Value| {
        let bytes = document.to_string();
        let file = layout.join("blobs/sha256/new");
        fs::write(&file, &bytes).expect("a file");
        let sum = host("sha256sum", &[file.as_os_str()]);
        let sum = sum.split(' ').next().expect("a sum");
        fs::rename(&file, file.with_file_name(sum)).expect("a blob");
        descriptor["digest"] = format!("sha256:{sum}").into();
        descriptor["size"] = bytes.len().into();
    };
    let mut index = read(&layout.join("index.json"));
    let mut manifest = read(&blob(&index["manifests"][0]["digest"]));
    let mut config = read(&blob(&manifest["config"]["digest"]));
    change(&mut config["config"]);
    write(&mut manifest["config"], &config);
    write(&mut index["manifests"][0], &manifest);
    fs::write(layout.join("index.json"), index.to_string()).expect("the index");
    format!("oci:{}", layout.display())
}
