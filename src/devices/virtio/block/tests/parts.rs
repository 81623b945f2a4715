//! A disk that is made of several files: its table, its bytes, its borders, and what is wrong with it.

use std::path::Path;

use super::super::gpt::{ALIGN, NAME_MAX};
use super::*;
use crate::virtio::DeviceConfig;
use crate::virtio::block::config::PartitionConfig;

/// Sizes that are whole blocks and that are not, and one that ends where the next file begins.
const SIZES: [u64; 5] = [4096, 1, ALIGN, 3 * 4096 + 700, ALIGN + 512];

struct Files {
    rig: Rig,
    files: Vec<NamedTempFile>,
    config: DriveConfig,
}

/// A file of bytes that say where they are from.
fn file(number: usize, len: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..len).map(|at| (at / 512 + at % 7) as u8 ^ (number as u8 + 1) << 4 | 1).collect();
    file.as_file().write_all_at(&bytes, 0).unwrap();
    file
}

fn config_of(files: &[NamedTempFile]) -> DriveConfig {
    let part = |(number, file): (usize, &NamedTempFile)| PartitionConfig {
        path_on_host: file.path().to_owned(),
        name: (number > 0).then(|| format!("layer {number}")),
    };
    let partitions = files.iter().enumerate().map(part).collect();
    DriveConfig { drive_id: "layers".to_owned(), partitions, is_read_only: true, ..DriveConfig::default() }
}

fn files_of(sizes: &[u64]) -> Vec<NamedTempFile> {
    sizes.iter().enumerate().map(|(number, len)| file(number, *len)).collect()
}

impl Files {
    fn new(sizes: &[u64]) -> Self {
        let files = files_of(sizes);
        let config = config_of(&files);
        let mut rig = Rig::new(Box::new(Block::open(&config).unwrap()));
        let offered = rig.offered();
        rig.drive(offered);
        Self { rig, files, config }
    }

    fn size(&mut self) -> u64 {
        u64::from_le_bytes(self.rig.config(0, 8).try_into().unwrap()) * SECTOR
    }

    /// Reads into buffers of these lengths; returns the status and the bytes.
    fn read_into(&mut self, sector: u64, lens: &[u32]) -> (u8, Vec<u8>) {
        self.rig.free_all();
        let mut header = VIRTIO_BLK_T_IN.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        let mut chain = vec![self.rig.readable(&header)];
        chain.extend(lens.iter().map(|len| self.rig.writable(*len)).collect::<Vec<_>>());
        chain.push(self.rig.writable(1));
        self.rig.request(0, &chain);
        let status = self.rig.bytes(chain[chain.len() - 1])[0];
        let bytes = chain[1..chain.len() - 1].iter().flat_map(|buffer| self.rig.bytes(*buffer)).collect();
        (status, bytes)
    }

    /// The whole disk, as the guest reads it.
    fn dump(&mut self) -> Vec<u8> {
        const AT_ONCE: u64 = 64 << 10;
        let size = self.size();
        let mut disk = Vec::new();
        for offset in (0..size).step_by(AT_ONCE as usize) {
            let (status, bytes) = self.read_into(offset / SECTOR, &[AT_ONCE.min(size - offset) as u32]);
            assert_eq!(status, OK, "at {offset}");
            disk.extend(bytes);
        }
        disk
    }
}

/// One partition, as the table says.
#[derive(Debug)]
struct Found {
    range: std::ops::Range<usize>,
    name: String,
    unique: [u8; 16],
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// CRC-32 (UEFI 2.10, 5.3.1: as CCITT-32, seed and polynomial as in ISO 3309), bit by bit.
fn crc32(bytes: &[u8]) -> u64 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)));
    u64::from(!crc)
}

