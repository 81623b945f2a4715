//! Network interfaces: every byte arrives, the guest is who it was told to be, and a host that fails does no harm.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread::{self, JoinHandle};

use crate::disk::{checksum, noise};
use crate::vm::{Vm, host};

/// Runs busybox' ip, which is there where the lab is.
pub fn ip(words: &str) {
    let words: Vec<_> = std::iter::once("ip").chain(words.split(' ')).collect();
    host("busybox", &words.iter().map(AsRef::as_ref).collect::<Vec<_>>());
}

/// Brings up the VM's end of 10.9.N.0/24.
pub fn guest_side(net: u8) -> String {
    format!("ip link set lo up; ip link set eth0 up; ip addr add 10.9.{net}.2/24 dev eth0\n")
}

pub fn md5(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), bytes).expect("writing it");
    checksum(file.path())
}

/// Sends `bytes` to the first caller.
pub fn sender(listener: TcpListener, bytes: Vec<u8>) -> JoinHandle<()> {
    thread::spawn(move || listener.accept().and_then(|(mut peer, _)| peer.write_all(&bytes)).expect("sending"))
}

/// Greets the first caller with one byte, reads so many from it, and hangs up. passt of March 2023 (Debian 12's) resets a
/// connection of the guest after 24 s if nothing was ever sent to the guest: it waits for an acknowledgement all along.
pub fn receiver(listener: TcpListener, len: usize) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = vec![0; len];
        let (mut peer, _) = listener.accept().expect("a caller");
        peer.write_all(b"!").expect("greeting");
        peer.read_exact(&mut bytes).expect("receiving");
        bytes
    })
}

const MEBIBYTES: usize = 8;

/// A VM on its own TAP.
fn exchanges(kernel: &str, net: u8, more: &str) {
    let options = format!("tap=vmmtest{net},mac=02:00:00:00:09:{net:02x}{more}");
    exchange(Vm::boot(kernel).args(["--net", &options]), net, more.strip_prefix(",mtu=").unwrap_or("1500"));
}

/// Both directions at once, by the device vmmtestN of the host.
pub fn exchange(vm: Vm, net: u8, mtu: &str) {
    let tap = format!("vmmtest{net}");
    let script = guest_side(net)
        + &format!(
            r"read go
            dd if=/dev/urandom of=/tmp/out bs=1M count={MEBIBYTES} 2>/dev/null
            nc 10.9.{net}.1 7001 </tmp/out >/dev/null & nc 10.9.{net}.1 7002 </dev/null >/tmp/in; wait
            echo out=$(md5sum </tmp/out | cut -d' ' -f1)
            echo in=$(md5sum </tmp/in | cut -d' ' -f1)
            cd /sys/class/net/eth0/statistics; echo lost=$(cat rx_length_errors rx_dropped rx_errors tx_errors | sort -u)
            echo mac=$(cat /sys/class/net/eth0/address) mtu $(cat /sys/class/net/eth0/mtu)"
        );
    let mut vm = vm.args(["--memory", "256M"]).run(&format!("echo READY\n{script}")).pipe().start();
    vm.expect("READY");
    ip(&format!("addr add 10.9.{net}.1/24 dev {tap}"));
    ip(&format!("link set {tap} up"));
    let listen = |port| TcpListener::bind((format!("10.9.{net}.1"), port)).expect("listening");
    let bytes = noise(MEBIBYTES << 20);
    let sum = md5(&bytes);
    let (to_us, to_guest) = (receiver(listen(7001), MEBIBYTES << 20), sender(listen(7002), bytes));
    vm.send("\n");
    let ended = vm.ends(0);
    to_guest.join().expect("all was sent");
    let received = to_us.join().expect("all was received");
    assert_eq!(ended.value("out"), md5(&received));
    assert_eq!(ended.value("in"), sum);
    assert_eq!(ended.value("lost"), "0", "{}", ended.console);
    assert_eq!(ended.value("mac"), format!("02:00:00:00:09:{net:02x} mtu {mtu}"));
}

