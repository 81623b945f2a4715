//! User-mode networking: no root, no TAP device; passt carries the guest's connections, and ends when it should.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::Once;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::disk::noise;
use crate::net::{md5, receiver, sender};
use crate::vm::{PATIENCE, Vm, copy_of, host};

const BYTES: usize = 2 << 20;

/// A host without a way to elsewhere, as the lab is one, gets one that leads nowhere: passt wants to see it.
pub fn uplink() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let routes = fs::read_to_string("/proc/net/route").expect("routes");
        if routes.lines().any(|line| line.split_whitespace().nth(1) == Some("00000000")) {
            return;
        }
        for line in [
            "link add vmmuplink type dummy",
            "addr add 198.51.100.2/24 dev vmmuplink",
            "link set vmmuplink up",
            "route add default via 198.51.100.1",
        ] {
            let words: Vec<_> = std::iter::once("ip").chain(line.split(' ')).map(AsRef::as_ref).collect();
            host("busybox", &words);
        }
    });
}

/// A VM with such a network, run by nobody.
fn vm(options: &str) -> Vm {
    uplink();
    Vm::tuned().nobody().args(["--net", &format!("user{options}")])
}

/// Asks for an address; `$router` is the host's name then.
pub const DHCP: &str = r#"ip link set lo up; ip link set eth0 up
printf '%s\n' '#!/bin/sh' '[ $1 = bound ] || exit 0' 'ip addr add $ip/$mask dev $interface' \
    'ip route add default via $router' 'echo router=$router >/tmp/lease' >/tmp/bound; chmod +x /tmp/bound
udhcpc -i eth0 -s /tmp/bound -n -q -t 30 -T 1 >/dev/null 2>&1; . /tmp/lease
"#;

/// The passt with this among its arguments.
pub fn passt(argument: &str) -> Option<Pid> {
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)).find(|pid| {
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.next().is_some_and(|name| name.ends_with(b"passt")) && words.any(|word| word == argument.as_bytes())
    })
}

/// Waits until there is no such passt.
fn ended(argument: &str) {
    let until = Instant::now() + PATIENCE;
    while passt(argument).is_some() {
        assert!(Instant::now() < until, "passt {argument} goes on");
        sleep(Duration::from_millis(50));
    }
}

/// Each connection carries bytes one way, and nobody waits for its end: what passt makes of half-closed connections is its
/// own affair.
#[test]
fn the_guest_reaches_the_host_and_is_reached() {
    let script = DHCP.to_owned()
        + r"mkfifo /tmp/open; exec 3<>/tmp/open
        nc $router 7101 <&3 >/tmp/in1; echo in1=$(md5sum </tmp/in1 | cut -d' ' -f1); nc $router 7102 </tmp/in1 >/dev/null
        nc -l -p 80 <&3 >/tmp/in2 &
        until cat /proc/net/tcp* | grep -q :0050.*:0000.0A; do usleep 100000; done
        echo READY; until [ $(wc -c </tmp/in2) -ge 2097152 ]; do usleep 100000; done
        echo in2=$(md5sum </tmp/in2 | cut -d' ' -f1)";
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("listening");
    let bytes = noise(BYTES);
    let (to_us, to_guest) = (receiver(listen(7102), BYTES), sender(listen(7101), bytes.clone()));
    let mut vm = vm(",publish=127.0.0.1:7103:80").run(&script).start();
    vm.expect("READY");
    let mut published = TcpStream::connect((Ipv4Addr::LOCALHOST, 7103)).expect("the published port");
    published.write_all(&bytes).expect("sending");
    let vm = vm.ends(0);
    to_guest.join().expect("all was sent");
    assert_eq!(md5(&to_us.join().expect("all was received")), md5(&bytes));
    assert_eq!((vm.value("in1"), vm.value("in2")), (md5(&bytes).as_str(), md5(&bytes).as_str()));
    ended("127.0.0.1/7103:80");
}

