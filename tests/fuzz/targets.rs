//! What is fuzzed: one function a target, from bytes. The fuzzer and the replay of its corpus call the same ones.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use devices::testing::{Rig, ram, shared_ram};
use devices::virtio::balloon::{BalloonChange, Hint};
use devices::virtio::fs::stand_in;
use devices::virtio::vhost_user::hostile::Hostile;
use devices::virtio::{Change, DeviceConfig};
use machine::config::{Source, load};
use protocol::frame::{Decoder, Frame, Kind};
use protocol::message::{Containers, Done, Hello, Input, Order, Report, Setup};
use protocol::pieces::Pieces;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A target's name and what it does with an input.
type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 12] = [
    ("device", device),
    ("disk", disk),
    ("balloon", balloon),
    ("net", net),
    ("stream", stream),
    ("share", share),
    ("mmds", mmds),
    ("vsock", vsock),
    ("api", api),
    ("layer", layer),
    ("agent", agent),
    ("config", config),
];

fn rig(config: &DeviceConfig) -> Rig {
    Rig::new(devices::virtio::open(config).expect("a device"))
}

/// An image of 64 KiB in `folder`, and a disk of it.
fn drive(folder: &Path, more: &Value) -> DeviceConfig {
    let image = folder.join("image");
    File::create(&image).and_then(|file| file.set_len(64 << 10)).expect("an image");
    let mut drive = json!({ "drive_id": "d", "path_on_host": image, "is_root_device": false });
    drive.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    DeviceConfig::Block(serde_json::from_value(drive).expect("a drive"))
}

/// The same image as memory.
fn pmem(folder: &Path, private: bool) -> DeviceConfig {
    drive(folder, &json!({}));
    let pmem = json!({ "id": "p", "path_on_host": folder.join("image"), "private": private });
    DeviceConfig::Pmem(serde_json::from_value(pmem).expect("a file as memory"))
}

/// A balloon with every queue that there is.
fn whole_balloon() -> DeviceConfig {
    let balloon = json!({ "stats_polling_interval_s": 1, "free_page_hinting": true });
    DeviceConfig::Balloon(serde_json::from_value(balloon).expect("a balloon"))
}

/// The first byte chooses a device, the others drive it.
pub fn device(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let config = match choice % 8 {
        0 => drive(folder, &json!({})),
        1 => drive(folder, &json!({ "is_read_only": true, "cache_type": "Unsafe" })),
        2 => DeviceConfig::Balloon(serde_json::from_value(json!({ "deflate_on_oom": true })).expect("a balloon")),
        3 => DeviceConfig::Rng(serde_json::from_value(json!({})).expect("a random number generator")),
        4 => drive(folder, &json!({ "io_engine": "Async", "num_queues": 2 })),
        5 => pmem(folder, false),
        6 => pmem(folder, true),
        _ => whole_balloon(),
    };
    devices::fuzzing::drive(rig(&config), data);
}

/// Requests for sectors, by either engine; the first byte says which. The image shrinks and grows meanwhile.
pub fn disk(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let engine = if choice % 2 == 0 { "Async" } else { "Sync" };
    let flushes = if choice % 4 < 2 { "Writeback" } else { "Unsafe" };
    let config = drive(folder.path(), &json!({ "io_engine": engine, "cache_type": flushes, "num_queues": 2 }));
    let image = File::options().write(true).open(folder.path().join("image")).expect("the image");
    devices::fuzzing::converse(rig(&config), data, |_, bytes| {
        image.set_len(bytes.first().map_or(0, |size| u64::from(*size) << 8)).expect("a size");
    });
}

