//! The disk as a driver sees it: requests of every kind and shape, right ones and wrong ones (virtio 1.2, 5.2.6).

use std::os::unix::fs::FileExt;

use tempfile::NamedTempFile;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::config::{CacheType, DriveConfig, IoEngine};
use super::*;
use crate::testing::{Buffer, RAM, Rig};
use crate::virtio::registers::offset;
use crate::virtio::transport::RING_FEATURES;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const SECTORS: u64 = 64;

struct Disk {
    rig: Rig,
    image: NamedTempFile,
}

fn config(image: &NamedTempFile) -> DriveConfig {
    DriveConfig {
        drive_id: "a-name-of-more-than-twenty-bytes".to_owned(),
        path_on_host: image.path().to_owned(),
        is_root_device: false,
        is_read_only: false,
        cache_type: CacheType::Writeback,
        io_engine: IoEngine::Sync,
    }
}

impl Disk {
    fn new(change: impl FnOnce(&mut DriveConfig)) -> Self {
        let image = NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..SECTORS * SECTOR).map(|at| (at / SECTOR + at % 7) as u8).collect();
        image.as_file().write_all_at(&bytes, 0).unwrap();
        let mut config = config(&image);
        change(&mut config);
        let mut rig = Rig::new(Box::new(Block::open(&config).unwrap()));
        let offered = rig.offered();
        rig.drive(offered);
        Self { rig, image }
    }

    fn writable() -> Self {
        Self::new(|_| {})
    }

    fn header(&mut self, kind: u32, sector: u64) -> Buffer {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0xff; 4]); // reserved
        header.extend(sector.to_le_bytes());
        self.rig.readable(&header)
    }

    /// A request with these data buffers; returns the status and the used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let mut chain = vec![self.header(kind, sector)];
        chain.extend(data);
        let status = self.rig.writable(1);
        chain.push(status);
        let len = self.rig.request(0, &chain);
        (self.rig.bytes(status)[0], len)
    }

    fn image(&self, sector: u64, sectors: usize) -> Vec<u8> {
        let mut bytes = vec![0; sectors * 512];
        self.image.as_file().read_exact_at(&mut bytes, sector * SECTOR).unwrap();
        bytes
    }
}

#[test]
fn describes_itself() {
    let mut disk = Disk::writable();
    let config = disk.rig.config(0, 36);
    assert_eq!(config[0..8], SECTORS.to_le_bytes());
    assert_eq!(config[12..16], 254_u32.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    let own = RING_FEATURES | 1 << 2 | 1 << 6;
    assert_eq!(disk.rig.offered(), own | 1 << 9);
    let mut disk = Disk::new(|config| (config.is_read_only, config.cache_type) = (true, CacheType::Unsafe));
    assert_eq!(disk.rig.offered(), own | 1 << 5);
}

#[test]
fn reads_and_writes_sectors() {
    let mut disk = Disk::writable();
    let into = disk.rig.writable(1024);
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 3, &[into]), (OK, 1025));
    assert_eq!(disk.rig.bytes(into), disk.image(3, 2));
    let from = disk.rig.readable(&[0x77; 1536]);
    assert_eq!(disk.request(VIRTIO_BLK_T_OUT, SECTORS - 3, &[from]), (OK, 1));
    assert_eq!(disk.image(SECTORS - 3, 3), [0x77; 1536]);
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, SECTORS, &[]), (OK, 1), "nothing, read from the very end");
    assert_eq!(disk.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    let bytes = disk.rig.transport().worker().counters().bytes.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(bytes, 1024 + 1536);
}

#[test]
fn tells_its_serial_number() {
    let mut disk = Disk::writable();
    let (whole, part) = (disk.rig.writable(20), disk.rig.writable(5));
    assert_eq!(disk.request(VIRTIO_BLK_T_GET_ID, 0, &[whole]), (OK, 21));
    assert_eq!(disk.rig.bytes(whole), b"a-name-of-more-than-");
    assert_eq!(disk.request(VIRTIO_BLK_T_GET_ID, 0, &[part]), (OK, 6));
    assert_eq!(disk.rig.bytes(part), b"a-nam");
    let long = disk.rig.writable(64);
    assert_eq!(disk.request(VIRTIO_BLK_T_GET_ID, 0, &[long]), (OK, 21));
    assert_eq!(disk.rig.bytes(long)[20..], [0xa5; 44]);
}

