//! Ports for a container of a VM that runs already: its owner publishes them, as passt cannot be given any.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::container::image;
use crate::container_life::User;
use crate::container_network::{own_address, with_perl};
use crate::disk::noise;
use crate::user_net::uplink;
use crate::vm::PATIENCE;

const BYTES: usize = 2 << 20;
/// The VM, its first container, and how others come to it.
const IN_VM: [&str; 4] = ["--network", "user", "--vm", "t"];

/// A user with a VM that runs and has published nothing.
fn tenant() -> User {
    uplink();
    let user = User::new();
    user.start(&[&IN_VM[..], &["--name", "first"]].concat(), "exec sleep 100000");
    user
}

/// Starts one more container, of the image with perl, and waits until it says READY.
fn perl(user: &User, image: &str, name: &str, options: &[&str], script: &str) {
    let words = [&["run", "-d", "--name", name], &IN_VM[..], options, &[image, "perl", "-MSocket", "-e", script]];
    user.says(&words.concat());
    user.until_logged(name, "READY");
}

fn call(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the published port");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream
}

/// What is heard until an orderly end.
fn all(mut from: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).expect("an orderly end");
    bytes
}

#[test]
fn a_container_that_comes_later_has_ports() {
    let (user, folder) = (tenant(), tempfile::tempdir().expect("a folder"));
    let image = with_perl(folder.path());
    let script = r#"$| = 1;
        socket(U, PF_INET, SOCK_DGRAM, 0) && bind(U, sockaddr_in(53, INADDR_ANY)) or die "udp: $!";
        socket(T, PF_INET, SOCK_STREAM, 0) && bind(T, sockaddr_in(80, INADDR_ANY)) && listen(T, 5) or die "tcp: $!";
        print "READY\n";
        if (!fork) { while ($from = recv(U, $heard, 2000, 0)) { send(U, "heard $heard", 0, $from) } exit }
        while (accept(C, T)) { local $/; $all = <C>; print C $all; close C }"#;
    let ports = ["-p", "127.0.0.1:7150:80", "-p", "7151:53/udp", "-p", "127.0.0.1:7152:81"];
    perl(&user, &image, "web", &ports, script);
    let line = user.line("web").expect("it is listed");
    assert_eq!(line["ports"], serde_json::json!(["127.0.0.1:7150:80", "7151:53/udp", "127.0.0.1:7152:81"]));

    // By whichever address of the host: an answer comes from where the question went.
    for address in [Ipv4Addr::LOCALHOST.into(), own_address(), Ipv4Addr::new(127, 0, 0, 7).into()] {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
        socket.connect((address, 7151)).expect("an address");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        socket.send(b"a datagram").expect("sending");
        let mut answer = [0; 100];
        let len = socket.recv(&mut answer).expect("an answer");
        assert_eq!(&answer[..len], b"heard a datagram", "{address}");
    }
    let sent = noise(BYTES);
    let stream = call(7150);
    (&stream).write_all(&sent).expect("sending");
    stream.shutdown(Shutdown::Write).expect("half a close");
    assert!(all(&stream) == sent);
    let refused = call(7152).read(&mut [0]).expect_err("nobody listens there");
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset);

    // Taken is taken, by one line; and free when the container has gone.
    let again = ["run", "--network", "user", "--vm", "t", "-p", "127.0.0.1:7150:80", &image, "true"];
    let (code, why) = user.refuses(&again);
    assert_eq!((code, why.lines().count()), (125, 1), "{why}");
    assert!(why.contains("publish port 7150 of 127.0.0.1: another program uses it"), "{why}");
    user.says(&["rm", "-f", "web"]);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 7150)).is_err(), "the port is still there");
    user.says(&again);
    user.says(&["rm", "-f", "first"]);
}

/// What a container has said when it ends is heard; one that is started again is found at its port again.
#[test]
fn the_last_words_are_heard_and_the_next_ones() {
    let (user, folder) = (tenant(), tempfile::tempdir().expect("a folder"));
    let image = with_perl(folder.path());
    let script = r#"$| = 1;
        socket(T, PF_INET, SOCK_STREAM, 0) && bind(T, sockaddr_in(80, INADDR_ANY)) && listen(T, 5) or die "tcp: $!";
        print "READY\n"; accept(C, T); print C "words of $$" x 100; exit 1"#;
    perl(&user, &image, "web", &["-p", "127.0.0.1:7153:80", "--restart", "on-failure:2"], script);
    for time in 1..=3 {
        let since = Instant::now();
        // Until the next one listens, a caller is refused.
        while user.says(&["logs", "web"]).matches("READY").count() < time {
            assert!(since.elapsed() < PATIENCE, "start {time}");
            sleep(Duration::from_millis(50));
        }
        assert_eq!(String::from_utf8_lossy(&all(&call(7153))), "words of 1".repeat(100));
    }
    assert_eq!(user.says(&["wait", "web"]), "1\n");
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 7153)).is_err(), "the port is still there");
    user.says(&["rm", "-f", "first"]);
}

