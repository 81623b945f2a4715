//! iperf3 between host and guest, with checksums that are reckoned on one side and verified on the other, and with
//! checksums that are left to the other side.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::net::{guest_side, ip};
use crate::tap::{tap, tap_py};
use crate::vm::{Vm, guest};

const BYTES: u64 = 4 << 20;
/// Fewer: they are sent one by one, at 8 Mbit/s a stream, so that hardly any finds a full queue.
const DATAGRAM_BYTES: u64 = 1 << 20;

/// A counter of /proc/net/snmp: a line of names, then one of values.
fn counter(snmp: &str, protocol: &str, name: &str) -> u64 {
    let mut lines = snmp.lines().filter_map(|line| line.trim().strip_prefix(protocol)?.strip_prefix(": "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let place = names.split(' ').position(|word| word == name).expect("a counter of that name");
    values.split(' ').nth(place).and_then(|value| value.parse().ok()).expect("a number")
}

fn host_snmp() -> String {
    std::fs::read_to_string("/proc/net/snmp").expect("the host's counters")
}

/// Frames with TCP or UDP that come from the guest, by whose their checksum is.
struct Watch(Child);

impl Watch {
    fn start(tap: &str) -> Self {
        let mut command = Command::new("python3");
        command.arg(tap_py()).args(["watch", tap]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3");
        let mut ready = String::new();
        BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut ready).expect("a line");
        assert_eq!(ready, "READY\n");
        Self(child)
    }

    /// Left to the host, vouched for by the guest, to be verified by the host.
    fn ends(mut self) -> [u64; 3] {
        drop(self.0.stdin.take());
        let mut counts = String::new();
        self.0.stdout.take().expect("a pipe").read_to_string(&mut counts).expect("its counts");
        assert!(self.0.wait().expect("its end").success());
        ["left", "vouched", "verified"].map(|name| {
            let count = counts.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no {name} in {counts}"))
        })
    }
}

/// One run of iperf3 against the guest's server; what it tells at its end.
fn run(server: &str, words: &str) -> Value {
    let program = guest("iperf3/iperf3");
    let mut command = Command::new("timeout");
    command.arg("250").arg(program).args(["-4", "--json", "-c", server]).args(words.split_whitespace());
    let output = command.output().expect("iperf3");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "iperf3 {words}: {}\n{text}", output.status);
    serde_json::from_str::<Value>(&text).expect("JSON")["end"].take()
}

/// One and four streams, each way.
fn all_runs(server: &str) {
    for (streams, way) in [(1, ""), (1, "-R"), (4, ""), (4, "-R")] {
        let end = run(server, &format!("-n {BYTES} -P {streams} {way}"));
        assert_eq!(end["streams"].as_array().expect("streams").len(), streams, "{end}");
        // What is under way when the last byte is sent, on a slow machine most of it, is not in the other side's count.
        let (sent, received) = (&end["sum_sent"]["bytes"], &end["sum_received"]["bytes"]);
        assert!(sent.as_u64() >= Some(BYTES) && received.as_u64() > Some(BYTES / 16), "{way}: {end}");

        let end = run(server, &format!("-u -l 1400 -b 8M -n {DATAGRAM_BYTES} -P {streams} {way}"));
        assert_eq!(end["streams"].as_array().expect("streams").len(), streams, "{end}");
        // A queue may be full for a moment when the machine is busy.
        let (packets, lost) = (&end["sum"]["packets"], &end["sum"]["lost_packets"]);
        assert!(packets.as_u64() >= Some(DATAGRAM_BYTES / 1400) && lost.as_u64() < packets.as_u64().map(|all| all / 2));
    }
}

/// With `verified` each side reckons the checksums of what it sends, so that the other one verifies them; otherwise they
/// are left out on the way.
fn through(net: u8, more: &str, verified: bool) {
    let (tap_name, server, mac) =
        (format!("vmmtest{net}"), format!("10.9.{net}.2"), format!("02:00:00:00:09:{net:02x}"));
    let script = guest_side(net)
        + r"mount -t ext4 -o ro /dev/vda /mnt; /mnt/iperf3 -s -4 >/dev/null &
        until grep -q ':1451 .* 0A ' /proc/net/tcp; do usleep 100000; done
        echo READY; read go; cat /proc/net/snmp; echo COUNTED; read go; cat /proc/net/snmp";
    let disk = format!("{},ro", guest("iperf3/iperf3.ext4").display());
    let vm = Vm::tuned().args(["--disk", &disk, "--net", &format!("tap={tap_name},mac={mac}{more}")]);
    let vm = vm.append(if verified { "virtio_net.csum=0" } else { "virtio_net.csum=1" });
    let mut vm = vm.run(&script).pipe().start();
    vm.expect("READY");
    if verified {
        tap(&["checksums", &tap_name]);
    }
    ip(&format!("addr add 10.9.{net}.1/24 dev {tap_name}"));
    ip(&format!("link set {tap_name} up"));
    let before = host_snmp();
    let watch = Watch::start(&tap_name);
    all_runs(&server);
    let after = host_snmp();
    let [left, vouched, to_verify] = watch.ends();
    vm.send("\n");
    vm.expect("COUNTED");
    tap(&["lie", &tap_name, &mac, &server]);
    vm.send("\n");
    let ended = vm.ends(0);
    let (guest_after, guest_lied_to) = ended.console.split_once("COUNTED").expect("two times the counters");

    // Of both ways the acknowledgements and the datagrams are frames of the guest's.
    let frames = 4 * BYTES / 65536 + 2 * DATAGRAM_BYTES / 1400;
    assert!(
        if verified { to_verify } else { left } > frames,
        "{left} left, {vouched} vouched for, {to_verify} to verify"
    );
    if verified {
        assert_eq!((left, vouched), (0, 0));
    }
    for (protocol, counted, least) in
        [("Tcp", "InSegs", 4 * BYTES / 65536), ("Udp", "InDatagrams", DATAGRAM_BYTES / 1400)]
    {
        let count = |snmp: &str, name: &str| counter(snmp, protocol, name);
        assert!(count(&after, counted) - count(&before, counted) > least, "{protocol} of the host");
        assert!(count(guest_after, counted) > least, "{protocol} of the guest");
        assert_eq!(count(&after, "InCsumErrors"), count(&before, "InCsumErrors"), "{protocol} of the host");
        assert_eq!(count(guest_after, "InCsumErrors"), 0, "{protocol} of the guest");
    }
    // The guest does look: it finds the one that is wrong.
    assert_eq!(counter(guest_lied_to, "Udp", "InCsumErrors"), 1);
}

#[test]
fn every_checksum_is_verified() {
    through(51, "", true);
}

#[test]
fn checksums_are_left_to_the_other_side() {
    through(52, "", false);
}

#[test]
fn every_checksum_is_verified_past_the_host_s_kernel() {
    through(53, ",vhost", true);
}
