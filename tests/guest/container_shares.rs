//! Directories of the host in a tenant's VM that runs already: they come with a container and go with the last that has them.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::container::image;
use crate::container_life::User;
use crate::vm::PATIENCE;

/// Shares of a tenant's VM that wait for directories, beside one for each of its first container's.
const SPARE: usize = 4;
/// What a container does that is there for its directories alone.
const STAYS: &str = "echo up; while :; do sleep 0.1; done";

/// A user with directories to share.
struct Host(User);

impl Host {
    /// A directory of the user's, with a file that has its name.
    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.0.path().join(name);
        if !dir.exists() {
            fs::create_dir(&dir).expect("a directory");
            fs::write(dir.join("name"), format!("{name}\n")).expect("a file");
        }
        dir
    }

    /// `-v` for this directory.
    fn volume(&self, name: &str, path: &str) -> String {
        format!("{}:{path}", self.dir(name).display())
    }

    fn run(&self, volumes: &[String], script: &str) -> Output {
        let image = image();
        let options: Vec<&str> = volumes.iter().flat_map(|volume| ["-v", volume.as_str()]).collect();
        self.0.output(&[&["run", "--rm", "--vm", "t"], &options[..], &[&image, "sh", "-c", script]].concat())
    }

    fn says(&self, volumes: &[String], script: &str) -> String {
        let output = self.run(volumes, script);
        assert!(output.status.success(), "{volumes:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// A container that stays.
    fn start(&self, name: &str, volumes: &[String], script: &str) {
        let options: Vec<&str> = volumes.iter().flat_map(|volume| ["-v", volume.as_str()]).collect();
        self.0.start(&[&["--vm", "t", "--name", name], &options[..]].concat(), script);
        self.0.until_logged(name, "up");
    }

    /// The directories that the VM sees, once there are so many.
    fn seen(&self, count: usize) -> Vec<String> {
        let since = Instant::now();
        loop {
            let config: Value = serde_json::from_str(&self.0.says(&["ctl", "t", "config"])).expect("JSON");
            let shares = config["shares"].as_array().expect("shares").clone();
            let seen: Vec<_> =
                shares.iter().filter_map(|share| Some(share["path_on_host"].as_str()?.to_owned())).collect();
            if seen.iter().filter(|path| !path.is_empty()).count() == count {
                return seen;
            }
            assert!(since.elapsed() < PATIENCE, "{seen:?}");
            sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn directories_come_with_a_container_and_go_with_it() {
    let host = Host(User::new());
    host.start("first", &[host.volume("a", "/a")], STAYS);
    // One that the VM does not see, and that of the first container.
    let both = [host.volume("b", "/b"), host.volume("a", "/shared")];
    assert_eq!(host.says(&both, "cat /b/name /shared/name; echo written > /b/out; ls /a 2>&1 | wc -l"), "b\na\n1\n");
    assert_eq!(fs::read_to_string(host.dir("b").join("out")).expect("written"), "written\n");
    let output = host.run(&[host.volume("b", "/b:ro")], "cat /b/out; echo x > /b/out; echo x > /b/new; rm /b/out");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "written\n");
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(why.matches("Read-only file system").count() == 3 && !host.dir("b").join("new").exists(), "{why}");
    // More of them, one after the other, than there are shares; each sees its own alone.
    for number in 0..2 * SPARE {
        let name = format!("d{number}");
        let volume = host.volume(&name, "/d");
        assert_eq!(host.says(&[volume], "ls /d; cat /d/name; exec 3>/d/held; echo x >&3"), format!("name\n{name}\n"));
    }
    assert_eq!(host.seen(1), [host.dir("a").display().to_string()], "the first one's alone");
    let touch = "cat /a/name; echo more > /a/more; cat /a/more";
    assert_eq!(host.0.says(&["exec", "first", "sh", "-c", touch]), "a\nmore\n");
    host.0.says(&["rm", "-f", "first"]);
}

#[test]
fn a_directory_stays_as_long_as_a_container_has_it() {
    let host = Host(User::new());
    host.start("first", &[], STAYS);
    let shared = [host.volume("shared", "/s")];
    host.start("second", &shared, "exec 3>/s/open; echo up; while :; do echo x >&3; sleep 0.1; done");
    for _ in 0..2 {
        assert_eq!(host.says(&shared, "cat /s/name"), "shared\n");
    }
    assert_eq!(host.seen(1).len(), 1, "one share for all");
    assert_eq!(host.0.says(&["exec", "second", "cat", "/s/name"]), "shared\n", "it has it still");
    // All that there are.
    let others: Vec<_> = (1..SPARE).map(|number| host.volume(&format!("o{number}"), &format!("/o{number}"))).collect();
    host.start("third", &others, STAYS);
    let one_more = [host.volume("more", "/more")];
    let refused = host.run(&one_more, "true");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), why.lines().count()), (Some(125), 1), "{why}");
    let path = host.dir("more").display().to_string();
    assert!(
        why.contains(&format!("VM t: it sees 4 directories already, which is all that it can see, and not {path};"))
    );
    // Of those that want several, none is kept.
    let refused = host.run(&[&shared[..], &one_more[..]].concat(), "true");
    assert_eq!(refused.status.code(), Some(125));
    // One whose container has just been killed is waited for.
    host.0.says(&["rm", "-f", "second"]);
    assert_eq!(host.says(&one_more, "cat /more/name"), "more\n");
    assert_eq!(host.seen(SPARE - 1).len(), SPARE - 1);
    host.0.says(&["rm", "-f", "third", "first"]);
}