#[test]
fn makes_no_assumption_about_descriptors() {
    let mut disk = Disk::writable();
    let header = disk.header(VIRTIO_BLK_T_OUT, 1);
    let cut = |buffer: Buffer, at: u32, len: u32| Buffer { addr: buffer.addr + u64::from(at), len, ..buffer };
    // The header in pieces, the last of them with data in it; data across the two regions of RAM; status at the end
    // of a longer buffer.
    let joined = disk.rig.readable(&[disk.rig.bytes(header), vec![1; 100]].concat());
    let across = Buffer { addr: RAM / 2 - 200, len: 412, writable: false };
    let chain = [cut(joined, 0, 1), cut(joined, 1, 10), cut(joined, 11, 105), across, disk.rig.writable(1)];
    assert_eq!(disk.rig.request(0, &chain), 1);
    assert_eq!(disk.image(1, 1), [vec![1; 100], disk.rig.bytes(across)].concat());
    let into = disk.rig.writable(513);
    let header = disk.header(VIRTIO_BLK_T_IN, 1);
    assert_eq!(disk.rig.request(0, &[header, into]), 513);
    assert_eq!(disk.rig.bytes(into)[..512], disk.image(1, 1));
    assert_eq!(disk.rig.bytes(into)[512], OK);
}

#[test]
fn takes_as_many_segments_as_a_chain_may_have() {
    let mut disk = Disk::writable();
    let into = disk.rig.writable(1022 * 8);
    let mut chain = vec![disk.header(VIRTIO_BLK_T_IN, 0)];
    chain.extend((0..1022).map(|n| Buffer { addr: into.addr + n * 8, len: 8, writable: true }));
    let status = disk.rig.writable(1);
    chain.push(status);
    disk.rig.post_indirect(0, &chain);
    disk.rig.kick(0);
    disk.rig.wait_used(0);
    assert_eq!(disk.rig.bytes(status), [IOERR], "8176 bytes are no whole sectors");
    let mut chain = vec![disk.header(VIRTIO_BLK_T_IN, 0)];
    chain.extend((0..960).map(|n| Buffer { addr: into.addr + n * 8, len: 8, writable: true }));
    chain.push(status);
    disk.rig.post_indirect(0, &chain);
    disk.rig.kick(0);
    assert_eq!(disk.rig.wait_used(0).1, 7681);
    assert_eq!(disk.rig.bytes(into)[..7680], disk.image(0, 15));
}

#[test]
fn fails_what_is_wrong_and_goes_on() {
    let mut disk = Disk::writable();
    let sector = disk.rig.writable(512);
    let odd = disk.rig.writable(511);
    let data = disk.rig.readable(&[9; 512]);
    let nowhere = |writable| Buffer { addr: RAM, len: 512, writable };
    let half = |writable| Buffer { addr: RAM - 256, len: 512, writable };
    let before = disk.image(0, SECTORS as usize);
    let cases = [
        (VIRTIO_BLK_T_IN, SECTORS, sector, IOERR),
        (VIRTIO_BLK_T_OUT, SECTORS, data, IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX, sector, IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX / 512, sector, IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX / 512 + 1, sector, IOERR),
        (VIRTIO_BLK_T_IN, 0, odd, IOERR),
        (VIRTIO_BLK_T_IN, 0, nowhere(true), IOERR),
        (VIRTIO_BLK_T_IN, 0, half(true), IOERR),
        (VIRTIO_BLK_T_OUT, 0, nowhere(false), IOERR),
        (VIRTIO_BLK_T_OUT, 0, half(false), IOERR),
        (VIRTIO_BLK_T_GET_ID, 0, nowhere(true), IOERR),
        (2, 0, sector, UNSUPP),
        (11, 0, sector, UNSUPP),
        (u32::MAX, 0, sector, UNSUPP),
    ];
    for (kind, at, buffer, status) in cases {
        assert_eq!(disk.request(kind, at, &[buffer]), (status, 1), "{kind} {at} {buffer:?}");
        disk.rig.free_all();
        disk.rig.alloc(2048); // the buffers above stay
    }
    assert_eq!(disk.image(0, SECTORS as usize), before);
    let (short, status) = (disk.rig.readable(&[0; 15]), disk.rig.writable(1));
    assert_eq!(disk.rig.request(0, &[short, status]), 1);
    assert_eq!(disk.rig.bytes(status), [IOERR]);
    assert!(!disk.rig.needs_reset());
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, &[sector]), (OK, 513));
}

