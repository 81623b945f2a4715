//! The file behind a disk: a raw image or a block device of the host, or several files that are its partitions.
//!
//! The control thread opens and locks it here; `transfer.rs` is what the disk's worker does with it.
#![allow(unsafe_code)] // ioctl(2) and statx(2)

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::config::DriveConfig;
use super::parts::Parts;
use super::transfer::{Alignment, Bounce};
use crate::virtio::OpenError;
use crate::virtio::image::{Opening, cause, special};
use crate::virtio::pieces::Pieces;

/// Bytes of a sector of the virtio-block interface (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

/// linux/fs.h: logical and physical sector size, and the preferred sizes of requests.
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKIOMIN: libc::Ioctl = 0x1278;
const BLKIOOPT: libc::Ioctl = 0x1279;
const BLKPBSZGET: libc::Ioctl = 0x127b;

/// What a block device of the host says of itself, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Logical block size.
    pub logical: u32,
    /// Physical block size: a multiple of the logical one.
    pub physical: u32,
    /// Preferred smallest request.
    pub io_min: u32,
    /// Preferred request; 0 when it has no opinion.
    pub io_opt: u32,
}

/// An open, locked disk image.
pub struct DiskFile {
    /// The image; of a disk of several files, what is in none of them.
    pub(super) file: File,
    /// The files that are partitions.
    pub(super) parts: Option<Parts>,
    len: u64,
    topology: Option<Topology>,
    pub(super) is_block_device: bool,
    /// O_DIRECT, and what it asks for.
    pub(super) direct: Option<Alignment>,
    pub(super) pieces: Pieces,
    pub(super) bounce: Bounce,
}

impl DiskFile {
    /// Opens and locks the image of `config`.
    pub fn open(config: &DriveConfig) -> Result<Self, OpenError> {
        let file = Self::open_unlocked(config)?;
        file.lock(config)?;
        Ok(file)
    }

    /// Takes the lock of the image of `config`, which this is.
    pub fn lock(&self, config: &DriveConfig) -> Result<(), OpenError> {
        match (&self.parts, &config.path_on_host) {
            (Some(parts), _) => parts.lock(config),
            (None, Some(path)) => opening(&config.drive_id, path).lock(&self.file, config.is_read_only),
            (None, None) => Err(no_file(config)),
        }
    }

    /// Opens the image of `config`; nobody may use it before it is locked.
    pub fn open_unlocked(config: &DriveConfig) -> Result<Self, OpenError> {
        let (pieces, bounce) = (Pieces::default(), Bounce::default());
        if !config.partitions.is_empty() {
            let (parts, file, len) = Parts::open(config)?;
            let parts = Some(parts);
            return Ok(Self { file, parts, len, topology: None, is_block_device: false, direct: None, pieces, bounce });
        }
        let path = config.path_on_host.as_ref().ok_or_else(|| no_file(config))?;
        let opening = opening(&config.drive_id, path);
        let (file, kind, bytes) = open_image(&opening, config)?;
        let len = bytes.saturating_sub(bytes % SECTOR);
        if len == 0 {
            return Err(opening.error(match bytes {
                0 => "the file is empty; a disk image has at least one sector of 512 bytes",
                _ => "the file is smaller than one sector of 512 bytes",
            }));
        }
        if len != bytes {
            tracing::warn!(
                disk = opening.id,
                "the image's size is not a multiple of 512 bytes: the guest does not see its last {} bytes",
                bytes.saturating_sub(len)
            );
        }
        let topology = kind.is_block_device().then(|| topology(&file)).flatten();
        let direct = config.direct.then(|| alignment(&file, topology));
        let is_block_device = kind.is_block_device();
        Ok(Self { file, parts: None, len, topology, is_block_device, direct, pieces, bounce })
    }

    /// Whether both are the same file of the host.
    pub fn is_same(&self, other: &Self) -> io::Result<bool> {
        let (one, other) = (self.file.metadata()?, other.file.metadata()?);
        Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
    }

    /// The same file has another size now, that of `newer`.
    pub fn resize(&mut self, newer: &Self) {
        self.len = newer.len;
    }

    /// Bytes that the guest sees: a multiple of [`SECTOR`], at least one.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// What the host's block device says of itself; nothing for a file.
    pub fn topology(&self) -> Option<Topology> {
        self.topology
    }

    /// Bytes of the smallest request that is not slow.
    pub fn block_size(&self) -> u32 {
        let direct = self.direct.and_then(|needs| u32::try_from(needs.offset).ok()).unwrap_or(512);
        self.topology.map_or(direct, |it| it.logical.max(direct))
    }

    /// Sectors of 512 bytes that the host gives back as one.
    pub fn discard_sectors(&self) -> u32 {
        const PAGE: u32 = 4096;
        self.topology.map_or(PAGE, |it| it.physical.max(it.io_min).min(1 << 20)) / 512
    }

