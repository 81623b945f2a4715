//! UDP segmentation offload: many datagrams cross the device as one frame, where the host's TAP has it (Linux 6.2) and the
//! guest's driver knows it (6.2, too).

use std::fs;
use std::path::Path;

use crate::container_network::perl;
use crate::metrics::{lines, sum};
use crate::net::{guest_side, ip};
use crate::tap::tap;
use crate::vm::{Vm, host};

/// Bits of virtio 1.2's features (5.1.3): GUEST_USO4, GUEST_USO6 and HOST_USO.
const FEATURES: std::ops::RangeInclusive<usize> = 54..=56;
const DATAGRAMS: u64 = 30;

/// Has the driver send so, which Linux does not unasked (`ethtool -K eth0 tx-udp-segmentation on`: SIOCETHTOOL with
/// ETHTOOL_SFEATURES, NETIF_F_GSO_UDP_L4 is bit 33). Sends what it has heard back in one call, to be cut by who can: 17 is SOL_UDP, 103 UDP_SEGMENT (linux/udp.h).
const ECHO: &str = r#"use Socket; $| = 1; socket(U, PF_INET, SOCK_DGRAM, 0) or die $!;
    setsockopt(U, SOL_SOCKET, SO_RCVBUF, 1 << 20) or die $!;
    $on = pack "L*", 0x3b, 2, 0, 0, 2, 2; $request = pack "a16 P x16", "eth0", $on;
    defined ioctl(U, 0x8946, $request) or die "ethtool: $!";
    bind(U, sockaddr_in(9000, INADDR_ANY)) or die $!; print "READY\n";
    for (1..30) { $from = recv(U, $one, 2000, 0); $all .= $one }
    setsockopt(U, 17, 103, 1400) or die $!; send(U, $all, 0, $from) == length $all or die $!;
    print "ECHOED\n"; <STDIN>"#;

/// Whether the kernel of this host gives a TAP UDP segmentation.
fn host_has_it() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split(['.', '-']).filter_map(|part| part.trim().parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(2))
}

/// A disk with Perl, and what it is to do.
fn disk(folder: &Path) -> String {
    let (root, image) = (folder.join("root"), folder.join("perl.ext4"));
    perl(&root);
    fs::write(root.join("echo.pl"), ECHO).expect("a program");
    let sh = "mke2fs -q -t ext4 -d \"$0\" \"$1\" 64M";
    host("sh", &["-c".as_ref(), sh.as_ref(), root.as_os_str(), image.as_os_str()]);
    format!("{},ro", image.display())
}

#[test]
fn datagrams_cross_in_one_frame_where_both_kernels_can() {
    let has_it = host_has_it();
    let folder = tempfile::tempdir().expect("a folder");
    let metrics = folder.path().join("metrics");
    let script = guest_side(57)
        + "mkdir -p /mnt; mount -t ext4 -o ro /dev/vda /mnt; echo features=$(cat /sys/class/net/eth0/device/features)
        chroot /mnt /usr/bin/perl /echo.pl";
    let vm =
        Vm::boot("debian13/vmlinux").args(["--disk", &disk(folder.path()), "--net", "tap=vmmtest57", "--metrics-path"]);
    let mut vm = vm.args([&metrics]).run(&script).pipe().start();
    vm.expect("READY");
    ip("addr add 10.9.57.1/24 dev vmmtest57");
    ip("link set vmmtest57 up");
    tap(&["segments", "10.9.57.2", "9000"]);
    vm.expect("ECHOED");
    vm.send("\n");
    let ended = vm.ends(0);
    let features = ended.value("features");
    assert!(features.as_bytes()[FEATURES].iter().all(|bit| *bit == if has_it { b'1' } else { b'0' }), "{features}");
    for counter in ["rx_packets_count", "tx_packets_count"] {
        let frames = sum(&lines(&metrics), "net", counter);
        assert_eq!(frames < DATAGRAMS, has_it, "{counter}: {frames} frames for {DATAGRAMS} datagrams");
    }
}