#[test]
fn bytes_arrive_both_ways() {
    exchanges("tuned/vmlinux", 1, "");
}

#[test]
fn debian_12_takes_an_mtu() {
    exchanges("debian12/vmlinux", 2, ",mtu=1280");
}

#[test]
fn debian_13_talks_too() {
    exchanges("debian13/vmlinux", 3, "");
}

/// One direction after the other, so that what the guest counts on one side is data alone: large segments, which nobody
/// has cut into packets, and whose checksums nobody has reckoned.
fn leaves_segments_whole(net: u8, more: &str) {
    const MEBIBYTES: usize = 4;
    let tap = format!("vmmtest{net}");
    let script = guest_side(net)
        + &format!(
            r#"cd /sys/class/net/eth0; echo features=$(cat device/features); echo READY; read go
            count() {{ cat statistics/$1_bytes statistics/$1_packets; }}
            mean() {{ echo $1=$((($4 - $2) / ($5 - $3))); }}
            was=$(count rx); nc 10.9.{net}.1 7002 </dev/null | md5sum; mean rx $was $(count rx)
            dd if=/dev/urandom of=/tmp/out bs=1M count={MEBIBYTES} 2>/dev/null; md5sum /tmp/out
            httpd -p 80 -h /tmp; was=$(count tx); echo SERVING; read go; mean tx $was $(count tx)"#
        );
    let options = format!("tap={tap},mac=02:00:00:00:09:{net:02x}{more}");
    let mut vm = Vm::tuned().args(["--net", &options]).run(&script).pipe().start();
    vm.expect("READY");
    ip(&format!("addr add 10.9.{net}.1/24 dev {tap}"));
    ip(&format!("link set {tap} up"));
    let bytes = noise(MEBIBYTES << 20);
    let sum = md5(&bytes);
    let to_guest = sender(TcpListener::bind((format!("10.9.{net}.1"), 7002)).expect("listening"), bytes);
    vm.send("\n");
    to_guest.join().expect("all was sent");
    vm.expect("SERVING");
    // httpd hands its file over at once (sendfile); nc would write it by the KiB.
    let mut server = TcpStream::connect((format!("10.9.{net}.2"), 80)).expect("the guest's httpd");
    let mut answer = Vec::new();
    server.write_all(b"GET /out HTTP/1.0\r\n\r\n").and_then(|()| server.read_to_end(&mut answer)).expect("an answer");
    let body = answer.split_off(answer.len().saturating_sub(MEBIBYTES << 20));
    vm.send("\n");
    let ended = vm.ends(0);
    for sum in [sum, md5(&body)] {
        assert!(ended.console.contains(&sum), "no {sum}: {}", ended.console);
    }
    // VIRTIO_NET_F_CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MRG_RXBUF (virtio 1.2, 5.1.3).
    for bit in [0, 1, 7, 11, 15] {
        assert_eq!(ended.value("features").as_bytes()[bit], b'1', "feature {bit}: {}", ended.value("features"));
    }
    for way in ["rx", "tx"] {
        assert!(ended.number(way) > 3000, "{way}: {} bytes each", ended.number(way));
    }
}

#[test]
fn segments_are_left_whole() {
    leaves_segments_whole(11, "");
}

#[test]
fn segments_are_left_whole_by_the_host_s_kernel() {
    leaves_segments_whole(12, ",vhost");
}

/// Makes a TAP device that nobody, the user, may use, and that is there until it is removed.
pub fn lasting_tap(name: &str) {
    // TUNSETIFF with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR; TUNSETOWNER to nobody; TUNSETPERSIST (linux/if_tun.h).
    let make = "import fcntl, struct, sys; tun = open('/dev/net/tun', 'r+b', 0)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', sys.argv[1].encode(), 0x5002))
fcntl.ioctl(tun, 0x400454cc, 65534); fcntl.ioctl(tun, 0x400454cb, 1)";
    host("python3", &["-c", make, name].map(AsRef::as_ref));
}

