//! The device over a socket of frames: no root, no TAP.

#![allow(unsafe_code)] // socketpair(2)

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::*;
use crate::testing::{Buffer, PATIENCE, RAM, Rig};
use crate::virtio::transport::RING_FEATURES;

const MRG: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
/// What belongs to the control queue of one pair.
const CONTROL: u64 = 1 << VIRTIO_NET_F_CTRL_VQ
    | 1 << VIRTIO_NET_F_CTRL_RX
    | 1 << VIRTIO_NET_F_CTRL_RX_EXTRA
    | 1 << VIRTIO_NET_F_CTRL_VLAN
    | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR;

fn rig_with(config: NetConfig) -> (Rig, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = NetConfig { iface_id: "eth0".into(), host_fd: Some(ours.as_raw_fd()), ..config };
    (Rig::new(Box::new(Net::open(&config).unwrap())), theirs)
}

fn rig(features: u64) -> (Rig, UnixDatagram) {
    let (mut rig, host) = rig_with(NetConfig::default());
    rig.drive(RING_FEATURES | features);
    (rig, host)
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

fn received(host: &UnixDatagram) -> Vec<u8> {
    let mut frame = vec![0; 100_000];
    let len = host.recv(&mut frame).expect("a frame");
    frame.truncate(len);
    frame
}

/// Header and frame that arrived in `buffers`, by the length that was reported.
fn delivered(rig: &mut Rig, buffers: &[Buffer], len: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = buffers.iter().flat_map(|buffer| rig.bytes(*buffer)).collect();
    bytes.truncate(len as usize);
    bytes
}

#[test]
fn says_what_it_is() {
    let config = NetConfig { guest_mac: Some("02:00:00:00:00:07".into()), mtu: Some(9000), ..NetConfig::default() };
    let (mut rig, _host) = rig_with(config);
    assert_eq!(rig.config(0, 12), [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0x28, 0x23]);
    let offered = rig.offered() & !RING_FEATURES;
    assert_eq!(offered, MRG | CONTROL | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MTU);
}

#[test]
fn frames_of_any_shape_leave() {
    let (mut rig, host) = rig(0);
    for len in [1, 60, 1514, 65_000] {
        rig.free_all();
        let frame = frame(len);
        let bytes = [&[0; HEADER][..], &frame].concat();
        let (first, rest) = bytes.split_at(5);
        let buffers = [rig.readable(first), rig.readable(rest)];
        assert_eq!(rig.request(1, &buffers), 0);
        assert_eq!(received(&host), frame, "{len}");
    }
}

#[test]
fn what_is_no_frame_is_dropped() {
    let (mut rig, host) = rig(0);
    let short = rig.readable(&[0; HEADER]);
    rig.request(1, &[short]);
    rig.request(1, &[Buffer { addr: 0x50000, len: 100_000, writable: false }]);
    rig.request(1, &[Buffer { addr: RAM - 10, len: 100, writable: false }]);
    let nothing = rig.writable(100);
    rig.request(1, &[nothing]);
    assert_eq!(rig.transport().worker().counters().failed.load(Ordering::Relaxed), 4);
    let good = rig.readable(&[7; HEADER + 60]);
    rig.request(1, &[good]);
    assert_eq!(received(&host), [7; 60]);
    assert!(!rig.needs_reset());
}

#[test]
fn a_frame_arrives_in_one_buffer() {
    for features in [0, MRG] {
        let (mut rig, host) = rig(features);
        let buffers = [rig.writable(12), rig.writable(1600)];
        let head = rig.post(0, &buffers);
        host.send(&frame(1000)).unwrap();
        assert_eq!(rig.wait_used(0), (head, 1012));
        let bytes = delivered(&mut rig, &buffers, 1012);
        assert_eq!(bytes[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "one buffer");
        assert_eq!(bytes[12..], frame(1000));
    }
}

#[test]
fn a_long_frame_takes_several_buffers() {
    let (mut rig, host) = rig(MRG);
    let buffers: Vec<Buffer> = (0..5).map(|_| rig.writable(500)).collect();
    let heads: Vec<u16> = buffers.iter().map(|buffer| rig.post(0, &[*buffer])).collect();
    host.send(&frame(1988)).unwrap();
    for head in &heads[..4] {
        assert_eq!(rig.wait_used(0), (*head, 500));
    }
    let bytes = delivered(&mut rig, &buffers[..4], 2000);
    assert_eq!((bytes[10], bytes[11]), (4, 0));
    assert_eq!(bytes[12..], frame(1988));
    host.send(&frame(60)).unwrap();
    assert_eq!(rig.wait_used(0), (heads[4], 72));
}

#[test]
fn a_frame_waits_for_buffers_and_none_is_lost() {
    let (mut rig, host) = rig(MRG);
    let few = rig.writable(600);
    let head = rig.post(0, &[few]);
    for len in [1500, 61] {
        host.send(&frame(len)).unwrap();
    }
    rig.settle();
    assert!(rig.take_used(0).is_none(), "a frame is given whole");
    let buffers = [rig.writable(1600), rig.writable(1600)];
    let heads = buffers.map(|buffer| rig.post(0, &[buffer]));
    rig.kick(0);
    assert_eq!([rig.wait_used(0), rig.wait_used(0)], [(head, 600), (heads[0], 912)]);
    assert_eq!(rig.wait_used(0), (heads[1], 73));
    assert_eq!(delivered(&mut rig, &buffers[1..], 73)[12..], frame(61));
}

/// A frame that waits outlives the pause in which another queue goes, and so do the buffers that it held.
#[test]
fn a_queue_taken_away_meanwhile_comes_back_whole() {
    let (mut rig, host) = rig(MRG);
    let few = rig.writable(600);
    let head = rig.post(0, &[few]);
    host.send(&frame(1500)).unwrap();
    rig.settle();
    // Another queue is switched off: the worker stops and starts again.
    rig.write(crate::virtio::registers::offset::QUEUE_SEL, 1);
    rig.write(crate::virtio::registers::offset::QUEUE_READY, 0);
    let more = rig.writable(1000);
    let second = rig.post(0, &[more]);
    rig.kick(0);
    assert_eq!([rig.wait_used(0), rig.wait_used(0)], [(head, 600), (second, 912)]);
    assert_eq!(delivered(&mut rig, &[few, more], 1512)[12..], frame(1500));
}

#[test]
fn a_frame_that_fits_no_buffer_is_dropped() {
    let (mut rig, host) = rig(0);
    let buffer = rig.writable(100);
    let head = rig.post(0, &[buffer]);
    host.send(&frame(1500)).unwrap();
    host.send(&frame(60)).unwrap();
    assert_eq!(rig.wait_used(0), (head, 72));
    assert_eq!(rig.transport().worker().counters().failed.load(Ordering::Relaxed), 1);
}

#[test]
fn a_buffer_without_room_breaks_it() {
    let (mut rig, host) = rig(MRG);
    let buffer = rig.writable(12);
    rig.post(0, &[buffer]);
    host.send(&frame(60)).unwrap();
    rig.wait_interrupt();
    assert!(rig.needs_reset());
}

#[test]
fn many_frames_both_ways() {
    let (mut rig, host) = rig(MRG);
    let receive: Vec<Buffer> = (0..100).map(|_| rig.writable(100)).collect();
    for buffer in &receive {
        rig.post(0, &[*buffer]);
    }
    for number in 0..100_u8 {
        // The socket's queue is short; the device empties it.
        while host.send(&[number; 60]).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let out = rig.readable(&[number; HEADER + 60]);
        rig.request(1, &[out]);
        assert_eq!(received(&host), [number; 60]);
    }
    for number in 0..100_u8 {
        assert_eq!(rig.wait_used(0).1, 72);
        assert_eq!(rig.bytes(receive[usize::from(number)])[12..72], [number; 60]);
    }
}

/// An empty datagram is no frame; the end of a connection takes the link down, and costs nothing after that.
#[test]
fn nothing_is_no_frame() {
    let (mut rig, host) = rig(MRG);
    let buffer = rig.writable(100);
    rig.post(0, &[buffer]);
    host.send(&[]).unwrap();
    host.send(&frame(60)).unwrap();
    assert_eq!(rig.wait_used(0).1, 72);
    assert_eq!(rig.transport().worker().counters().failed.load(Ordering::Relaxed), 1);

    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: socketpair writes two descriptors, for which there is room; they are owned right away.
    let ends = unsafe {
        assert_eq!(libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()), 0);
        ends.map(|fd| <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd))
    };
    let [ours, theirs] = ends;
    let config = NetConfig { host_fd: Some(ours.as_raw_fd()), ..NetConfig::default() };
    let mut rig = Rig::new(Box::new(Net::open(&config).unwrap()));
    rig.drive(RING_FEATURES | MRG | 1 << VIRTIO_NET_F_STATUS);
    let buffer = rig.writable(100);
    rig.post(0, &[buffer]);
    assert_eq!(rig.config(6, 2), [1, 0]);
    drop(theirs);
    assert_eq!(rig.wait_interrupt() & 2, 2);
    assert_eq!(rig.config(6, 2), [0, 0], "the link is down");
    assert_eq!(rig.counted("host_read_fails"), 1);
    rig.kick(0);
    rig.settle();
    assert!(rig.take_used(0).is_none() && !rig.needs_reset());
}