/// A datagram to a published port is answered, and so is a client that closed its half: Debian's perl is the server.
#[test]
fn datagrams_and_half_closed_connections_are_answered() {
    let folder = tempfile::tempdir().expect("a directory");
    let script = DHCP.to_owned()
        + r#"mount -o ro /dev/vda /mnt; mount -t devtmpfs dev /mnt/dev
        chroot /mnt perl -MSocket -e '$| = 1;
            socket(U, PF_INET, SOCK_DGRAM, 0) && bind(U, sockaddr_in(53, INADDR_ANY)) or die "udp: $!";
            socket(T, PF_INET, SOCK_STREAM, 0) && bind(T, sockaddr_in(80, INADDR_ANY)) && listen(T, 5) or die "tcp: $!";
            print "READY\n";
            $from = recv(U, $heard, 2000, 0); send(U, "heard $heard", 0, $from);
            accept(C, T); { local $/; $all = <C>; } print C length($all), " bytes"; close C;'"#;
    let disk = copy_of("debian12.ext4", folder.path());
    let vm = vm(",publish=127.0.0.1:7110:53/udp,publish=127.0.0.1:7111:80/tcp");
    let mut vm = vm.args(["--disk".into(), format!("{},ro", disk.display())]).run(&script).start();
    vm.expect("READY");

    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    socket.send_to(b"a datagram", (Ipv4Addr::LOCALHOST, 7110)).expect("sending");
    let mut bytes = [0; 100];
    let len = socket.recv(&mut bytes).expect("an answer");
    assert_eq!(String::from_utf8_lossy(&bytes[..len]), "heard a datagram");

    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 7111)).expect("the published port");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream.write_all(&noise(300_000)).expect("sending");
    stream.shutdown(Shutdown::Write).expect("half a close");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer, "300000 bytes");
    vm.ends(0);
}

#[test]
fn the_kernel_configures_itself() {
    let script = "echo mtu=$(cat /sys/class/net/eth0/mtu) dhcp=$(grep -c '^#PROTO: DHCP' /proc/net/pnp)
        echo mac=$(cat /sys/class/net/eth0/address)
        router=$(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'); echo hello | nc $router 7104 >/dev/null";
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7104)).expect("listening");
    let heard = receiver(listener, 6);
    uplink();
    // This kernel alone has its network, and DHCP, built in.
    let vm = Vm::only("tuned/vmlinux").nobody().args(["--net", "user,mtu=1400,mac=02:00:00:00:71:04"]);
    let vm = vm.append("ip=dhcp").run(script).start().ends(0);
    assert_eq!(vm.value("mtu"), "1400 dhcp=1");
    assert_eq!(vm.value("mac"), "02:00:00:00:71:04");
    assert_eq!(heard.join().expect("a caller"), b"hello\n");
}

#[test]
fn a_passt_that_dies() {
    let script = "ip link set eth0 up; echo READY; read go
        for i in $(seq 600); do [ $(cat /sys/class/net/eth0/carrier) = 0 ] && break; usleep 100000; done
        echo carrier=$(cat /sys/class/net/eth0/carrier)
        ip addr add 10.9.0.2/24 dev eth0; ping -c 1 -w 1 10.9.0.1 >/dev/null; echo ALIVE";
    let mut vm = vm(",publish=127.0.0.1:7105:80/tcp").run(script).pipe().start();
    vm.expect("READY");
    kill_process(passt("127.0.0.1/7105:80").expect("passt runs"), Signal::KILL).expect("killing it");
    vm.send("\n");
    let ended = vm.ends(0);
    assert_eq!(ended.value("carrier"), "0");
    assert!(ended.console.contains("ALIVE"), "{}", ended.console);
    assert_eq!(ended.errors.matches("the host's end of a network interface is gone").count(), 1, "{}", ended.errors);
}

/// What the guest sends waits; the VM ends all the same.
#[test]
fn a_passt_that_stands_still() {
    let script = DHCP.to_owned()
        + "echo READY; read go; for i in 1 2 3; do ping -c 30 -i 0.01 -s 30000 -w 2 $router >/dev/null; done; echo SENT";
    let mut vm = vm(",publish=127.0.0.1:7106:80/tcp").run(&script).pipe().start();
    vm.expect("READY");
    let pid = passt("127.0.0.1/7106:80").expect("passt runs");
    kill_process(pid, Signal::STOP).expect("stopping it");
    vm.send("\n");
    vm.expect("SENT");
    vm.ends(0);
    kill_process(pid, Signal::CONT).expect("letting it go on");
    ended("127.0.0.1/7106:80");
}

#[test]
fn passt_ends_with_the_monitor() {
    let mut vm = vm(",publish=127.0.0.1:7107:80/tcp").run("echo READY; read go").pipe().start();
    vm.expect("READY");
    assert!(passt("127.0.0.1/7107:80").is_some());
    vm.signal(Signal::KILL);
    ended("127.0.0.1/7107:80");
}

#[test]
fn a_published_port_in_use_is_refused() {
    let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7108)).expect("listening");
    for (port, why) in [
        ("7108:80", "publish port 7108: another program uses it"),
        ("80:80", "publish port 80: no permission (ports below net.ipv4.ip_unprivileged_port_start"),
        ("203.0.113.9:7109:80", "publish port 7109 of 203.0.113.9: this host has no such address"),
    ] {
        let ended = vm(&format!(",publish={port}")).run("echo NO").start().ends(1);
        assert!(ended.why().contains(&format!("connect 'eth0' by passt: {why}")), "{}", ended.why());
    }
}