/// The TAP is there before the VM and outlives it, as one that an administrator made for a user without rights.
#[test]
fn a_tap_of_somebody_s_own() {
    lasting_tap("vmmtest16");
    ip("addr add 10.9.16.1/24 dev vmmtest16");
    ip("link set vmmtest16 up");
    let script = guest_side(16) + "ping -c 3 10.9.16.1 | sed -n 's/.* \\([0-9]*\\) packets received.*/received=\\1/p'";
    for _ in 0..2 {
        let ended = Vm::tuned().nobody().args(["--net", "tap=vmmtest16"]).run(&script).start().ends(0);
        assert_eq!(ended.number("received"), 3, "{}", ended.console);
    }
    ip("link del vmmtest16");
}

#[test]
fn a_tap_that_is_taken_away() {
    let script = guest_side(4)
        + "echo READY; read go; for i in $(seq 600); do [ $(cat /sys/class/net/eth0/carrier) = 0 ] && break; usleep 100000; done
           echo carrier=$(cat /sys/class/net/eth0/carrier); ping -c 1 -w 1 10.9.4.1 >/dev/null; echo ALIVE";
    let mut vm = Vm::tuned().args(["--net", "tap=vmmtest4"]).run(&script).pipe().start();
    vm.expect("READY");
    ip("link set vmmtest4 up");
    ip("link del vmmtest4");
    vm.send("\n");
    let ended = vm.ends(0);
    assert_eq!(ended.value("carrier"), "0");
    assert!(ended.console.contains("ALIVE"), "{}", ended.console);
    assert!(ended.errors.contains("the host's end of a network interface is gone"), "{}", ended.errors);
}

#[test]
fn two_vms_on_a_bridge() {
    let script = |own: u8, other: u8| {
        format!(
            "ip link set eth0 up; ip addr add 10.9.5.{own}/24 dev eth0; mkdir /tmp/www; cd /tmp/www
             dd if=/dev/urandom of=file bs=1M count=4 2>/dev/null; httpd -p 80 -h /tmp/www; echo READY; read go
             for i in $(seq 60); do ping -c 1 -w 1 10.9.5.{other} >/dev/null && break; done
             echo own=$(md5sum <file | cut -d' ' -f1); wget -q -O /tmp/got http://10.9.5.{other}/file
             echo got=$(md5sum </tmp/got | cut -d' ' -f1); echo DONE; read go"
        )
    };
    let start = |own: u8, other: u8| {
        let options = format!("tap=vmmtest5{own},mac=02:00:00:00:05:{own:02x}");
        let mut vm = Vm::tuned().args(["--net", &options]).run(&script(own, other)).pipe().start();
        vm.expect("READY");
        vm
    };
    ip("link add vmmbridge5 type bridge");
    ip("link set vmmbridge5 up");
    let mut vms = [start(1, 2), start(2, 1)];
    for (own, vm) in (1..).zip(&mut vms) {
        ip(&format!("link set vmmtest5{own} master vmmbridge5"));
        ip(&format!("link set vmmtest5{own} up"));
        vm.send("\n");
    }
    for vm in &mut vms {
        vm.expect("DONE");
    }
    let [first, second] = vms.map(|mut vm| {
        vm.send("\n");
        vm.ends(0)
    });
    assert_eq!((first.value("got"), second.value("got")), (second.value("own"), first.value("own")));
    ip("link del vmmbridge5");
}

#[test]
fn a_tap_in_use_is_refused() {
    let mut first = Vm::tuned().args(["--net", "tap=vmmtest6"]).run("echo READY; read go").pipe().start();
    first.expect("READY");
    let second = Vm::tuned().args(["--net", "tap=vmmtest6"]).run("echo NO").start().ends(1);
    assert!(second.why().contains("open TAP device vmmtest6 for 'eth0': another process uses it"), "{}", second.why());
    first.send("\n");
    first.ends(0);
}