    /// Makes what was written so far safe (fdatasync(2)).
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Opens a file of `config`: what it is, and how many bytes it has.
pub(super) fn open_image(opening: &Opening<'_>, config: &DriveConfig) -> Result<(File, FileType, u64), OpenError> {
    let kind = opening.kind()?;
    if let Some(what) = special(kind) {
        return Err(opening.error(&format!("it is {what}, not a raw image file or a block device")));
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(!config.is_read_only)
        .custom_flags(if config.direct { libc::O_DIRECT } else { 0 })
        .open(opening.path)
        .map_err(|error| not_openable(opening, &error, config))?;
    let bytes = file.seek(SeekFrom::End(0)).map_err(|error| opening.refused(&error))?;
    Ok((file, kind, bytes))
}

/// The configuration names no file.
fn no_file(config: &DriveConfig) -> OpenError {
    OpenError::new(format!("open disk '{}': neither path_on_host nor partitions are given", config.drive_id))
}

/// Asks a block device for its sizes; nothing when it does not answer sensibly.
fn topology(file: &File) -> Option<Topology> {
    let ask = |request: libc::Ioctl| -> Option<u32> {
        let mut value: libc::c_uint = 0;
        // SAFETY: these four requests store one int, for which `value` has room, through the pointer.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut value) };
        (done == 0).then_some(value)
    };
    let logical = ask(BLKSSZGET)?;
    let physical = ask(BLKPBSZGET)?;
    let sane = logical >= 512 && logical.is_power_of_two() && physical.is_power_of_two() && physical >= logical;
    sane.then(|| Topology { logical, physical, io_min: ask(BLKIOMIN).unwrap_or(0), io_opt: ask(BLKIOOPT).unwrap_or(0) })
}

/// What O_DIRECT asks for (statx(2), Linux 6.1); elsewhere what no file system is known to exceed.
fn alignment(file: &File, topology: Option<Topology>) -> Alignment {
    let guess = u64::from(topology.map_or(4096, |it| it.logical));
    // SAFETY: all zeros is a valid struct of integers.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, and the kernel fills the struct behind the pointer.
    let done = unsafe {
        let (fd, path) = (file.as_raw_fd(), c"".as_ptr());
        libc::statx(fd, path, libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut found)
    };
    let (memory, offset) = (u64::from(found.stx_dio_mem_align), u64::from(found.stx_dio_offset_align));
    let sane = |bytes: u64| bytes.is_power_of_two() && bytes <= 4096;
    match done == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0 && sane(memory) && sane(offset) {
        true => Alignment { memory, offset: offset.max(SECTOR) },
        false => Alignment { memory: guess, offset: guess },
    }
}

/// Says why the file of `config` could not be opened, with the cure where one is known.
fn not_openable(opening: &Opening<'_>, error: &io::Error, config: &DriveConfig) -> OpenError {
    let cure = match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if !config.is_read_only => {
            "; a disk that the guest need not write can be opened read-only (is_read_only, --disk PATH,ro)"
        }
        Some(libc::EINVAL) if config.direct => "; its file system has no O_DIRECT (direct, --disk PATH,direct)",
        Some(libc::EBUSY) => "; the host itself uses it (is it mounted?)",
        _ => "",
    };
    opening.error(&format!("{}{cure}", cause(error)))
}

/// A disk's file, for the words of errors.
pub(super) fn opening<'a>(id: &'a str, path: &'a Path) -> Opening<'a> {
    Opening { device: "disk", id, path, read_only_by: "is_read_only, --disk PATH,ro" }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn config(path: &Path, is_read_only: bool) -> DriveConfig {
        DriveConfig {
            drive_id: "rootfs".to_owned(),
            path_on_host: Some(path.to_owned()),
            is_read_only,
            ..DriveConfig::default()
        }
    }

    fn image(len: u64) -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(len).unwrap();
        image
    }

    fn refusal(path: &Path, read_only: bool) -> String {
        DiskFile::open(&config(path, read_only)).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn says_in_words_what_can_not_be_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let (empty, tiny) = (image(0), image(511));
        let cases = [
            (at("missing"), "No such file or directory"),
            (at("missing/too"), "No such file or directory"),
            (dir.path().to_owned(), "it is a directory, not a raw image file or a block device"),
            (at("socket"), "it is a socket, not a raw image file or a block device"),
            ("/dev/null".into(), "it is a character device, not a raw image file or a block device"),
            (empty.path().into(), "the file is empty; a disk image has at least one sector of 512 bytes"),
            (tiny.path().into(), "the file is smaller than one sector of 512 bytes"),
        ];
        for (path, why) in cases {
            assert_eq!(refusal(&path, false), format!("open disk 'rootfs' at {}: {why}", path.display()));
        }
    }

    #[test]
    fn a_refused_open_names_the_cure() {
        let opening = opening("d", Path::new("/x"));
        let text = |number, read_only| {
            let config = DriveConfig { direct: true, ..config(Path::new("/x"), read_only) };
            not_openable(&opening, &io::Error::from_raw_os_error(number), &config).to_string()
        };
        assert_eq!(
            text(libc::EACCES, false),
            "open disk 'd' at /x: Permission denied; a disk that the guest need not write can be opened read-only \
             (is_read_only, --disk PATH,ro)"
        );
        assert_eq!(text(libc::EACCES, true), "open disk 'd' at /x: Permission denied");
        assert!(text(libc::EINVAL, false).contains("has no O_DIRECT"));
        assert!(text(libc::EBUSY, false).ends_with("; the host itself uses it (is it mounted?)"));
    }

    #[test]
    fn leaves_out_a_broken_sector_at_the_end() {
        let image = image(1024 + 511);
        assert_eq!(DiskFile::open(&config(image.path(), false)).unwrap().size(), 1024);
    }

    #[test]
    fn one_writer_or_many_readers() {
        let image = image(512);
        let writer = DiskFile::open(&config(image.path(), false)).unwrap();
        assert!(refusal(image.path(), false).contains("another process uses the image; give each VM its own copy"));
        assert!(refusal(image.path(), true).contains("another process has the image open for writing"));
        drop(writer);
        let readers = [true, true].map(|ro| DiskFile::open(&config(image.path(), ro)).unwrap());
        assert!(refusal(image.path(), false).contains("is_read_only"));
        drop(readers);
        DiskFile::open(&config(image.path(), false)).unwrap();
    }
}