/// Pages handed over and reported, statistics and hints, while the user changes his mind.
pub fn balloon(data: &[u8]) {
    devices::fuzzing::converse(rig(&whole_balloon()), data, |rig, bytes| {
        let Some(([what, number], _)) = bytes.split_first_chunk() else { return };
        let mut change = BalloonChange::default();
        match what % 5 {
            0 => change.amount_mib = Some((*number).into()),
            1 => change.hint = Some(Hint::Start { acknowledge_on_stop: number % 2 == 0 }),
            2 => change.hint = Some(Hint::Stop),
            3 => change.pause_reporting = Some(number % 2 == 0),
            _ => change.stats_polling_interval_s = Some((*number).into()),
        }
        let _ = rig.transport().transport().update(Change::Balloon(change)); // it may refuse
        let _ = rig.transport().worker().inspect();
    });
}

fn interface(fd: &impl AsRawFd) -> DeviceConfig {
    let net = json!({ "iface_id": "n", "host_fd": fd.as_raw_fd(), "guest_mac": "02:00:00:00:00:01" });
    DeviceConfig::Net(serde_json::from_value(net).expect("a network interface"))
}

/// Frames both ways and requests of the control queue, over a socket of frames.
pub fn net(data: &[u8]) {
    let (ours, theirs) = UnixDatagram::pair().expect("a socket");
    theirs.set_nonblocking(true).expect("a socket that does not wait");
    devices::fuzzing::converse(rig(&interface(&ours)), data, |_, frame| {
        let _ = theirs.send(frame);
        while theirs.recv(&mut [0; 256]).is_ok() {}
    });
}

/// Frames over a stream, as passt has it. The other end says what it likes, where a length should be, too.
pub fn stream(data: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("a socket");
    theirs.set_nonblocking(true).expect("a socket that does not wait");
    devices::fuzzing::converse(rig(&interface(&ours)), data, |_, bytes| {
        let Some((what, bytes)) = bytes.split_first() else { return };
        match what % 8 {
            0 => _ = theirs.write(bytes),
            1 => _ = theirs.read(&mut [0; 64]),
            2 => while theirs.read(&mut [0; 65536]).is_ok_and(|len| len > 0) {},
            3 => _ = theirs.shutdown(Shutdown::Write),
            4 => _ = theirs.shutdown(Shutdown::Both),
            _ => {
                let length = u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes();
                let _ = theirs.write(&[&length, bytes].concat());
            }
        }
    });
}

/// A shared directory whose back end lies: in its answers to messages, which the first bytes are, and in the rings. Where the
/// first bit is set, it is given copies of requests, as it can not map the guest's memory.
pub fn share(data: &[u8]) {
    let Some((len, data)) = data.split_first() else { return };
    let (script, data) = data.split_at_checked(usize::from(len % 64)).unwrap_or((data, &[]));
    let (back_end, stream) = Hostile::start(script);
    let Ok(share) = stand_in::share(stream, Duration::from_millis(20)) else { return }; // it was told so at the start
    let memory = if len & 0x80 == 0 { shared_ram() } else { ram() };
    devices::fuzzing::converse(Rig::with(share, memory), data, |_, bytes| back_end.act(bytes));
}

/// A client of the metadata service, and the frames between them.
pub fn mmds(data: &[u8]) {
    devices::mmds::fuzzing::converse(data);
}

/// A client of the API, before the start of a VM and after it.
pub fn api(data: &[u8]) {
    ::api::fuzzing::converse(data);
}

/// A layer of an image; what is made of it is read back.
pub fn layer(data: &[u8]) {
    container::layer::fuzzing::unpack(data);
}

