//! Networks of containers: what comes in by `-p`, what goes out, which names they know.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::container::{image, store};
use crate::container_life::User;
use crate::disk::noise;
use crate::net::{md5, receiver, sender};
use crate::user_net::{passt, uplink};
use crate::vm::{PATIENCE, able, guest, host, program};

const BYTES: usize = 2 << 20;

/// `vmm run` with a network, in a store of its own.
struct Run {
    command: Command,
    store: tempfile::TempDir,
}

impl Run {
    fn new(options: &[&str], image: &str, words: &[&str]) -> Self {
        if let Err(why) = able() {
            panic!("{why}");
        }
        uplink();
        let (mut command, store) = (Command::new(program()), store());
        command.arg("run").args(options).arg(image).args(words).stdin(Stdio::null());
        command.env("VMM_STORE", store.path()).env("VMM_KERNEL", guest("tuned/vmlinux"));
        Self { command, store }
    }

    fn output(mut self) -> Output {
        self.command.output().expect("vmm run")
    }

    /// Standard output, when all went well.
    fn says(self) -> String {
        let output = self.output();
        assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Starts it and reads until a line says READY.
    fn ready(mut self) -> (Self, Child) {
        let mut child = self.command.stdout(Stdio::piped()).spawn().expect("vmm run");
        let out = child.stdout.as_mut().expect("a pipe");
        let mut said = Vec::new();
        while !said.ends_with(b"READY\n") {
            let mut byte = [0];
            out.read_exact(&mut byte).unwrap_or_else(|_| panic!("it ended: {}", text(&said)));
            said.extend(byte);
        }
        (self, child)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The host's address that leads elsewhere; nothing is sent.
pub fn own_address() -> IpAddr {
    uplink();
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    socket.connect((Ipv4Addr::new(203, 0, 113, 1), 9)).expect("a way to elsewhere");
    socket.local_addr().expect("an address").ip()
}

/// A root directory with Perl, and what it wants.
pub fn perl(root: &Path) {
    let sh = "set -e; mkdir \"$0\"
        cp -rL --parents /usr/bin/perl /usr/lib/x86_64-linux-gnu/perl-base \"$0\"
        for lib in $(ldd /usr/bin/perl | grep -o '/lib[^ ]*'); do cp -L --parents $lib \"$0\"; done";
    host("sh", &["-c".as_ref(), sh.as_ref(), root.as_os_str()]);
}

/// The busybox image with this machine's perl in it, and what perl needs.
pub fn with_perl(folder: &Path) -> String {
    let (layout, root) = (folder.join("layout"), folder.join("root"));
    perl(&root);
    let sh = "set -e; cp -r \"$0\" \"$1\"
        for top in usr lib lib64; do umoci insert --image \"$1:latest\" \"$2/$top\" /$top; done";
    let words: [PathBuf; 5] = ["-c".into(), sh.into(), guest("images/busybox"), layout.clone(), root];
    host("sh", &words.iter().map(|word| word.as_os_str()).collect::<Vec<_>>());
    format!("oci:{}", layout.display())
}

/// A container that is published can be called, by TCP and by UDP, hears where a caller stops, and answers.
#[test]
fn published_ports_lead_into_the_container() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = r#"$| = 1;
        socket(U, PF_INET, SOCK_DGRAM, 0) && bind(U, sockaddr_in(53, INADDR_ANY)) or die "udp: $!";
        socket(T, PF_INET, SOCK_STREAM, 0) && bind(T, sockaddr_in(80, INADDR_ANY)) && listen(T, 5) or die "tcp: $!";
        print "READY\n";
        $from = recv(U, $heard, 2000, 0); send(U, "heard $heard", 0, $from);
        accept(C, T); { local $/; $all = <C>; } print C $all; close C;
        recv(U, $heard, 2000, 0);"#; // what a network still has to send is gone with its container
    let options = ["-p", "127.0.0.1:7120:80", "-p", "7121:53/udp"];
    let run = Run::new(&options, &with_perl(folder.path()), &["perl", "-MSocket", "-e", script]);
    let (run, mut child) = run.ready();
    let listed = Command::new(program()).args(["ps", "--json"]).env("VMM_STORE", run.store.path()).output();
    let listed = text(&listed.expect("vmm ps").stdout);
    assert!(listed.contains(r#""ports":["127.0.0.1:7120:80","7121:53/udp"]"#), "{listed}");

    // Not from 127.0.0.1: passt does not take answers back there, as it keeps that from the guest.
    let own = own_address();
    let socket = UdpSocket::bind((own, 0)).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    socket.send_to(b"a datagram", (own, 7121)).expect("sending");
    let mut answer = [0; 100];
    let len = socket.recv(&mut answer).expect("an answer");
    assert_eq!(text(&answer[..len]), "heard a datagram");

    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 7120)).expect("the published port");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let sent = noise(BYTES);
    stream.write_all(&sent).expect("sending");
    stream.shutdown(Shutdown::Write).expect("half a close");
    let mut came_back = Vec::new();
    stream.read_to_end(&mut came_back).expect("an answer");
    assert!(came_back == sent, "{} bytes came back, or others", came_back.len());
    socket.send_to(b"it may end", (own, 7121)).expect("sending");
    assert!(child.wait().expect("an end").success());
    assert!(passt("127.0.0.1/7120:7120").is_none());
}

/// Each connection carries bytes one way: what passt makes of half-closed ones is its own affair.
#[test]
fn the_container_reaches_others_and_not_the_hosts_own_services() {
    let own = own_address();
    let (bytes, all) = (noise(BYTES), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let to_guest = sender(TcpListener::bind((all, 7122)).expect("listening"), bytes.clone());
    let to_us = receiver(TcpListener::bind((all, 7123)).expect("listening"), BYTES);
    let private = TcpListener::bind((Ipv4Addr::LOCALHOST, 7124)).expect("listening");
    private.set_nonblocking(true).expect("a listener that does not wait");
    let script = format!(
        "mkfifo /tmp/open; exec 3<>/tmp/open
        nc {own} 7122 <&3 >/tmp/in; md5sum </tmp/in; nc {own} 7123 </tmp/in >/dev/null
        nc -w 3 10.0.2.1 7124 </dev/null >/dev/null 2>&1 && echo REACHED"
    );
    let said = Run::new(&["--tmpfs", "/tmp"], &image(), &["sh", "-c", &format!("{script}; true")]).says();
    assert_eq!(said, format!("{}  -\n", md5(&bytes)));
    to_guest.join().expect("all was sent");
    assert!(to_us.join().expect("all was received") == bytes);
    assert!(private.accept().is_err(), "a listener on 127.0.0.1 was called");
}

#[test]
fn the_container_has_an_interface_and_names_of_its_own() {
    let script = "ls /sys/class/net; ip -4 addr show eth0 | grep -o 'mtu [0-9]*\\|inet [^ ]*'; ip route | grep default
        grep -v localhost /etc/hosts; cat /etc/resolv.conf | grep nameserver; ping -c 1 -w 60 $(hostname) | grep -c ' from 172.17.0.2'";
    let options = ["--name", "web", "--hostname", "front"];
    let said = Run::new(&options, &image(), &["sh", "-c", script]).says();
    let wanted = "eth0\nlo\nmtu 65520\ninet 172.17.0.2/24\ndefault via 172.17.0.1 dev eth0 \n172.17.0.2\tweb front\n\
        nameserver 10.0.2.2\n1\n";
    assert_eq!(said, wanted);
    let said =
        Run::new(&["--network", "none"], &image(), &["sh", "-c", "ls /sys/class/net; cat /etc/resolv.conf"]).says();
    assert_eq!(said, "lo\n");
}

/// Answers every question for an IPv4 address with 192.0.2.99, and others with nothing (RFC 1035, 4.1).
pub fn name_server(socket: UdpSocket) {
    let mut question = [0; 512];
    while let Ok((len, from)) = socket.recv_from(&mut question) {
        let asks_ipv4 = question[..len].ends_with(&[0, 1, 0, 1]);
        let mut answer = question[..len].to_vec();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        answer[6..8].copy_from_slice(&u16::from(asks_ipv4).to_be_bytes());
        if asks_ipv4 {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 99]);
        }
        socket.send_to(&answer, from).expect("answering");
    }
}

/// The host's resolver listens on loopback, as systemd's does: it is asked all the same.
#[test]
fn names_are_asked_of_the_hosts_name_server() {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 77), 53)).expect("port 53");
    thread::spawn(move || name_server(socket));
    let folder = tempfile::tempdir().expect("a folder");
    let resolv_conf = folder.path().join("resolv.conf");
    std::fs::write(&resolv_conf, "nameserver 127.0.0.77\nsearch lab.example\n").expect("a file");
    let script = "grep search /etc/resolv.conf; nslookup some.name.example | grep -o '192.0.2.99'";
    let run = Run::new(&[], &image(), &["sh", "-c", script]);
    let mut other = Command::new("unshare");
    other.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\""]).arg(&resolv_conf);
    other.arg(run.command.get_program()).args(run.command.get_args()).stdin(Stdio::null());
    for (name, value) in run.command.get_envs() {
        other.env(name, value.expect("a value"));
    }
    let said = Run { command: other, ..run }.says();
    assert_eq!(said, "search lab.example\n192.0.2.99\n");
}

