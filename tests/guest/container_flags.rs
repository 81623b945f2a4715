//! Flags of `vmm run` that have Docker's meaning, as the container sees it.

use std::net::Ipv4Addr;
use std::process::Command;

use crate::container::image;
use crate::container_kernel::answer;
use crate::container_life::User;
use crate::net::{ip, lasting_tap};
use crate::terminal::Terminal;
use crate::vm::{done, guest};

const LIMITS: &str =
    "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max; df -k /dev/shm /t | awk 'NR > 1 { print $2 }'";

#[test]
fn sizes_are_in_bytes_and_nothing_is_no_limit() {
    let (user, image) = (User::new(), image());
    let limits = |options: &[&str]| user.says(&[&["run", "--rm"], options, &[&image, "sh", "-c", LIMITS]].concat());
    let options = ["--memory", "67108864", "--pids-limit", "9", "--cpus", "0.01", "--shm-size", "3145728"];
    assert_eq!(limits(&[&options[..], &["--tmpfs", "/t:size=2mb"]].concat()), "67108864\n9\n1000 100000\n3072\n2048\n");
    let options = ["--memory", "0", "--pids-limit", "-1", "--cpus", "0", "--shm-size", "0", "--tmpfs", "/t:size=65536"];
    assert_eq!(limits(&options), "max\nmax\nmax 100000\n65536\n64\n");
}

/// What an image's configuration says wrong is blamed on it, in one line; a flag puts it right, or is blamed itself.
#[test]
fn a_wrong_configuration_of_an_image_is_named() {
    let user = User::new();
    let layout = user.path().join("layout");
    done(Command::new("cp").arg("-r").arg(guest("images/busybox")).arg(&layout));
    for (tag, key, value) in [
        ("user", "user", "nobody-here"),
        ("group", "user", "0:no-group"),
        ("file", "workingdir", "/etc/passwd"),
        ("relative", "workingdir", "here"),
        ("missing", "entrypoint", "/no/such"),
        ("data", "entrypoint", "/etc/passwd"),
        ("command", "cmd", "no-such-program"),
    ] {
        let option = format!("--config.{key}");
        let words = ["config", "--image", "layout:latest", "--tag", tag, option.as_str(), value];
        done(Command::new("umoci").args(words).current_dir(user.path()));
    }
    let image = |tag: &str| format!("oci:{}:{tag}", layout.display());
    for (tag, code, wanted) in [
        ("user", 125, "the User of its configuration: the image has no user nobody-here (/etc/passwd)"),
        ("group", 125, "the User of its configuration: the image has no group no-group (/etc/group)"),
        ("file", 125, "the WorkingDir of its configuration: make the working directory /etc/passwd: Not a directory"),
        ("relative", 125, "the WorkingDir of its configuration, here: it is a path from / on"),
        ("missing", 127, "the Entrypoint of its configuration: /no/such: No such file or directory"),
        ("data", 126, "the Entrypoint of its configuration: /etc/passwd: nobody may execute it"),
        ("command", 127, "the Cmd of its configuration: no-such-program: no such program in "),
    ] {
        let image = image(tag);
        let (status, why) = user.refuses(&["run", "--rm", &image]);
        assert_eq!((status, why.lines().count()), (code, 1), "{why}");
        assert!(why.starts_with(&format!("vmm: {image}: {wanted}")), "{why}");
    }
    for (tag, options, right) in [
        ("user", ["--user", "0", "--workdir", "/"], "id -u"),
        ("file", ["--workdir", "/", "--user", "0"], "id -u"),
        ("missing", ["--entrypoint", "", "--user", "0"], "id -u"),
    ] {
        let image = image(tag);
        let words = [&["run", "--rm"], &options[..], &[&image, "sh", "-c", right]].concat();
        assert_eq!(user.says(&words), "0\n", "{tag}");
    }
    let image = image("latest");
    for (options, code, wanted) in [
        (["--user", "none"], 125, "vmm: --user none: the image has no user none"),
        (["--workdir", "/etc/passwd/x"], 125, "vmm: --workdir /etc/passwd/x: make the working directory"),
        (["--entrypoint", "/none"], 127, "vmm: --entrypoint /none: /none: No such file"),
    ] {
        let (status, why) = user.refuses(&[&["run", "--rm"], &options[..], &[&image]].concat());
        assert!(status == code && why.starts_with(wanted) && why.lines().count() == 1, "{why}");
    }
}

/// Only keys take a terminal on this side.
#[test]
fn a_terminal_of_the_container_needs_none_on_this_side() {
    let (user, image) = (User::new(), image());
    let output = user.output(&["run", "--rm", "-t", &image, "sh", "-c", "tty; stty size; exit 3"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "/dev/pts/0\r\n24 80\r\n", "{output:?}");
    assert_eq!(output.status.code(), Some(3));
    user.start(&["--name", "c"], "sleep 1000");
    assert_eq!(user.says(&["exec", "-t", "c", "tty"]), "/dev/pts/0\r\n");
    let (code, why) = user.refuses(&["exec", "-it", "c", "tty"]);
    assert!(code == 125 && why.contains("standard input is not a terminal"), "{why}");
    user.says(&["rm", "-f", "c"]);
}

/// Who gets no keys is asked to end by a signal, so the user's terminal still makes one of Ctrl-C.
#[test]
fn without_its_keys_a_terminal_still_sends_signals() {
    let (terminal, user) = (Terminal::open(), User::new());
    let script = "trap 'echo CAUGHT; exit 3' INT; echo READY; while :; do sleep 0.1; done";
    let mut vm = user.stays(&["run", "--rm", "-t", &image(), "sh", "-c", script]).on(&terminal).start();
    vm.expect("READY");
    assert!(terminal.is_cooked());
    vm.send("\x03");
    vm.expect("CAUGHT");
    vm.ends(3);
}

/// What the host's address on the device says of the VM's, and when it says nothing.
#[test]
fn a_tap_alone_is_a_whole_network() {
    lasting_tap("vmmtest83");
    ip("addr flush dev vmmtest83"); // of a run before that failed
    let (user, image) = (User::new(), image());
    let refused = || {
        let (code, why) = user.refuses(&["run", "--rm", "--network", "tap:vmmtest83", &image, "true"]);
        assert_eq!((code, why.lines().count()), (125, 1), "{why}");
        why
    };
    let why = refused();
    assert!(
        why.contains("tap:vmmtest83: the host has no IPv4 address on this device, so the VM's has to be given"),
        "{why}"
    );
    ip("addr add 10.9.83.1/24 dev vmmtest83");
    ip("link set vmmtest83 up");
    let options = ["--network", "tap:vmmtest83", "--name", "web", "-p", "8080:80"];
    user.start(&options, "echo within > /index.html; exec httpd -f -p 80 -h /");
    let said = answer((Ipv4Addr::new(10, 9, 83, 2), 8080));
    assert!(said.ends_with("within\n"), "{said}");
    user.says(&["exec", "web", "ping", "-c", "1", "10.9.83.1"]);
    user.says(&["rm", "-f", "web"]);
    ip("addr add 10.9.84.1/24 dev vmmtest83");
    let why = refused();
    assert!(why.contains("the host has several IPv4 addresses on this device, so"), "{why}");
    ip("link del vmmtest83");
}