/// Who is heard is the guest's choice, by the control queue; a frame for someone else comes only if it asks for all.
#[test]
fn the_guest_chooses_its_address_and_what_it_hears() {
    const FRAMES: u64 = 50;
    let script = guest_side(7).replace("ip link set eth0 up", "ip link set eth0 address 02:00:00:00:07:aa up")
        + "rx() { cat /sys/class/net/eth0/statistics/rx_packets; }
           answer() { for i in $(seq 60); do ping -c 1 -w 1 10.9.7.1 >/dev/null && break; done; }
           echo READY; read go; answer; a=$(rx); echo QUIET; read go; answer; echo filtered=$(($(rx) - a))
           ip link set eth0 promisc on; a=$(rx); echo LOUD; read go; answer; echo heard=$(($(rx) - a))
           ip link set eth0 promisc off; a=$(rx); echo QUIET; read go; answer; echo again=$(($(rx) - a))
           echo mac=$(cat /sys/class/net/eth0/address)";
    let options = "tap=vmmtest7,mac=02:00:00:00:07:01";
    let mut vm = Vm::tuned().args(["--net", options]).run(&script).pipe().start();
    vm.expect("READY");
    ip("addr add 10.9.7.1/24 dev vmmtest7");
    ip("link set vmmtest7 up");
    // The address that the interface was given first is nobody's now.
    host("busybox", &["arp", "-i", "vmmtest7", "-s", "10.9.7.9", "02:00:00:00:07:01"].map(AsRef::as_ref));
    let socket = UdpSocket::bind("10.9.7.1:0").expect("a socket");
    for sign in ["QUIET", "LOUD", "QUIET"] {
        vm.send("\n");
        vm.expect(sign);
        for _ in 0..FRAMES {
            socket.send_to(b"for someone else", "10.9.7.9:9").expect("sending");
        }
    }
    vm.send("\n");
    let ended = vm.ends(0);
    assert_eq!(ended.value("mac"), "02:00:00:00:07:aa");
    // Besides there are the answers to ping, and what the host says unasked.
    assert!(ended.number("heard") >= FRAMES, "{}", ended.number("heard"));
    for name in ["filtered", "again"] {
        assert!((1..FRAMES).contains(&ended.number(name)), "{name}={}", ended.number(name));
    }
}

/// Each vCPU sends by a pair of its own, and what comes back finds it. Then a second driver takes over.
fn pairs(net: u8, more: &str) {
    let script = guest_side(net)
        + &format!(
            r"echo queues=$(ls -d /sys/class/net/eth0/queues/[rt]x-* | wc -l); echo READY; read go
            dd if=/dev/urandom of=/tmp/out bs=64k count=16 2>/dev/null
            for c in 0 1; do taskset $((1 << c)) nc 10.9.{net}.1 700$c </tmp/out >/tmp/in$c; done
            echo out=$(md5sum </tmp/out | cut -d' ' -f1)
            echo in=$(md5sum </tmp/in0 | cut -d' ' -f1) $(md5sum </tmp/in1 | cut -d' ' -f1)
            cd /sys/bus/virtio/drivers/virtio_net; for d in virtio*; do echo $d > unbind; echo $d > bind; done
            {}
            ping -c 3 -s 1400 10.9.{net}.1 | sed -n 's/.* \([0-9]*\) packets received.*/again=\1/p'",
            guest_side(net)
        );
    let tap = format!("vmmtest{net}");
    let options = format!("tap={tap},mac=02:00:00:00:09:{net:02x},queue-pairs=2{more}");
    let vm = Vm::tuned().args(["--net", &options, "--cpus", "2"]);
    let mut vm = vm.run(&script).pipe().start();
    vm.expect("READY");
    assert_eq!(has_kernel_thread(vm.id()), more == ",vhost");
    ip(&format!("addr add 10.9.{net}.1/24 dev {tap}"));
    ip(&format!("link set {tap} up"));
    // Sends back what it gets, when it has all of it.
    let echoes: Vec<JoinHandle<Vec<u8>>> = [7000, 7001]
        .into_iter()
        .map(|port| {
            let listener = TcpListener::bind((format!("10.9.{net}.1"), port)).expect("listening");
            thread::spawn(move || {
                let mut bytes = vec![0; 1 << 20];
                let (mut peer, _) = listener.accept().expect("a caller");
                peer.read_exact(&mut bytes).and_then(|()| peer.write_all(&bytes)).expect("an echo");
                bytes
            })
        })
        .collect();
    vm.send("\n");
    let sums: Vec<String> = echoes.into_iter().map(|echo| md5(&echo.join().expect("an echo"))).collect();
    let ended = vm.ends(0);
    assert_eq!(ended.number("queues"), 4);
    assert_eq!(ended.value("in"), sums.join(" "));
    assert_eq!(ended.value("out"), sums[0]);
    assert_eq!(ended.number("again"), 3);
}