#[test]
fn containers_of_a_vm_find_each_other_by_name() {
    uplink();
    let (user, image) = (User::new(), image());
    let says = |options: &[&str], script: &str| {
        user.says(&[&["run", "--network", "user", "--vm", "t"], options, &[&image, "sh", "-c", script]].concat())
    };
    says(&["-d", "--name", "db", "-p", "127.0.0.1:7127:80"], "while :; do echo from db | nc -l -p 5432; done");
    let script = "grep -v localhost /etc/hosts; until nc db 5432 </dev/null; do sleep 0.1; done";
    let said = says(&["--rm", "--name", "web", "--hostname", "front"], script);
    assert_eq!(said, "172.17.0.2\tdb\n172.17.0.3\tweb front\nfrom db\n");
    assert_eq!(user.says(&["exec", "db", "grep", "-v", "localhost", "/etc/hosts"]), "172.17.0.2\tdb\n");
    let alone =
        ["run", "--rm", "--network", "none", "--vm", "t", &image, "sh", "-c", "ls /sys/class/net; ping -c 1 db"];
    let (_, why) = user.refuses(&alone);
    assert!(why.contains("bad address 'db'"), "{why}");
    let (_, why) = user.refuses(&["run", "--network", "user", "--vm", "t", "-p", "127.0.0.1:7127:81", &image, "true"]);
    assert!(why.contains("port 7127 is container db's already"), "{why}");
    user.says(&["stop", "-t", "0", "db"]);
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7125)).expect("listening");
    let refused = |run: Run| {
        let output = run.output();
        assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
        let why = text(&output.stderr);
        assert_eq!(why.lines().count(), 1, "{why}");
        why
    };
    let why = refused(Run::new(&["-p", "127.0.0.1:7125:80"], &image(), &["true"]));
    assert!(why.contains("publish port 7125 of 127.0.0.1: another program uses it"), "{why}");
    assert!(passt("127.0.0.1/7125:7125").is_none());
    let mut run = Run::new(&[], &image(), &["true"]);
    run.command.env("PATH", "/none");
    let why = refused(run);
    assert!(why.contains("in the package passt") && why.contains("--network none"), "{why}");
    let why = refused(Run::new(&["--network", "none", "-p", "80:80"], &image(), &["true"]));
    assert!(why.contains("--network none"), "{why}");
}

#[test]
fn nothing_stays_of_a_killed_one() {
    let words = ["sh", "-c", "echo READY; sleep 1000"];
    let (_run, mut child) = Run::new(&["-p", "127.0.0.1:7126:80"], &image(), &words).ready();
    let running = passt("127.0.0.1/7126:7126").expect("passt runs");
    kill_process(Pid::from_child(&child), Signal::KILL).expect("killing it");
    child.wait().expect("an end");
    let until = std::time::Instant::now() + PATIENCE;
    while passt("127.0.0.1/7126:7126") == Some(running) {
        assert!(std::time::Instant::now() < until, "passt goes on");
        thread::sleep(std::time::Duration::from_millis(50));
    }
}
