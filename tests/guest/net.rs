//! Network interfaces: every byte arrives, the guest is who it was told to be, and a host that fails does no harm.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::{self, JoinHandle};

use crate::disk::{checksum, noise};
use crate::vm::{Vm, host};

/// Runs busybox' ip, which is there where the lab is.
fn ip(words: &str) {
    let words: Vec<_> = std::iter::once("ip").chain(words.split(' ')).collect();
    host("busybox", &words.iter().map(AsRef::as_ref).collect::<Vec<_>>());
}

/// Brings up the VM's end of 10.9.N.0/24.
fn guest_side(net: u8) -> String {
    format!("ip link set lo up; ip link set eth0 up; ip addr add 10.9.{net}.2/24 dev eth0\n")
}

fn md5(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), bytes).expect("writing it");
    checksum(file.path())
}

/// Sends `bytes` to the first caller.
fn sender(listener: TcpListener, bytes: Vec<u8>) -> JoinHandle<()> {
    thread::spawn(move || listener.accept().and_then(|(mut peer, _)| peer.write_all(&bytes)).expect("sending"))
}

/// Reads so many bytes from the first caller and hangs up.
fn receiver(listener: TcpListener, len: usize) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = vec![0; len];
        listener.accept().and_then(|(mut peer, _)| peer.read_exact(&mut bytes)).expect("receiving");
        bytes
    })
}

const MEBIBYTES: usize = 8;

/// Both directions at once, in a VM on its own TAP.
fn exchanges(kernel: &str, net: u8, more: &str) {
    let tap = format!("vmmtest{net}");
    let script = guest_side(net)
        + &format!(
            r"read go
            dd if=/dev/urandom of=/tmp/out bs=1M count={MEBIBYTES} 2>/dev/null
            nc 10.9.{net}.1 7001 </tmp/out >/dev/null & nc 10.9.{net}.1 7002 </dev/null >/tmp/in; wait
            echo out=$(md5sum </tmp/out | cut -d' ' -f1)
            echo in=$(md5sum </tmp/in | cut -d' ' -f1)
            echo mac=$(cat /sys/class/net/eth0/address) mtu $(cat /sys/class/net/eth0/mtu)"
        );
    let options = format!("tap={tap},mac=02:00:00:00:09:{net:02x}{more}");
    let vm = Vm::boot(kernel).args(["--net", &options, "--memory", "256M"]);
    let mut vm = vm.run(&format!("echo READY\n{script}")).pipe().start();
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
    let mtu = more.strip_prefix(",mtu=").unwrap_or("1500");
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

/// The TAP is there before the VM and outlives it, as one that an administrator made.
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
            "ip link set eth0 up; ip addr add 10.9.5.{own}/24 dev eth0; echo READY; read go
             for i in $(seq 60); do ping -c 1 -w 1 10.9.5.{other} >/dev/null && break; done
             ping -c 5 -s 1400 10.9.5.{other} | sed -n 's/.* \\([0-9]*\\) packets received.*/received=\\1/p'; read go"
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
        vm.expect("received=5");
    }
    for mut vm in vms {
        vm.send("\n");
        vm.ends(0);
    }
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
