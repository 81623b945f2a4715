//! Clients of the API that do all wrong, or stand still, or are very many, while the guest works on its disk: what it
//! writes and reads stays what it was, the API answers, and nothing of them is left in the monitor.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use api::client;

use crate::api::Remote;
use crate::disk::{disk, empty, folder};
use crate::net::md5;
use crate::vm::{PATIENCE, Running, Vm};

/// Pieces of 4 MiB that the guest writes and reads back.
const ROUNDS: usize = 6;

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("the API's socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream
}

fn put(headers: &str, body: &[u8]) -> Vec<u8> {
    [format!("PUT /mmds HTTP/1.1\r\n{headers}\r\n\r\n").as_bytes(), body].concat()
}

/// Requests that are none: each has its answer, or none because it is not whole.
fn wrong_ones(socket: &Path) {
    for (bytes, wanted) in [
        (put("Content-Length: 60000", &[b'x'; 60_000]), "HTTP/1.1 413 "),
        (put("Content-Length: 60000", b""), "HTTP/1.1 413 "),
        (put("Content-Length: 4", b"\"\xff\xfe\""), "the body is not JSON"),
        (b"GET /\xff\xfe HTTP/1.1\r\n\r\n".to_vec(), "HTTP/1.1 400 "),
        (b"PUT /mmds HTTP/1.1\r\nX: \xff\r\nContent-Length: 2\r\n\r\n{}".to_vec(), "HTTP/1.1 400 "),
        (put("Content-Length: 1", b"{}"), "the body is not JSON"),
        (put("Content-Length: 3", b"{}"), ""),
        (put("Content-Length: -1", b"{}"), "Content-Length is not one number"),
        (put("Content-Length: 1\r\nContent-Length: 2", b"{}"), "Content-Length is not one number"),
        (put("Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n"), "HTTP/1.1 501 "),
        (vec![0; 100_000], "HTTP/1.1 400 "),
    ] {
        let mut stream = connect(socket);
        // The answer may come, and the connection end, before all is sent.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let (asked, answer) =
            (String::from_utf8_lossy(&bytes[..bytes.len().min(80)]), String::from_utf8_lossy(&answer));
        assert!(answer.contains(wanted) && wanted.is_empty() == answer.is_empty(), "{asked:?}: {answer}");
    }
}

/// Those who are gone in the middle of a request, or before its answer.
fn vanishing_ones(socket: &Path) {
    for _ in 0..50 {
        connect(socket).write_all(&put("Content-Length: 100", b"{")).expect("sending");
        connect(socket).write_all(b"GET /vm/config HTTP/1.1\r\n\r\n").expect("sending");
        connect(socket).write_all(b"GET /vm/events HTTP/1.1\r\n\r\n").expect("sending");
    }
}

/// One who asks and asks, and reads no answer; and one who follows what happens and does not read that.
fn greedy_ones(socket: &Path) -> [UnixStream; 2] {
    let (mut greedy, mut follower) = (connect(socket), connect(socket));
    follower.write_all(b"GET /vm/events HTTP/1.1\r\n\r\n").expect("sending");
    greedy.set_nonblocking(true).expect("a mode");
    let requests = b"GET /vm/config HTTP/1.1\r\n\r\n".repeat(100);
    while greedy.write(&requests).is_ok() {}
    [greedy, follower]
}

/// One who needs a while for a request, and has its answer in the end.
fn slow_one(socket: &Path) {
    let mut slow = connect(socket);
    for byte in b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" {
        slow.write_all(&[*byte]).expect("sending");
        sleep(Duration::from_millis(2));
    }
    let mut answer = String::new();
    slow.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

/// A hundred at the same time, who all do right; and all the others beside them.
fn a_crowd(socket: &Path) {
    let _silent: Vec<_> = (0..300).map(|_| connect(socket)).collect();
    let _greedy = greedy_ones(socket);
    scope(|scope| {
        scope.spawn(|| slow_one(socket));
        scope.spawn(|| wrong_ones(socket));
        scope.spawn(|| vanishing_ones(socket));
        for _ in 0..100 {
            scope.spawn(|| {
                for _ in 0..3 {
                    let answer = client::call(socket, "GET", "/", None).expect("an answer");
                    assert_eq!(answer["state"], "Running");
                }
            });
        }
    });
}

/// How many files and threads the monitor has.
fn held(vm: &Running) -> (usize, usize) {
    let threads = std::fs::read_dir(format!("/proc/{}/task", vm.id())).expect("the monitor runs").count();
    (vm.open_files(), threads)
}

/// Tells the clients to come to an end when it is dropped: a test that fails must not wait for them for ever.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_guest_at_work_does_not_notice_them() {
    let folder = folder();
    let image = empty(folder.path(), "data", 32 << 20);
    let script = format!(
        r#"mkdir /work; mount -t tmpfs work /work; dd if=/dev/urandom of=/work/noise bs=64k count=64 2>/dev/null
        sum=$(md5sum </work/noise); echo READY; read go; bad=0
        for i in $(seq {ROUNDS}); do
            dd if=/work/noise of=/dev/vda bs=64k seek=$((i * 64)) conv=fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches
            [ "$(dd if=/dev/vda bs=64k skip=$((i * 64)) count=64 2>/dev/null | md5sum)" = "$sum" ] || bad=$((bad + 1))
        done
        echo DONE; read go; echo bad=$bad sum=$sum; echo late=$(dmesg | grep -c -i -e lockup -e stall -e 'I/O error')"#
    );
    let args = [disk(&image, ""), ["--cpus".into(), "2".into()]].concat();
    let mut remote = Remote::start(Vm::tuned().args(args).run(&script).pipe());
    remote.vm.expect("READY");
    let (before, socket) = (held(&remote.vm), remote.socket.clone());
    remote.vm.send("\n");
    let is_done = AtomicBool::new(false);
    let crowds = scope(|scope| {
        let crowds = scope.spawn(|| {
            let mut crowds = 0;
            while crowds == 0 || !is_done.load(Ordering::Relaxed) {
                a_crowd(&socket);
                crowds += 1;
            }
            crowds
        });
        let done = Done(&is_done);
        remote.vm.expect("DONE");
        drop(done);
        crowds.join().expect("all had their answers")
    });
    let until = Instant::now() + PATIENCE;
    while held(&remote.vm) != before {
        assert!(
            Instant::now() < until,
            "after {crowds} crowds: {before:?} files and threads became {:?}",
            held(&remote.vm)
        );
        sleep(Duration::from_millis(50));
    }
    remote.set_state("Paused");
    remote.set_state("Resumed");
    remote.vm.send("\n");
    let ended = remote.vm.ends(0);
    let sum = ended.value("bad").strip_prefix("0 sum=").unwrap_or_else(|| panic!("{}", ended.console));
    assert_eq!(ended.number("late"), 0, "{}", ended.console);
    let written = std::fs::read(&image).expect("the image");
    for round in 1..=ROUNDS {
        assert_eq!(
            Some(md5(&written[round << 22..(round + 1) << 22]).as_str()),
            sum.split(' ').next(),
            "round {round}"
        );
    }
}