/// Reads the table whose header is at sector `own`, and checks all that 5.3 asks for.
fn parse(disk: &[u8], own: u64, other: u64) -> Vec<Found> {
    let last = disk.len() as u64 / SECTOR - 1;
    let header = &disk[(own * SECTOR) as usize..][..512];
    assert_eq!((&header[..8], number(header, 8, 4), number(header, 12, 4)), (&b"EFI PART"[..], 0x10000, 92));
    let without_crc = [&header[..16], &[0; 4], &header[20..92]].concat();
    assert_eq!(number(header, 16, 4), crc32(&without_crc));
    assert_eq!((number(header, 20, 4), number(header, 24, 8), number(header, 32, 8)), (0, own, other));
    let (first, usable) = (number(header, 40, 8), number(header, 48, 8));
    let entries_at = number(header, 72, 8);
    assert_eq!((first, usable, number(header, 80, 4), number(header, 84, 4)), (34, last - 33, 128, 128));
    assert_eq!(entries_at, if own == 1 { 2 } else { last - 32 });
    assert!(header[92..].iter().all(|byte| *byte == 0));
    let entries = &disk[(entries_at * SECTOR) as usize..][..128 * 128];
    assert_eq!(number(header, 88, 4), crc32(entries));
    let used = entries.chunks(128).filter(|entry| entry[..16] != [0; 16]);
    used.map(|entry| {
        let (from, to) = (number(entry, 32, 8), number(entry, 40, 8));
        assert!(first <= from && from <= to && to <= usable, "{from} to {to}");
        let name: Vec<u16> = entry[56..].chunks(2).map(|unit| number(unit, 0, 2) as u16).collect();
        let name = String::from_utf16(&name).unwrap().trim_end_matches('\0').to_owned();
        let range = (from * SECTOR) as usize..((to + 1) * SECTOR) as usize;
        Found { range, name, unique: entry[16..32].try_into().unwrap() }
    })
    .collect()
}

#[test]
fn every_file_is_a_partition() {
    let mut disk = Files::new(&SIZES);
    assert_ne!(disk.rig.offered() & 1 << VIRTIO_BLK_F_RO, 0);
    let bytes = disk.dump();
    assert_eq!(bytes.len() as u64, disk.size());
    let last = bytes.len() as u64 / SECTOR - 1;
    assert_eq!(bytes[510..512], [0x55, 0xaa]);
    assert_eq!((bytes[446], bytes[450], number(&bytes, 454, 4), number(&bytes, 458, 4)), (0, 0xee, 1, last));
    let (found, backup) = (parse(&bytes, 1, last), parse(&bytes, last, 1));
    assert_eq!(format!("{found:?}"), format!("{backup:?}"));
    assert_eq!(found.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["", "layer 1", "layer 2", "layer 3", "layer 4"]);
    let unique: std::collections::HashSet<_> = found.iter().map(|it| it.unique).collect();
    assert_eq!((found.len(), unique.len()), (SIZES.len(), SIZES.len()));
    let mut end = 34 * SECTOR as usize;
    for ((found, file), len) in found.iter().zip(&disk.files).zip(SIZES) {
        assert_eq!((found.range.start as u64 % ALIGN, found.range.len() as u64), (0, len.next_multiple_of(4096)));
        assert!(bytes[end..found.range.start].iter().all(|byte| *byte == 0), "the gap before {found:?}");
        let (inside, padding) = bytes[found.range.clone()].split_at(len as usize);
        assert!(inside == std::fs::read(file.path()).unwrap(), "{found:?}");
        assert!(padding.iter().all(|byte| *byte == 0), "{found:?}");
        end = found.range.end;
    }
}

/// util-linux reads the table as it is meant.
#[test]
fn sfdisk_finds_no_fault() {
    let mut disk = Files::new(&SIZES);
    let image = NamedTempFile::new().unwrap();
    image.as_file().write_all_at(&disk.dump(), 0).unwrap();
    let run = |option: &str| {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let done = std::process::Command::new("sfdisk").env("PATH", path).arg(option).arg(image.path()).output();
        let done = done.expect("sfdisk (Debian's package fdisk)");
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success() && done.stderr.is_empty(), "{text}{}", String::from_utf8_lossy(&done.stderr));
        text
    };
    assert!(run("--verify").contains("No errors detected"));
    let dump = run("--dump");
    let lines: Vec<_> = dump.lines().filter(|line| line.contains("start=")).collect();
    assert_eq!(lines.len(), SIZES.len(), "{dump}");
    for (place, (line, len)) in lines.iter().zip(SIZES).enumerate() {
        let size =
            format!("size={:>12}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4", len.next_multiple_of(4096) / SECTOR);
        assert!(line.contains(&size), "{line}");
        assert_eq!(line.contains(&format!("name=\"layer {place}\"")), place > 0, "{line}");
    }
}