/// Whether the host's kernel has a thread of vhost for this process.
fn has_kernel_thread(owner: u32) -> bool {
    let name = format!("vhost-{owner}");
    let threads = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let names = threads.filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok());
    names.into_iter().any(|comm| comm.trim() == name)
}

#[test]
fn each_cpu_has_its_pair() {
    pairs(8, "");
}

#[test]
fn the_host_s_kernel_serves_pairs() {
    pairs(14, ",vhost");
}

#[test]
fn the_host_s_kernel_moves_the_frames() {
    exchanges("tuned/vmlinux", 15, ",vhost");
}

#[test]
fn debian_13_is_served_by_the_host_s_kernel() {
    exchanges("debian13/vmlinux", 13, ",vhost");
}

/// 3 MiB each way, of which 1 are the burst and 1 is in the bucket: the other one waits a second.
#[test]
fn a_limited_interface_takes_its_time() {
    let script = guest_side(9)
        + r#"echo READY; read go; dd if=/dev/zero of=/tmp/out bs=1M count=3 2>/dev/null; touch /tmp/none
        for p in "1 out" "2 none"; do
            set -- $p; read up idle < /proc/uptime; nc 10.9.9.1 700$1 </tmp/$2 >/tmp/in; read now idle < /proc/uptime
            awk "BEGIN { print \"ms700$1=\" int(($now - $up) * 1000) }"
        done; echo in=$(wc -c < /tmp/in)"#;
    let limit = |way| {
        let bucket = r#"{"size":1048576,"refill_time":1000,"one_time_burst":1048576}"#;
        format!(r#"network-interfaces[0].{way}_rate_limiter={{"bandwidth":{bucket}}}"#)
    };
    let vm =
        Vm::tuned().args(["--net", "tap=vmmtest9", "--set", &limit("tx"), "--set", &limit("rx"), "--memory", "256M"]);
    let mut vm = vm.run(&script).pipe().start();
    vm.expect("READY");
    ip("addr add 10.9.9.1/24 dev vmmtest9");
    ip("link set vmmtest9 up");
    let listen = |port| TcpListener::bind(("10.9.9.1", port)).expect("listening");
    let (to_us, to_guest) = (receiver(listen(7001), 3 << 20), sender(listen(7002), vec![1; 3 << 20]));
    vm.send("\n");
    let ended = vm.ends(0);
    to_guest.join().expect("all was sent");
    to_us.join().expect("all was received");
    assert_eq!(ended.number("in"), 3 << 20);
    for name in ["ms7001", "ms7002"] {
        assert!(ended.number(name) >= 900, "{name}={}", ended.number(name));
    }
}

/// A TAP device of several queues belongs to an interface of several pairs.
#[test]
fn a_tap_of_another_kind_is_refused() {
    let first = Vm::tuned().args(["--net", "tap=vmmtest10,queue-pairs=2"]).run("echo READY; read go").pipe();
    let mut first = first.start();
    first.expect("READY");
    let second = Vm::tuned().args(["--net", "tap=vmmtest10"]).run("echo NO").start().ends(1);
    assert!(second.why().contains("one pair does without"), "{}", second.why());
    first.send("\n");
    first.ends(0);
}
