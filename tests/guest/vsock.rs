//! Sockets between guest and host, with Linux's own driver.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::vm::Vm;

const SILENCE: Duration = Duration::from_secs(120);

pub fn vsock(path: &Path) -> [String; 2] {
    ["--vsock".to_owned(), path.display().to_string()]
}

/// Bytes in which every place differs from its neighbours, and every seed from every other.
pub fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ at >> 8 ^ seed.wrapping_mul(97)).to_le_bytes()[0]).collect()
}

pub fn dial(path: &Path, port: u32) -> UnixStream {
    let mut host = UnixStream::connect(path).expect("the vsock's socket");
    host.set_read_timeout(Some(SILENCE)).expect("a timeout");
    writeln!(host, "CONNECT {port}").expect("a greeting");
    let (mut line, mut byte) = (String::new(), [0]);
    while host.read(&mut byte).expect("an answer") == 1 && byte != *b"\n" {
        line.push(char::from(byte[0]));
    }
    assert!(line.starts_with("OK "), "answered {line:?}");
    host
}

/// The host connects; what it sends comes back unchanged, also after it has said that it is done.
#[test]
fn the_host_reaches_the_guest() {
    for kernel in ["debian12/vmlinux", "debian13/vmlinux", "tuned/vmlinux"] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("v.sock");
        let mut vm = Vm::boot(kernel).args(vsock(&path)).run("vsock echo 5000 4").start();
        vm.expect("LISTENING");
        let sizes = [1, 4096, 100_003, 2 << 20];
        for (seed, size) in sizes.into_iter().enumerate() {
            let mut host = dial(&path, 5000);
            let sent = pattern(seed, size);
            let mut writer = host.try_clone().expect("a descriptor");
            let bytes = sent.clone();
            let writer = thread::spawn(move || {
                writer.write_all(&bytes).expect("writing");
                writer.shutdown(std::net::Shutdown::Write).expect("a half-close");
            });
            let mut got = Vec::new();
            host.read_to_end(&mut got).expect("reading");
            writer.join().expect("the writer");
            assert!(got == sent, "{size} bytes: {} came back", got.len());
        }
        vm.expect(&format!("echoed={}", sizes.iter().sum::<usize>()));
        vm.ends(0);
        assert!(!path.exists(), "the socket's file is gone");
    }
}

/// The guest connects; its half-close is answered with a checksum of what the host got.
#[test]
fn the_guest_reaches_the_host() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("v.sock");
    let listener = UnixListener::bind(folder.path().join("v.sock_80")).expect("a listener");
    let script = r"
        vsock connect 81; echo refused=$?
        dd if=/dev/urandom of=/tmp/data bs=65536 count=32 2>/dev/null
        echo sum=$(md5sum /tmp/data | cut -d' ' -f1)
        vsock connect 80 </tmp/data >/tmp/back; echo back=$(md5sum /tmp/back | cut -d' ' -f1)";
    let host = thread::spawn(move || {
        let (mut host, _) = listener.accept().expect("a connection");
        let mut got = Vec::new();
        host.read_to_end(&mut got).expect("reading");
        host.write_all(&got).expect("answering");
        got.len()
    });
    let ended = Vm::tuned().args(["--vsock".into(), format!("{},cid=77", path.display())]).run(script).start().ends(0);
    assert_eq!(host.join().expect("the host"), 2 << 20);
    assert_eq!(ended.value("refused"), "1");
    assert_eq!(ended.value("back"), ended.value("sum"));
    assert_ne!(ended.value("sum"), "d41d8cd98f00b204e9800998ecf8427e", "not nothing");
}

/// Has this process open so many files at a time.
fn room_for_files(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(count, |maximum| maximum.min(count));
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit }).expect("a limit below the hard one");
}

/// A thousand connections at once, each with its own bytes.
#[test]
fn many_connections_do_not_mix() {
    const COUNT: u32 = 1000;
    room_for_files(4096);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("v.sock");
    let listener = UnixListener::bind(folder.path().join("v.sock_80")).expect("a listener");
    let host = thread::spawn(move || {
        let all: Vec<_> = (0..COUNT).map(|_| listener.accept().expect("a connection").0).collect();
        for mut one in all {
            let mut number = [0; 4];
            one.read_exact(&mut number).expect("its number");
            one.write_all(&number).expect("answering");
        }
    });
    let mut vm = Vm::tuned().args(vsock(&path)).run(&format!("vsock many 80 {COUNT}; vsock echo 5000 {COUNT}")).start();
    vm.expect(&format!("right={COUNT}"));
    host.join().expect("the host");
    vm.expect("LISTENING");
    let mut hosts: Vec<_> = (0..COUNT).map(|_| dial(&path, 5000)).collect();
    for (seed, host) in hosts.iter_mut().enumerate() {
        host.write_all(&pattern(seed, 1000)).expect("writing");
    }
    for (seed, host) in hosts.iter_mut().enumerate() {
        host.shutdown(std::net::Shutdown::Write).expect("a half-close");
        let mut got = Vec::new();
        host.read_to_end(&mut got).expect("reading");
        assert!(got == pattern(seed, 1000), "connection {seed}");
    }
    vm.expect(&format!("echoed={}", COUNT * 1000));
    vm.ends(0);
}