/// Requests of every kind of shape, over every border, are pieces of the same disk.
#[test]
fn requests_go_over_borders() {
    let mut disk = Files::new(&SIZES);
    let whole = disk.dump();
    let part = |number: u64| number * ALIGN / SECTOR;
    for (sector, lens) in [
        (0, &[512][..]),
        (33, &[512, 512]),
        (part(1) - 2, &[700, 324, 1024]), // from the gap into a file, and its last bytes
        (part(1) + 7, &[512, 511, 513]),  // out of a file
        (part(2) - 1, &[1536]),           // zeros behind one byte, and the next file
        (part(4) - 3, &[1, 2047, 1, 511, 512]), // where one file ends the next one begins
        (part(3) - 4096, &[64 << 10]),
        (part(4) + 24, &[512; 12]),
    ] {
        let (status, bytes) = disk.read_into(sector, lens);
        assert_eq!(status, OK);
        assert!(bytes == whole[(sector * SECTOR) as usize..][..bytes.len()], "at sector {sector}");
    }
    // The last sector is the header's copy; there is nothing behind it.
    let last = disk.size() / SECTOR - 1;
    assert_eq!(disk.read_into(last, &[512]), (OK, whole[whole.len() - 512..].to_vec()));
    assert_eq!(disk.read_into(last, &[1024]).0, IOERR);
}

/// One request over three files and all that is between them, most of it to the same place in memory.
#[test]
fn a_request_may_have_several_files() {
    let mut disk = Files::new(&[5000; 3]);
    let header = [&VIRTIO_BLK_T_IN.to_le_bytes()[..], &[0; 4], &(ALIGN / SECTOR).to_le_bytes()].concat();
    let [header, head] = [disk.rig.readable(&header), disk.rig.writable(8192)];
    let [between, tail, status] = [65536, 8192, 1].map(|len| disk.rig.writable(len));
    let gaps = 2 * ALIGN - 8192;
    let mut chain = vec![header, head];
    chain.extend((0..gaps / 65536).map(|_| between));
    chain.extend([Buffer { len: (gaps % 65536) as u32, ..between }, tail, status]);
    assert_eq!(u64::from(disk.rig.request(0, &chain)), 2 * ALIGN + 8192 + 1);
    assert_eq!(disk.rig.bytes(status), [OK]);
    for (buffer, file) in [(head, &disk.files[0]), (tail, &disk.files[2])] {
        let mut wanted = std::fs::read(file.path()).unwrap();
        wanted.resize(8192, 0);
        assert!(disk.rig.bytes(buffer) == wanted);
    }
    assert_eq!(disk.rig.bytes(between), vec![0; 65536]);
    assert_eq!(disk.rig.counted("bytes_in"), 2 * ALIGN + 8192);
}

#[test]
fn nothing_can_be_written() {
    let mut disk = Files::new(&[8192]);
    for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &(ALIGN / SECTOR).to_le_bytes()].concat();
        let chain = [disk.rig.readable(&header), disk.rig.readable(&[0x55; 512]), disk.rig.writable(1)];
        disk.rig.request(0, &chain);
        assert_eq!(disk.rig.bytes(chain[2]), [IOERR]);
    }
    assert_eq!(std::fs::read(disk.files[0].path()).unwrap(), std::fs::read(file(0, 8192).path()).unwrap());
}

#[test]
fn a_file_that_shrank_is_an_error_where_it_is_missing() {
    let mut disk = Files::new(&[8192, 8192]);
    let whole = disk.dump();
    disk.files[0].as_file().set_len(4096).unwrap();
    let first = ALIGN / SECTOR;
    assert_eq!(disk.read_into(first, &[4096]), (OK, whole[ALIGN as usize..][..4096].to_vec()));
    assert_eq!(disk.read_into(first, &[4608]).0, IOERR);
    assert_eq!(disk.read_into(first + 8, &[512]).0, IOERR);
    assert_eq!(disk.read_into(2 * first, &[8192]), (OK, whole[2 * ALIGN as usize..][..8192].to_vec()));
}

