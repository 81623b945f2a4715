//! Devices whose work others do, saved and loaded while the host's kernel (vhost-net) or virtiofsd is the real one. There is no
//! guest: the driver is the rig of the devices' own tests.

use std::path::Path;

use devices::testing::{Buffer, Rig, shared_ram};
use devices::virtio::fs::config::ShareConfig;
use devices::virtio::net::config::NetConfig;
use devices::virtio::state::VirtioState;
use devices::virtio::{self, DeviceConfig};

use crate::net::{ip, lasting_tap};
use crate::vm::guest;

/// VIRTIO_F_VERSION_1.
const V1: u64 = 1 << 32;
/// VIRTIO_NET_F_MRG_RXBUF.
const MERGEABLE: u64 = 1 << 15;

/// Another device, opened by the same configuration, becomes what this one was; both save the same. What they save.
fn succeed(rig: &mut Rig, config: &DeviceConfig) -> VirtioState {
    rig.pause();
    let state = rig.save().expect("it can be saved");
    let text = serde_json::to_string(&state).expect("a text");
    let read: VirtioState = serde_json::from_str(&text).expect("the same");
    rig.succeed(|| virtio::open(config).expect("opened again"), &read).expect("it can be loaded");
    assert_eq!(rig.save().expect("it can be saved again"), state);
    rig.resume();
    state
}

/// An Ethernet frame behind its header: who has 10.9.23.1? Padded to 60 bytes.
#[rustfmt::skip]
const WHO_HAS: [u8; 12 + 60] = {
    let mut frame = [0; 72];
    let bytes = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 9, 23, 8, 6,
        0, 1, 8, 0, 6, 4, 0, 1,
        2, 0, 0, 0, 9, 23, 10, 9, 23, 2,
        0, 0, 0, 0, 0, 0, 10, 9, 23, 1,
    ];
    let mut at = 0;
    while at < bytes.len() {
        frame[12 + at] = bytes[at];
        at += 1;
    }
    frame
};

/// Makes room for a frame.
fn listen(rig: &mut Rig) -> Buffer {
    let room = rig.writable(1600);
    rig.post(0, &[room]);
    rig.kick(0);
    room
}

/// Asks the host for its address, and hears the answer, for which there is `room`.
fn ask(rig: &mut Rig, mut room: Buffer) {
    let question = rig.readable(&WHO_HAS);
    rig.request(1, &[question]);
    loop {
        rig.wait_used(0);
        let frame = rig.bytes(room).split_off(12);
        // ARP, and an answer; the host says other things, too.
        if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
            assert_eq!(frame[28..32], [10, 9, 23, 1]);
            return;
        }
        room = listen(rig);
    }
}

/// The rings go on where the host's kernel was, and nothing comes twice.
#[test]
fn an_interface_whose_frames_the_host_s_kernel_moves() {
    lasting_tap("vmmtest23");
    ip("addr add 10.9.23.1/24 dev vmmtest23");
    ip("link set vmmtest23 up");
    let net = NetConfig {
        iface_id: "eth0".into(),
        host_dev_name: Some("vmmtest23".into()),
        guest_mac: Some("02:00:00:00:09:17".into()),
        vhost: true,
        ..NetConfig::default()
    };
    let config = DeviceConfig::Net(net);
    let mut rig = Rig::new(virtio::open(&config).expect("the interface"));
    rig.drive(V1 | MERGEABLE);
    for round in 0..5 {
        rig.free_all();
        for _ in 0..3 {
            let room = listen(&mut rig);
            ask(&mut rig, room);
        }
        let room = listen(&mut rig);
        let state = succeed(&mut rig, &config);
        let sent = (round * 4 + 3) as u16;
        assert_eq!((state.transport.queues[1].next_avail, state.transport.queues[1].next_used), (sent, sent));
        assert!(state.transport.queues[0].next_used >= sent, "{:?}", state.transport.queues);
        ask(&mut rig, room);
        assert!(!rig.needs_reset());
    }
    drop(rig);
    ip("link del vmmtest23");
}

/// A request of FUSE (linux/fuse.h), and what comes back behind the header of its answer.
fn fuse(rig: &mut Rig, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let len = (40 + body.len()) as u32;
    let head = [&len.to_le_bytes()[..], &opcode.to_le_bytes(), &7_u64.to_le_bytes(), &node.to_le_bytes(), &[0; 16]];
    let request = [rig.readable(&head.concat()), rig.readable(body), rig.writable(16), rig.writable(4096)];
    let written = rig.request(1, &request) as usize;
    let error = i32::from_le_bytes(rig.bytes(request[2])[4..8].try_into().expect("four bytes"));
    assert_eq!(error, 0, "opcode {opcode}");
    let mut answer = rig.bytes(request[3]);
    answer.truncate(written - 16);
    answer
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}

/// A share of `dir`, mounted (FUSE_INIT), with `file` looked up and opened; the file's node and its handle.
fn opened(dir: &Path, virtiofsd: &str) -> (DeviceConfig, Rig, u64, u64) {
    let share = ShareConfig {
        tag: "src".into(),
        path_on_host: dir.to_owned(),
        virtiofsd: Some(guest(virtiofsd)),
        ..ShareConfig::default()
    };
    let config = DeviceConfig::Fs(share);
    let mut rig = Rig::with(virtio::open(&config).expect("the share"), shared_ram());
    rig.drive(V1);
    let version = [7_u32, 31, 0, 0].map(u32::to_le_bytes).concat();
    fuse(&mut rig, 26, 0, &version);
    let node = number(&fuse(&mut rig, 1, 1, b"file\0"));
    let handle = number(&fuse(&mut rig, 14, node, &[0; 8]));
    (config, rig, node, handle)
}

/// A file that the guest has open is open in another virtiofsd, too.
#[test]
fn a_share_with_an_open_file() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("file"), "what is in the file").expect("a file");
    let (config, mut rig, node, handle) = opened(dir.path(), "virtiofsd/rust/virtiofsd");
    for _ in 0..3 {
        rig.free_all();
        succeed(&mut rig, &config);
        let read = [&handle.to_le_bytes()[..], &0_u64.to_le_bytes(), &100_u64.to_le_bytes(), &[0; 16]].concat();
        assert_eq!(fuse(&mut rig, 15, node, &read), b"what is in the file");
    }
}

#[test]
fn a_share_of_a_virtiofsd_that_keeps_it_all_to_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("file"), "text").expect("a file");
    let (_, mut rig, node, _) = opened(dir.path(), "virtiofsd/c/virtiofsd");
    rig.pause();
    let refused = rig.save().expect_err("it can not").to_string();
    assert!(refused.starts_with("a shared directory can not be saved by this virtiofsd"), "{refused}");
    rig.resume();
    fuse(&mut rig, 14, node, &[0; 8]);
}
