//! The serial console: a terminal, pipes, files, and a reader that does not read.

use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;

use crate::terminal::Terminal;
use crate::vm::{Vm, copy_of};

/// With this the busybox root file system's shell asks for a command.
pub const PROMPT: &str = "root@vmm:/root# ";

#[test]
fn a_user_logs_in_on_a_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = copy_of("busybox.ext4", folder.path()).display().to_string();
    let terminal = Terminal::open();
    let before = terminal.settings();
    assert!(terminal.is_cooked());
    let mut vm = Vm::boot("debian12/bzImage").args(["--rootfs", &root]).on(&terminal).start();
    vm.expect("login: ");
    assert!(!terminal.is_cooked());
    vm.send("root\n");
    vm.expect(PROMPT);
    vm.send("echo $((6 * 7)) is the answer of $(id -u)\n");
    vm.expect("\n42 is the answer of 0\n");
    // Ctrl-C is the guest's. It comes when the job has the terminal: the shell itself would not end it.
    vm.expect(PROMPT);
    vm.send("sh -c 'echo sleeps; exec sleep 10000'\n");
    vm.expect("\nsleeps\n");
    vm.send("\x03");
    vm.expect(PROMPT);
    // The escape key twice is one Ctrl-A.
    vm.send("echo reads; head -c 1 | od -An -t x1\n");
    vm.expect("\nreads\n");
    vm.send("\x01\x01\n");
    vm.expect("\n 01\n");
    vm.expect(PROMPT);
    vm.send("poweroff\n");
    vm.ends(0);
    assert_eq!(terminal.settings(), before);
}

/// However the program ends: the settings are those from before.
#[test]
fn the_terminal_is_restored_on_every_way_out() {
    for (signal, code) in [(Signal::TERM, 10), (Signal::INT, 10), (Signal::SEGV, 150), (Signal::BUS, 149)] {
        let terminal = Terminal::open();
        let before = terminal.settings();
        let mut vm = Vm::tuned().args(["--grace", "1"]).on(&terminal).run("echo READY; sleep 10000").start();
        vm.expect("READY");
        assert!(!terminal.is_cooked());
        vm.signal(signal);
        vm.ends(code);
        assert_eq!(terminal.settings(), before, "after {signal:?}");
    }
}

#[test]
fn the_terminal_is_restored_after_a_fault_in_the_config() {
    let terminal = Terminal::open();
    let before = terminal.settings();
    Vm::new().args(["--kernel", "/dev/null"]).on(&terminal).start().ends(153);
    assert_eq!(terminal.settings(), before);
}

/// How many lines of 32 bytes make 1 MiB.
const MEBIBYTE: u64 = 32_768;
/// And twice of what a pipe holds: enough to fill it, quicker in the lab.
const TWO_PIPES: u64 = 4096;

fn line(number: u64) -> String {
    format!("{number:07} lines, 32 bytes in each")
}

/// Prints them. One awk program: quick even in the lab.
fn print_lines(count: u64) -> String {
    format!(r#"awk 'BEGIN {{ for (i = 0; i < {count}; i++) printf "%07d lines, 32 bytes in each\n", i }}'"#)
}

fn check_lines(console: &str, count: u64) {
    let mut lines = console.lines().filter(|line| line.ends_with(" lines, 32 bytes in each"));
    for number in 0..count {
        let expected = line(number);
        assert_eq!(lines.next(), Some(&*expected), "line {number} of the output");
    }
    assert_eq!(lines.next(), None);
}

/// The pipe is full after 64 KiB, and the guest does not notice: it says on a disk that it has printed all.
#[test]
fn a_mebibyte_waits_for_its_reader() {
    assert_eq!(line(0).len(), 31);
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk");
    std::fs::write(&disk, [0; 512]).expect("a disk");
    let script =
        format!("{}; echo done | dd of=/dev/vda conv=sync,fsync; read go; echo GOES ON", print_lines(MEBIBYTE));
    let mut vm = Vm::tuned().args(["--disk", &disk.display().to_string()]).run(&script).pipe().unread().start();
    while !std::fs::read(&disk).expect("the disk").starts_with(b"done") {
        assert!(vm.is_running(), "the VM ended");
        sleep(Duration::from_millis(100));
    }
    vm.read();
    vm.send("\n");
    let ended = vm.ends(0);
    check_lines(&ended.console, MEBIBYTE);
    assert!(ended.console.contains("GOES ON"));
}

/// Nobody ever reads: the VM ends all the same, and what fits the pipe is there.
#[test]
fn nobody_ever_reads() {
    let mut vm = Vm::tuned().run(&print_lines(TWO_PIPES)).unread().start();
    while vm.is_running() {
        sleep(Duration::from_millis(100));
    }
    vm.read();
    let ended = vm.ends(0);
    assert!(ended.console.contains(&line(100)), "{} bytes", ended.console.len());
}

#[test]
fn output_to_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("console.log");
    let serial = format!("file:{}", file.display());
    let ended = Vm::tuned().args(["--serial", &serial]).run(&print_lines(TWO_PIPES)).start().ends(0);
    assert_eq!(ended.console, "");
    check_lines(&std::fs::read_to_string(file).expect("the file").replace('\r', ""), TWO_PIPES);
}

#[test]
fn a_reader_that_went_away() {
    let mut vm = Vm::tuned().run(&format!("{0}; sleep 1; {0}", print_lines(TWO_PIPES))).unread().start();
    vm.hang_up();
    vm.ends(0);
}

#[test]
fn input_through_a_pipe() {
    let script =
        "echo READY; read word rest; echo got=$word; head -c 20000 | md5sum | { read sum name; echo sum=$sum; }";
    let mut vm = Vm::boot("debian12/vmlinux").run(&format!("stty -echo -icanon; {script}")).pipe().start();
    vm.expect("READY");
    vm.send("hello from outside\n");
    vm.expect("got=hello");
    // Far more than the port's buffers hold: nothing is lost on the way.
    let text: String = (0..2500).map(|number| format!("{number:07}\n")).collect();
    vm.send(&text);
    vm.end_input();
    let ended = vm.ends(0);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("text");
    std::fs::write(&file, text).expect("a file");
    assert!(crate::vm::host("md5sum", &[file.as_os_str()]).starts_with(ended.value("sum")), "{}", ended.console);
}

/// The end of the input is not the end of the VM.
#[test]
fn input_that_ends() {
    let mut vm = Vm::tuned().run("sleep 2; echo ALIVE").pipe().start();
    vm.end_input();
    let ended = vm.ends(0);
    assert!(ended.console.contains("ALIVE"), "{}", ended.console);
}

/// Input that is there from the start does not get lost, nor in the way of the boot.
#[test]
fn input_before_the_guest_is_up() {
    let mut vm = Vm::tuned().run("while read line; do echo got=$line; [ $line = last ] && break; done").pipe().start();
    vm.send("first\n");
    vm.expect("got=");
    vm.send("last\n");
    vm.ends(0);
}

#[test]
fn no_serial_port() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk");
    std::fs::write(&disk, [0; 512]).expect("a disk");
    let script = "echo ran | dd of=/dev/vda conv=sync,fsync";
    let args = ["--no-serial", "--disk", &disk.display().to_string()];
    let ended = Vm::tuned().args(args).run(script).start().ends(0);
    assert_eq!(ended.console, "");
    assert!(std::fs::read(&disk).expect("the disk").starts_with(b"ran\n"));
}