/// A frame that is longer than any is not cut, but dropped.
#[test]
fn a_frame_that_is_too_long_is_dropped() {
    let (mut rig, host) = rig(MRG);
    let buffers: Vec<Buffer> = (0..5).map(|_| rig.writable(20_000)).collect();
    for buffer in &buffers {
        rig.post(0, &[*buffer]);
    }
    host.send(&frame(FRAME_MAX - HEADER + 1)).unwrap();
    host.send(&frame(60)).unwrap();
    assert_eq!(rig.wait_used(0).1, 72);
    assert_eq!(rig.counted("frames_too_large"), 1);
}

/// The other end of a socket that is gone is no reason to stop.
#[test]
fn a_host_that_hung_up() {
    let (mut rig, host) = rig(MRG);
    drop(host);
    let out = rig.readable(&[1; HEADER + 60]);
    rig.request(1, &[out]);
    assert_eq!(rig.transport().worker().counters().failed.load(Ordering::Relaxed), 1);
    assert_eq!((rig.counted("host_write_fails"), rig.counted("frames_malformed")), (1, 0));
    let none = rig.readable(&[1; HEADER]);
    rig.request(1, &[none]);
    assert_eq!((rig.counted("host_write_fails"), rig.counted("frames_malformed")), (1, 1));
    assert!(!rig.needs_reset());
}

mod control;
mod limits;
mod metadata;
mod pairs;
mod places;
mod stream;