/// Packets of the guest, and host processes that connect, listen, speak and hang up.
pub fn vsock(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("v");
    let listener = UnixListener::bind(folder.path().join("v_1")).expect("a listener");
    listener.set_nonblocking(true).expect("a listener that does not wait");
    let vsock = json!({ "guest_cid": 3, "uds_path": path });
    let config = DeviceConfig::Vsock(serde_json::from_value(vsock).expect("a vsock"));
    let mut peers: Vec<UnixStream> = Vec::new();
    devices::fuzzing::converse(rig(&config), data, |_, bytes| {
        let Some((&[kind, which], words)) = bytes.split_first_chunk::<2>() else { return };
        let place = usize::from(which) % peers.len().max(1);
        match (kind % 4, peers.get_mut(place)) {
            (0, _) => {
                let accepted = listener.accept().map(|(peer, _)| peer);
                let dialled =
                    UnixStream::connect(&path).and_then(|mut peer| peer.write_all(b"CONNECT 5\n").map(|()| peer));
                for peer in accepted.into_iter().chain(dialled) {
                    peer.set_nonblocking(true).expect("a socket that does not wait");
                    peers.push(peer);
                }
            }
            (1, Some(peer)) => _ = peer.write(words),
            (2, Some(peer)) => _ = peer.read(&mut [0; 4096]),
            (_, Some(_)) => _ = peers.swap_remove(place),
            (_, None) => {}
        }
    });
}

/// The bytes are a document. What it says wrong is reported; what is right has a plan.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match load(Some(Source { text, file: None }), &[], None) {
        Ok(config) => {
            machine::plan::Plan::of(&config).expect("a checked configuration has a plan");
        }
        Err(faults) => assert!(faults.iter().all(|fault| !fault.to_string().is_empty())),
    }
}

/// What comes over a connection between host and agent, in pieces of the first byte's size: frames, which are the same
/// bytes again, and messages, which can be said again.
pub fn agent(data: &[u8]) {
    let Some((size, bytes)) = data.split_first() else { return };
    carried(usize::from(*size).max(1), bytes);
    let mut decoder = Decoder::default();
    let mut taken = Vec::new();
    for piece in bytes.chunks(usize::from(*size).max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    taken.extend(frame.bytes().expect("a frame that has come"));
                    open_each(&frame);
                }
                Ok(None) => break,
                Err(_) => return assert!(bytes.starts_with(&taken)),
            }
        }
    }
    assert!(bytes.starts_with(&taken));
    assert_eq!(decoder.finish().is_ok(), taken.len() == bytes.len());
}

/// Who carries frames of one kind on in pieces gets the bodies of those that come before one of another kind.
fn carried(size: usize, bytes: &[u8]) {
    for kind in [Kind::Stdin, Kind::Stdout] {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        let frames = std::iter::from_fn(|| decoder.next_frame().ok().flatten());
        let bodies: Vec<Vec<u8>> = frames.take_while(|frame| frame.kind == kind).map(|frame| frame.body).collect();
        let (mut pieces, mut whole, mut begun) = (Pieces::of(kind), Vec::new(), Vec::new());
        'all: for mut piece in bytes.chunks(size) {
            loop {
                match pieces.next_piece(&mut piece) {
                    Ok(Some(piece)) => {
                        begun.extend_from_slice(piece.bytes);
                        if piece.is_last {
                            whole.push(std::mem::take(&mut begun));
                        }
                    }
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
            }
        }
        assert_eq!(whole, bodies);
    }
}

/// Opens a frame as each message that there is.
fn open_each(frame: &Frame) {
    /// The message, and what another would hear of it.
    fn heard<T: DeserializeOwned + Serialize>(frame: &Frame) -> Option<(T, T)> {
        let message = frame.open().ok()?;
        let said = Frame::message(&message).expect("what has come can be said");
        assert_eq!(said.kind, Kind::Message);
        let heard = said.open().expect("what was said");
        Some((message, heard))
    }
    heard::<Hello>(frame).inspect(|(one, other)| assert_eq!(one, other));
    heard::<Setup>(frame).inspect(|(one, other)| assert_eq!(one, other));
    heard::<Done>(frame).inspect(|(one, other)| assert_eq!(one, other));
    heard::<Report>(frame).inspect(|(one, other)| assert_eq!(one, other));
    heard::<Input>(frame).inspect(|(one, other)| assert_eq!(one, other));
    heard::<Containers>(frame).inspect(|(one, other)| assert_eq!(one, other));
    heard::<Order>(frame); // the last digit of a broken number in a specification may change
}