#[test]
fn a_request_that_can_not_be_answered_breaks_it() {
    for status in [None, Some(RAM), Some(u64::MAX)] {
        let mut disk = Disk::writable();
        let mut chain = vec![disk.header(VIRTIO_BLK_T_FLUSH, 0)];
        chain.extend(status.map(|addr| Buffer { addr, len: 1, writable: true }));
        disk.rig.post(0, &chain);
        disk.rig.kick(0);
        disk.rig.settle();
        assert!(disk.rig.needs_reset(), "{status:?}");
    }
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let mut disk = Disk::new(|config| (config.is_read_only, config.cache_type) = (true, CacheType::Unsafe));
    let data = disk.rig.readable(&[9; 512]);
    let before = disk.image(0, 1);
    assert_eq!(disk.request(VIRTIO_BLK_T_OUT, 0, &[data]), (IOERR, 1));
    assert_eq!(disk.image(0, 1), before);
    assert_eq!(disk.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (UNSUPP, 1), "a flush that was not offered");
}

#[test]
fn a_driver_without_flushes_gets_safe_writes() {
    for (features, flushes) in [(RING_FEATURES, 1), (RING_FEATURES | 1 << 9, 0)] {
        let mut disk = Disk::writable();
        disk.rig.drive(features);
        let data = disk.rig.readable(&[9; 512]);
        assert_eq!(disk.request(VIRTIO_BLK_T_OUT, 0, &[data]), (OK, 1));
        let counters = disk.rig.transport().worker().counters();
        assert_eq!(counters.flushes.load(std::sync::atomic::Ordering::Relaxed), flushes);
    }
}

#[test]
fn an_image_that_shrinks_is_an_error_of_the_request() {
    let mut disk = Disk::writable();
    disk.image.as_file().set_len(512).unwrap();
    let into = disk.rig.writable(1024);
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, &[into]), (IOERR, 1));
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 8, &[into]), (IOERR, 1));
}

#[test]
fn pages_that_the_host_writes_are_marked_dirty() {
    let mut disk = Disk::writable();
    let dirty = |rig: &Rig, addr: u64| {
        let (region, at) = rig.memory().to_region_addr(GuestAddress(addr)).unwrap();
        GuestMemoryRegion::bitmap(region).dirty_at(at.0 as usize)
    };
    let into = Buffer { addr: 0xff000, len: 8192, writable: true }; // the last page of a region and the next one's first
    assert!(!dirty(&disk.rig, into.addr) && !dirty(&disk.rig, into.addr + 4096));
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, &[into]).0, OK);
    assert!(dirty(&disk.rig, into.addr) && dirty(&disk.rig, into.addr + 4096));
    assert!(!dirty(&disk.rig, into.addr + 8192));
}

#[test]
fn the_next_driver_finds_the_same_disk() {
    let mut disk = Disk::writable();
    let data = disk.rig.readable(&[0x42; 512]);
    assert_eq!(disk.request(VIRTIO_BLK_T_OUT, 5, &[data]).0, OK);
    let offered = disk.rig.offered();
    disk.rig.free_all();
    disk.rig.drive(offered & !(1 << 9));
    let into = disk.rig.writable(512);
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 5, &[into]), (OK, 513));
    assert_eq!(disk.rig.bytes(into), [0x42; 512]);
    assert_eq!(disk.rig.read(offset::DEVICE_ID), 2);
}

#[test]
fn the_config_is_firecrackers() {
    let text = r#"{"drive_id":"d","path_on_host":"/x","is_root_device":true,"cache_type":"Unsafe","io_engine":"Sync"}"#;
    let config: DriveConfig = serde_json::from_str(text).unwrap();
    assert!(config.is_root_device && !config.is_read_only && config.cache_type == CacheType::Unsafe);
    assert!(serde_json::from_str::<DriveConfig>(r#"{"drive_id":"d","path_on_host":"/x","colour":1}"#).is_err());
}