#[test]
fn several_disks_share_the_files_and_nobody_writes_them() {
    let disk = Files::new(&[8192, 512]);
    let second = Block::open(&disk.config).map(drop).map_err(|error| error.to_string());
    assert_eq!(second, Ok(()));
    let writer = DriveConfig { path_on_host: Some(disk.files[1].path().to_owned()), ..DriveConfig::default() };
    let refused = Block::open(&writer).map(drop).unwrap_err().to_string();
    assert!(refused.contains("another process uses the image"), "{refused}");
    drop(disk.rig);
    let writer = Block::open(&writer).unwrap();
    let refused = Block::open(&disk.config).map(drop).unwrap_err().to_string();
    let place = format!("open disk 'layers' at {}: another process has", disk.files[1].path().display());
    assert!(refused.starts_with(&place), "{refused}");
    drop(writer);
}

#[test]
fn what_can_not_be_a_partition_is_named() {
    let files = files_of(&[512, 0]);
    let refused = |config: &DriveConfig| Block::open(config).map(drop).unwrap_err().to_string();
    let path = files[1].path().display();
    assert_eq!(
        refused(&config_of(&files)),
        format!("open disk 'layers' at {path}: the file is empty; a partition has at least one byte")
    );
    let mut config = config_of(&files[..1]);
    config.partitions[0].path_on_host = "/dev/null".into();
    assert!(refused(&config).ends_with("/dev/null: it is a character device, not a raw image file or a block device"));
    let none = DriveConfig { drive_id: "d".to_owned(), ..DriveConfig::default() };
    assert_eq!(refused(&none), "open disk 'd': neither path_on_host nor partitions are given");
}

/// Limits and files change while the disk is used; what it is made of does not.
#[test]
fn its_limits_and_files_change() {
    let mut disk = Files::new(&[512]);
    let mut config = disk.config.clone();
    let bucket = TokenBucketConfig { size: 1 << 20, refill_time: 100, one_time_burst: None };
    config.rate_limiter = Some(RateLimiterConfig { bandwidth: Some(bucket), ops: None });
    disk.rig.update(&DeviceConfig::Block(config.clone()), &["rate_limiter"]).unwrap();
    assert_eq!(disk.read_into(0, &[512]).0, OK);
    let other = file(7, 2 * ALIGN);
    let before = disk.size();
    config.partitions = vec![PartitionConfig { path_on_host: other.path().to_owned(), name: None }];
    disk.rig.update(&DeviceConfig::Block(config.clone()), &["partitions"]).unwrap();
    assert_ne!(disk.size(), before);
    let whole = disk.dump();
    let found = parse(&whole, 1, whole.len() as u64 / SECTOR - 1);
    assert!(whole[found[0].range.clone()] == std::fs::read(other.path()).unwrap());
    config.path_on_host = Some(Path::new("/x").to_owned());
    let refused = disk.rig.update(&DeviceConfig::Block(config), &["path_on_host"]).unwrap_err().to_string();
    assert_eq!(
        refused,
        "path_on_host can not be changed while the VM exists; what can: drive_id, partitions, rate_limiter"
    );
}

#[test]
fn the_longest_name_and_most_files_fit() {
    let file = file(0, 512);
    let part = PartitionConfig { path_on_host: file.path().to_owned(), name: Some("é".repeat(NAME_MAX)) };
    let partitions = vec![part; config::MAX_PARTITIONS];
    let config = DriveConfig { drive_id: "d".to_owned(), partitions, is_read_only: true, ..DriveConfig::default() };
    let mut rig = Rig::new(Box::new(Block::open(&config).unwrap()));
    let offered = rig.offered();
    rig.drive(offered);
    let mut disk = Files { rig, files: vec![file], config };
    let (status, mut bytes) = disk.read_into(0, &[34 * 512]);
    assert_eq!(status, OK);
    bytes.resize(disk.size() as usize, 0);
    let found = parse(&bytes, 1, bytes.len() as u64 / SECTOR - 1);
    assert_eq!(found.len(), config::MAX_PARTITIONS);
    assert!(found.iter().all(|it| it.name == "é".repeat(36)));
}