/// In the foreground, until a line says READY.
fn foreground(user: &User, options: &[&str], words: &[&str]) -> Child {
    let words = [&["run"], &IN_VM[..], options, words].concat();
    let mut child = user.command(&words).stdout(Stdio::piped()).spawn().expect("vmm run");
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !said.ends_with(b"READY\n") {
        child.stdout.as_mut().expect("a pipe").read_exact(&mut byte).expect("READY");
        said.extend(byte);
    }
    child
}

/// More callers than one container may have: the others wait, the VM goes on, and so does all when they have gone.
#[test]
fn a_thousand_callers_do_no_harm() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("descriptors");
    let (user, folder) = (tenant(), tempfile::tempdir().expect("a folder"));
    let image = with_perl(folder.path());
    // Each caller hears one byte, and its connection is closed when it has gone.
    let script = r#"$| = 1;
        socket(T, PF_INET, SOCK_STREAM, 0) && bind(T, sockaddr_in(80, INADDR_ANY)) && listen(T, 4096) or die "tcp: $!";
        vec($all, fileno T, 1) = 1; print "READY\n";
        while (select $some = $all, undef, undef, undef) {
            for (grep { vec $some, $_, 1 } keys %callers) {
                sysread($callers{$_}, $heard, 9) or vec($all, $_, 1) = 0, close delete $callers{$_};
            }
            vec $some, fileno T, 1 or next;
            accept $one, T; vec($all, fileno $one, 1) = 1; syswrite $one, "x"; $callers{fileno $one} = $one; undef $one;
        }"#;
    let perl = [image.as_str(), "perl", "-MSocket", "-e", script];
    let mut child = foreground(&user, &["--name", "web", "-p", "127.0.0.1:7154:80", "--ulimit", "nofile=4096"], &perl);
    let hears = |stream: &mut TcpStream| stream.read_exact(&mut [0]).expect("a byte");
    let mut inside: Vec<TcpStream> = (0..1024).map(|_| call(7154)).collect();
    inside.iter_mut().for_each(hears);
    let mut waiting: Vec<TcpStream> = (0..50).map(|_| call(7154)).collect();
    for stream in &mut waiting {
        stream.set_nonblocking(true).expect("a stream that does not wait");
        assert_eq!(stream.read(&mut [0]).expect_err("it waits").kind(), ErrorKind::WouldBlock);
    }
    assert_eq!(user.says(&["exec", "web", "echo", "alive"]), "alive\n");
    inside.truncate(1000);
    for stream in &mut waiting[..24] {
        stream.set_nonblocking(false).expect("a stream that waits");
    }
    waiting[..24].iter_mut().for_each(hears);
    inside.clear();
    for stream in &mut waiting[24..] {
        stream.set_nonblocking(false).expect("a stream that waits");
        hears(stream);
    }

    // Its owner dies: nothing stays of its connections, and of its port.
    kill_process(Pid::from_child(&child), Signal::KILL).expect("killing it");
    child.wait().expect("an end");
    for stream in &mut waiting {
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)), "somebody answers");
    }
    let words = [image.as_str(), "perl", "-MSocket", "-e", script];
    let mut next = foreground(&user, &["--name", "next", "-p", "127.0.0.1:7154:80"], &words);
    hears(&mut call(7154));
    user.says(&["rm", "-f", "next"]);
    next.wait().expect("an end");
    user.says(&["rm", "-f", "first"]);
}

/// A container without a network of its own VM's kind, and without any, is told what it cannot have.
#[test]
fn a_vm_without_a_network_has_no_ports() {
    let user = User::new();
    user.start(&["--vm", "n", "--name", "first"], "exec sleep 100000");
    let (code, why) = user.refuses(&["run", "--network", "user", "--vm", "n", "-p", "7155:80", &image(), "true"]);
    assert!(code == 125 && why.contains("it runs without a network, so this container takes --network none"), "{why}");
    user.says(&["rm", "-f", "first"]);
}
