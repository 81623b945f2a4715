//! Frames over a stream, each with its length before it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

/// Longest frame without its virtio header.
const BYTES_MAX: usize = FRAME_MAX - HEADER;

fn stream(features: u64) -> (Rig, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    theirs.set_write_timeout(Some(PATIENCE)).unwrap();
    let config = NetConfig { iface_id: "eth0".into(), host_fd: Some(ours.as_raw_fd()), ..NetConfig::default() };
    let mut rig = Rig::new(Box::new(Net::open(&config).unwrap()));
    rig.drive(RING_FEATURES | 1 << VIRTIO_NET_F_STATUS | features);
    (rig, theirs)
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat()
}

fn next(host: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    host.read_exact(&mut length).expect("a length");
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    host.read_exact(&mut frame).expect("a frame");
    frame
}

fn failed(rig: &mut Rig) -> u64 {
    rig.transport().worker().counters().failed.load(Ordering::Relaxed)
}

/// Waits until the link is down, with the driver told.
fn goes_down(rig: &mut Rig) {
    while rig.config(6, 2) != [0, 0] {
        rig.wait_interrupt();
    }
}

#[test]
fn frames_leave_with_their_lengths() {
    let (mut rig, mut host) = stream(0);
    for len in [1, 60, 1514, BYTES_MAX] {
        rig.free_all();
        let bytes = [&[7; HEADER][..], &frame(len)].concat();
        let (first, rest) = bytes.split_at(9);
        let buffers = [rig.readable(first), rig.readable(rest)];
        assert_eq!(rig.request(1, &buffers), 0);
        assert_eq!(next(&mut host), frame(len), "{len}");
    }
    let long = rig.readable(&vec![0; FRAME_MAX + 1]);
    rig.request(1, &[long]);
    let outside = Buffer { addr: RAM - 20, len: 100, writable: false };
    rig.request(1, &[outside]);
    assert_eq!(failed(&mut rig), 2);
    let good = rig.readable(&[5; HEADER + 60]);
    rig.request(1, &[good]);
    assert_eq!(next(&mut host), [5; 60], "what was dropped left nothing in the stream");
}

/// However the stream is cut into pieces, frames arrive whole and in order.
#[test]
fn frames_arrive_from_any_pieces() {
    let frames: Vec<Vec<u8>> = [60, 1, 1514, 61, 300].map(frame).to_vec();
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
    for size in [1, 2, 3, 5, 64, 1000, bytes.len()] {
        let (mut rig, mut host) = stream(MRG);
        let buffers: Vec<Buffer> = frames.iter().map(|_| rig.writable(2000)).collect();
        for buffer in &buffers {
            rig.post(0, &[*buffer]);
        }
        rig.kick(0);
        for piece in bytes.chunks(size) {
            host.write_all(piece).unwrap();
            if size < 1000 && bytes.len() / size < 1000 {
                rig.settle();
            }
        }
        for (buffer, frame) in buffers.iter().zip(&frames) {
            let (_, len) = rig.wait_used(0);
            assert_eq!(delivered(&mut rig, &[*buffer], len)[HEADER..], frame[..], "pieces of {size}");
        }
    }
}

#[test]
fn the_longest_frame_arrives() {
    let (mut rig, mut host) = stream(MRG);
    let buffers: Vec<Buffer> = (0..4).map(|_| rig.writable(20_000)).collect();
    for buffer in &buffers {
        rig.post(0, &[*buffer]);
    }
    rig.kick(0);
    let sent = framed(&frame(BYTES_MAX));
    let writer = std::thread::spawn(move || host.write_all(&sent).map(|()| host));
    let lens: u32 = (0..4).map(|_| rig.wait_used(0).1).sum();
    assert_eq!(lens as usize, FRAME_MAX);
    assert_eq!(delivered(&mut rig, &buffers, lens)[HEADER..], frame(BYTES_MAX));
    writer.join().unwrap().unwrap();
}

#[test]
fn an_empty_frame_is_none() {
    let (mut rig, mut host) = stream(MRG);
    let buffer = rig.writable(200);
    rig.post(0, &[buffer]);
    host.write_all(&[framed(&[]), framed(&frame(60))].concat()).unwrap();
    assert_eq!(rig.wait_used(0).1, 72);
    assert_eq!(failed(&mut rig), 1);
}

