//! The disk as a driver sees it: requests of every kind and shape, right ones and wrong ones (virtio 1.2, 5.2.6).

mod engines;
mod parts;
mod update;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::config::{CacheType, DriveConfig, IoEngine};
use super::*;
use crate::rate_limit::{RateLimiterConfig, TokenBucketConfig};
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
        path_on_host: Some(image.path().to_owned()),
        ..DriveConfig::default()
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

    /// Ranges of a discard: sector, sectors, flags.
    fn ranges(&mut self, ranges: &[(u64, u32, u32)]) -> Buffer {
        let bytes = ranges.iter().flat_map(|(sector, sectors, flags)| {
            [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
        });
        let bytes: Vec<u8> = bytes.collect();
        self.rig.readable(&bytes)
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
    assert_eq!(disk.rig.offered(), own | 1 << 9 | 1 << 13 | 1 << 14);
    let limits = disk.rig.config(36, 24);
    let limits: Vec<u32> = limits.chunks(4).map(|it| u32::from_le_bytes(it.try_into().unwrap())).collect();
    assert_eq!(limits, [1 << 22, 32, 8, 1 << 16, 4, 1]);
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
    let bytes = disk.rig.counted("bytes_in") + disk.rig.counted("bytes_out");
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
    assert_eq!(disk.request(VIRTIO_BLK_T_GET_ID, 0, &[long]), (OK, 20), "there is a gap before the status");
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
        (11, 0, sector, IOERR),
        (13, 0, sector, IOERR),
        (12, 0, sector, UNSUPP),
        (u32::MAX, 0, sector, UNSUPP),
    ];
    for (kind, at, buffer, status) in cases {
        // The used length says that nothing was written before the status, where something could have been.
        let used = u32::from(!buffer.writable);
        assert_eq!(disk.request(kind, at, &[buffer]), (status, used), "{kind} {at} {buffer:?}");
        disk.rig.free_all();
        disk.rig.alloc(2048); // the buffers above stay
    }
    assert_eq!(disk.image(0, SECTORS as usize), before);
    let (short, status) = (disk.rig.readable(&[0; 15]), disk.rig.writable(1));
    assert_eq!(disk.rig.request(0, &[short, status]), 1);
    assert_eq!(disk.rig.bytes(status), [IOERR]);
    assert!(!disk.rig.needs_reset());
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, &[sector]), (OK, 513));
    let wrong = u64::try_from(cases.len()).unwrap() + 1;
    let counted = ["failed", "refused", "request_time", "bytes_in", "moves_in"].map(|name| disk.rig.counted(name));
    assert_eq!(counted, [wrong, wrong, wrong + 1, 512, 1]);
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
    let range = disk.ranges(&[(0, 8, 0)]);
    assert_eq!(disk.request(VIRTIO_BLK_T_DISCARD, 0, &[range]), (IOERR, 1));
    assert_eq!(disk.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[range]), (IOERR, 1));
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
        assert_eq!(disk.rig.counted("flushes"), flushes);
    }
}

#[test]
fn an_image_that_shrinks_is_an_error_of_the_request() {
    let mut disk = Disk::writable();
    disk.image.as_file().set_len(512).unwrap();
    let into = disk.rig.writable(1024);
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, &[into]), (IOERR, 0));
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 8, &[into]), (IOERR, 0));
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

#[test]
fn a_discard_makes_holes() {
    let mut disk = Disk::writable();
    let blocks = |disk: &Disk| disk.image.as_file().metadata().unwrap().blocks();
    disk.image.as_file().sync_all().unwrap();
    let before = blocks(&disk);
    let ranges = disk.ranges(&[(8, 8, 0), (0, 0, 0), (24, 16, 0)]);
    assert_eq!(disk.request(VIRTIO_BLK_T_DISCARD, 0, &[ranges]), (OK, 1));
    assert_eq!(before - blocks(&disk), 24);
    assert_eq!(disk.image(8, 8), [0; 4096]);
    assert_ne!(disk.image(0, 1), [0; 512]);
    assert_ne!(disk.image(23, 1), [0; 512]);
    assert_eq!(disk.image.as_file().metadata().unwrap().len(), SECTORS * SECTOR);
}

#[test]
fn zeroes_are_zeroes_with_and_without_holes() {
    for (flags, frees) in [(0, false), (1, true)] {
        let mut disk = Disk::writable();
        let blocks = |disk: &Disk| disk.image.as_file().metadata().unwrap().blocks();
        disk.image.as_file().sync_all().unwrap();
        let (before, edge) = (blocks(&disk), disk.image(23, 1));
        let ranges = disk.ranges(&[(3, 20, flags)]); // whole blocks and parts of them
        assert_eq!(disk.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[ranges]), (OK, 1));
        assert_eq!(disk.image(3, 20), vec![0; 20 * 512]);
        assert_eq!(disk.image(23, 1), edge);
        assert_ne!(disk.image(2, 1), [0; 512]);
        assert_eq!(blocks(&disk) < before, frees, "flags {flags}");
    }
}

