//! What is fuzzed: one function a target, from bytes. The fuzzer and the replay of its corpus call the same ones.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use devices::virtio::DeviceConfig;
use machine::config::{Source, load};
use serde_json::{Value, json};

/// A target's name and what it does with an input.
type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 6] =
    [("device", device), ("net", net), ("mmds", mmds), ("vsock", vsock), ("api", api), ("config", config)];

/// The first byte chooses a device, the others drive it.
pub fn device(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    File::create(&image).and_then(|file| file.set_len(64 << 10)).expect("an image");
    let drive = |more: Value| {
        let mut drive = json!({ "drive_id": "d", "path_on_host": image, "is_root_device": false });
        drive.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        DeviceConfig::Block(serde_json::from_value(drive).expect("a drive"))
    };
    let config = match choice % 4 {
        0 => drive(json!({})),
        1 => drive(json!({ "is_read_only": true, "cache_type": "Unsafe" })),
        2 => DeviceConfig::Balloon(serde_json::from_value(json!({ "deflate_on_oom": true })).expect("a balloon")),
        _ => DeviceConfig::Rng(serde_json::from_value(json!({})).expect("a random number generator")),
    };
    devices::fuzzing::drive(devices::virtio::open(&config).expect("a device"), data);
}

/// Frames both ways and requests of the control queue, over a socket of frames.
pub fn net(data: &[u8]) {
    let (ours, theirs) = UnixDatagram::pair().expect("a socket");
    theirs.set_nonblocking(true).expect("a socket that does not wait");
    let net = json!({ "iface_id": "n", "host_fd": ours.as_raw_fd(), "guest_mac": "02:00:00:00:00:01" });
    let config = DeviceConfig::Net(serde_json::from_value(net).expect("a network interface"));
    devices::fuzzing::converse(devices::virtio::open(&config).expect("a device"), data, |frame| {
        let _ = theirs.send(frame);
        while theirs.recv(&mut [0; 256]).is_ok() {}
    });
}

/// A client of the metadata service, and the frames between them.
pub fn mmds(data: &[u8]) {
    devices::mmds::fuzzing::converse(data);
}

/// A client of the API, before the start of a VM and after it.
pub fn api(data: &[u8]) {
    ::api::fuzzing::converse(data);
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
    devices::fuzzing::converse(devices::virtio::open(&config).expect("a device"), data, |bytes| {
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