/// The end of the stream, or nonsense in it, takes the link down; the guest's frames are dropped from then on.
#[test]
fn a_stream_that_can_not_be_read_is_hung_up() {
    for last in [
        &[][..],
        &[0, 0],
        &framed(&frame(100))[..50],
        &u32::try_from(BYTES_MAX + 1).unwrap().to_be_bytes(),
        &[0xff; 64],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ] {
        let (mut rig, mut host) = stream(MRG);
        let buffers = [rig.writable(200), rig.writable(200)];
        for buffer in buffers {
            rig.post(0, &[buffer]);
        }
        rig.kick(0);
        host.write_all(&[&framed(&frame(60))[..], last].concat()).unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(rig.wait_used(0).1, 72, "what came before is good");
        goes_down(&mut rig);
        let out = rig.readable(&[1; HEADER + 60]);
        rig.request(1, &[out]);
        assert_eq!(failed(&mut rig), 1);
        assert!(rig.take_used(0).is_none() && !rig.needs_reset());
    }
}

/// An end that lies gets nothing more to read, and none of its frames is taken, though it goes on.
#[test]
fn a_liar_is_hung_up_on() {
    let (mut rig, mut host) = stream(MRG);
    let buffer = rig.writable(200);
    rig.post(0, &[buffer]);
    rig.kick(0);
    host.write_all(&[0xff; 4]).unwrap();
    goes_down(&mut rig);
    assert_eq!(host.read(&mut [0; 10]).unwrap(), 0);
    assert!(host.write_all(&framed(&frame(60))).is_err());
}

/// While the host does not read, the guest's frames wait, and not one is lost or cut.
#[test]
fn a_host_that_does_not_read_gets_all_of_it_later() {
    const FRAMES: u8 = 40;
    let (mut rig, mut host) = stream(MRG);
    let buffers: Vec<Buffer> = (0..FRAMES).map(|number| rig.readable(&[number; HEADER + 30_000])).collect();
    for buffer in &buffers {
        rig.post(1, &[*buffer]);
        rig.kick(1);
    }
    rig.settle();
    let early = std::iter::from_fn(|| rig.take_used(1)).count();
    assert!(early < usize::from(FRAMES), "the socket has room for all: {early}");
    // The other direction goes on meanwhile.
    let buffer = rig.writable(200);
    rig.post(0, &[buffer]);
    rig.kick(0);
    host.write_all(&framed(&frame(60))).unwrap();
    assert_eq!(rig.wait_used(0).1, 72);
    for number in 0..FRAMES {
        assert!(next(&mut host) == [number; 30_000], "frame {number}");
    }
    for _ in early..usize::from(FRAMES) {
        rig.wait_used(1);
    }
    assert_eq!(failed(&mut rig), 0);
}

/// The frames that waited for a host that is gone go back to the driver.
#[test]
fn a_host_that_hangs_up_leaves_no_frame_behind() {
    const FRAMES: usize = 40;
    let (mut rig, host) = stream(MRG);
    let out = rig.readable(&[3; HEADER + 30_000]);
    for _ in 0..FRAMES {
        rig.post(1, &[out]);
    }
    rig.kick(1);
    rig.settle();
    drop(host);
    for _ in 0..FRAMES {
        rig.wait_used(1);
    }
    goes_down(&mut rig);
}

/// A frame that waited for room outlives a reset: its second half would else be missing in the stream.
#[test]
fn a_reset_cuts_no_frame() {
    let (mut rig, mut host) = stream(MRG);
    let out = rig.readable(&[3; HEADER + 30_000]);
    for _ in 0..40 {
        rig.post(1, &[out]);
    }
    rig.kick(1);
    rig.settle();
    rig.drive(RING_FEATURES | MRG);
    let out = rig.readable(&[4; HEADER + 60]);
    rig.post(1, &[out]);
    rig.kick(1);
    loop {
        match next(&mut host).as_slice() {
            [4, rest @ ..] => break assert_eq!(rest, [4; 59]),
            other => assert!(other == [3; 30_000]),
        }
    }
}