#[test]
fn ranges_are_checked_before_anything_is_done() {
    let mut disk = Disk::writable();
    let before = disk.image(0, SECTORS as usize);
    let (discard, zero) = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES);
    let good = (0, 8, 0);
    let cases = [
        (discard, &[good, (SECTORS, 1, 0)] as &[_], IOERR),
        (discard, &[good, (SECTORS - 1, 2, 0)], IOERR),
        (discard, &[good, (u64::MAX, 1, 0)], IOERR),
        (discard, &[good, (u64::MAX / 512, u32::MAX, 0)], IOERR),
        (discard, &[good, (0, (1 << 22) + 1, 0)], IOERR),
        (discard, &[good, (0, 1, 1)], UNSUPP),
        (discard, &[good, (0, 1, 2)], UNSUPP),
        (discard, &[good; 33], IOERR),
        (zero, &[good, (0, 1, 2)], UNSUPP),
        (zero, &[good, (0, 1, 0x8000_0001)], UNSUPP),
        (zero, &[good, (0, (1 << 16) + 1, 0)], IOERR),
        (zero, &[good; 5], IOERR),
    ];
    for (kind, ranges, status) in cases {
        let buffer = disk.ranges(ranges);
        assert_eq!(disk.request(kind, 0, &[buffer]), (status, 1), "{kind} {ranges:?}");
    }
    for kind in [discard, zero] {
        assert_eq!(disk.request(kind, 0, &[]), (IOERR, 1), "no ranges");
        for len in [1, 15, 17] {
            let odd = disk.rig.readable(&vec![0; len]);
            assert_eq!(disk.request(kind, 0, &[odd]), (IOERR, 1), "{len} bytes of ranges");
        }
        let nowhere = Buffer { addr: RAM, len: 16, writable: false };
        assert_eq!(disk.request(kind, 0, &[nowhere]), (IOERR, 1));
    }
    assert_eq!(disk.image(0, SECTORS as usize), before);
    assert!(!disk.rig.needs_reset());
}

#[test]
fn a_file_without_holes_is_told_from_a_bad_disk() {
    let unsupported = |number| transfer::is_unsupported(&Err(std::io::Error::from_raw_os_error(number)));
    assert!(unsupported(libc::EOPNOTSUPP) && unsupported(libc::ENOSYS) && !unsupported(libc::EIO));
    assert!(!unsupported(libc::ENOSPC) && !transfer::is_unsupported(&Ok(())));
}

#[test]
fn past_the_page_cache_whatever_the_alignment() {
    let mut disk = Disk::new(|config| config.direct = true);
    let size = disk.rig.config(20, 4);
    assert!(u32::from_le_bytes(size.try_into().unwrap()) >= 512);
    let arena = disk.rig.alloc(64 << 10).next_multiple_of(4096);
    for shift in [0, 1, 16, 512] {
        for (sector, sectors) in [(0, 8), (8, 16), (1, 1), (3, 9), (SECTORS - 1, 1), (0, SECTORS)] {
            let into = Buffer { addr: arena + shift, len: sectors as u32 * 512, writable: true };
            assert_eq!(disk.request(VIRTIO_BLK_T_IN, sector, &[into]).0, OK, "{shift} {sector} {sectors}");
            assert_eq!(disk.rig.bytes(into), disk.image(sector, sectors as usize), "{shift} {sector} {sectors}");
        }
        for (sector, sectors) in [(0, 8), (8, 16), (1, 1), (3, 9), (SECTORS - 1, 1)] {
            let bytes: Vec<u8> = (0..sectors * 512).map(|at| (at + shift + sector) as u8).collect();
            disk.rig.memory().write_slice(&bytes, GuestAddress(arena + shift)).unwrap();
            // In two parts, the first of them odd.
            let first = Buffer { addr: arena + shift, len: 100, writable: false };
            let rest = Buffer { addr: first.addr + 100, len: bytes.len() as u32 - 100, writable: false };
            assert_eq!(disk.request(VIRTIO_BLK_T_OUT, sector, &[first, rest]), (OK, 1));
            assert_eq!(disk.image(sector, sectors as usize), bytes, "{shift} {sector} {sectors}");
        }
        disk.rig.free_all();
        disk.rig.alloc(72 << 10);
    }
    let nowhere = Buffer { addr: RAM, len: 4096, writable: true };
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, &[nowhere]), (IOERR, 0));
    let ranges = disk.ranges(&[(3, 2, 0)]);
    assert_eq!(disk.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[ranges]).0, OK);
    assert_eq!(disk.image(3, 2), [0; 1024]);
}

#[test]
fn a_limited_disk_is_slow_and_complete() {
    for engine in [IoEngine::Sync, IoEngine::Async] {
        is_slow_and_complete(engine);
    }
}

fn is_slow_and_complete(engine: IoEngine) {
    let bucket = TokenBucketConfig { size: 1024, one_time_burst: Some(1024), refill_time: 50 };
    let limits = RateLimiterConfig { bandwidth: Some(bucket), ops: None };
    let mut disk = Disk::new(|config| {
        (config.rate_limiter, config.io_engine) = (Some(limits), engine);
    });
    let begin = Instant::now();
    let (into, status) = (disk.rig.writable(1024), disk.rig.writable(1));
    for sector in 0..4 {
        let header = disk.header(VIRTIO_BLK_T_IN, sector);
        disk.rig.post(0, &[header, into, status]);
    }
    disk.rig.kick(0);
    for _ in 0..4 {
        assert_eq!(disk.rig.wait_used(0).1, 1025);
    }
    assert!(begin.elapsed() > Duration::from_millis(90), "burst, bucket, and two refills");
    assert_eq!(disk.rig.counted("requests"), 4, "a request that waits is counted once");
}
