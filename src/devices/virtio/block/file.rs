//! The file behind a disk: a raw image or a block device of the host.
//!
//! The control thread opens and locks it; the disk's worker reads and writes it, straight from and to guest memory.
#![allow(unsafe_code)] // preadv(2), pwritev(2), fcntl(2) and ioctl(2)

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::config::DriveConfig;
use crate::memory::GuestRam;
use crate::virtio::OpenError;
use crate::virtio::chain::Segment;
use crate::virtio::pieces::{self, Direction, IOV_MAX, Pieces};

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
    file: File,
    len: u64,
    topology: Option<Topology>,
    pieces: Pieces,
}

impl DiskFile {
    /// Opens and locks the image of `config`.
    pub fn open(config: &DriveConfig) -> Result<Self, OpenError> {
        let opening = Opening { id: &config.drive_id, path: &config.path_on_host };
        let (id, path) = (opening.id, opening.path);
        // Before the open: that of a FIFO would wait for its other end.
        let kind = std::fs::metadata(path).map_err(|error| opening.refused(&error))?.file_type();
        if let Some(what) = unusable(kind) {
            return Err(opening.error(&format!("it is {what}, not a raw image file or a block device")));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(!config.is_read_only)
            .open(path)
            .map_err(|error| opening.not_openable(&error, config.is_read_only))?;
        lock(&file, config.is_read_only, &opening)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(|error| opening.refused(&error))?;
        let len = bytes.saturating_sub(bytes % SECTOR);
        if len == 0 {
            return Err(opening.error(match bytes {
                0 => "the file is empty; a disk image has at least one sector of 512 bytes",
                _ => "the file is smaller than one sector of 512 bytes",
            }));
        }
        if len != bytes {
            tracing::warn!(
                disk = id,
                "the image's size is not a multiple of 512 bytes: the guest does not see its last {} bytes",
                bytes.saturating_sub(len)
            );
        }
        let topology = kind.is_block_device().then(|| topology(&file)).flatten();
        Ok(Self { file, len, topology, pieces: Pieces::default() })
    }

    /// Bytes that the guest sees: a multiple of [`SECTOR`], at least one.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// What the host's block device says of itself; nothing for a file.
    pub fn topology(&self) -> Option<Topology> {
        self.topology
    }

    /// Makes what was written so far safe (fdatasync(2)).
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Moves all bytes of `segments` from or to the file at `offset`, or fails; it may have moved some of them then.
    pub fn transfer(
        &mut self,
        direction: Direction,
        memory: &GuestRam,
        segments: impl Iterator<Item = Segment> + Clone,
        offset: u64,
    ) -> io::Result<()> {
        self.pieces.clear();
        let collected = self.pieces.add(direction, memory, segments.clone());
        let moved = collected.and_then(|()| self.move_all(direction, offset));
        self.pieces.clear();
        if direction == Direction::Read {
            pieces::mark_dirty(memory, segments); // some of it may have arrived even where the read failed
        }
        moved
    }

    fn move_all(&mut self, direction: Direction, offset: u64) -> io::Result<()> {
        let mut offset = libc::off_t::try_from(offset).map_err(|_| pieces::bad_address())?;
        let mut rest = self.pieces.as_mut_slice();
        while !rest.is_empty() {
            let count = libc::c_int::try_from(rest.len().min(IOV_MAX)).unwrap_or(0);
            let fd = self.file.as_raw_fd();
            // SAFETY: the first `count` entries of `rest` are ranges of guest RAM that vm-memory checked as they were added;
            // the RAM stays mapped while `memory` is borrowed by our caller, and no Rust reference into it exists.
            let moved = unsafe {
                match direction {
                    Direction::Read => libc::preadv(fd, rest.as_ptr(), count, offset),
                    Direction::Write => libc::pwritev(fd, rest.as_ptr(), count, offset),
                }
            };
            let Ok(moved) = usize::try_from(moved) else {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            };
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into()); // the file shrank
            }
            offset = offset.saturating_add(libc::off_t::try_from(moved).unwrap_or(libc::off_t::MAX));
            rest = pieces::advance(rest, moved);
        }
        Ok(())
    }
}

/// What a file is when it can not be a disk.
fn unusable(kind: std::fs::FileType) -> Option<&'static str> {
    match () {
        () if kind.is_file() || kind.is_block_device() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_char_device() => Some("a character device"),
        () if kind.is_fifo() => Some("a named pipe"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("a special file"),
    }
}

/// Takes an open-file-description lock on the whole file (fcntl(2)): exclusive for a writer, shared for readers. It is
/// advisory and goes with the file descriptor.
fn lock(file: &File, read_only: bool, opening: &Opening<'_>) -> Result<(), OpenError> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    let request = libc::flock {
        l_type: i16::try_from(kind).unwrap_or(0),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and F_OFD_SETLK only reads the struct, which lives across the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) if read_only => {
            Err(opening.error("another process has the image open for writing; give each VM its own copy"))
        }
        Some(libc::EAGAIN | libc::EACCES) => Err(opening.error(
            "another process uses the image; give each VM its own copy, or let all of them only read it \
             (is_read_only, --disk PATH,ro)",
        )),
        _ => {
            tracing::warn!(disk = opening.id, "the image is used without a lock: its file system has none ({error})");
            Ok(())
        }
    }
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

/// What errors of opening are about.
struct Opening<'a> {
    id: &'a str,
    path: &'a Path,
}

impl Opening<'_> {
    fn error(&self, why: &str) -> OpenError {
        OpenError::new(format!("open disk '{}' at {}: {why}", self.id, self.path.display()))
    }

    fn refused(&self, error: &io::Error) -> OpenError {
        self.error(&cause(error))
    }

    fn not_openable(&self, error: &io::Error, read_only: bool) -> OpenError {
        let cure = match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM | libc::EROFS) if !read_only => {
                "; a disk that the guest need not write can be opened read-only (is_read_only, --disk PATH,ro)"
            }
            Some(libc::EBUSY) => "; the host itself uses it (is it mounted?)",
            _ => "",
        };
        self.error(&format!("{}{cure}", cause(error)))
    }
}

/// The system's own words, without the number that io::Error adds.
fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::virtio::block::config::{CacheType, IoEngine};

    fn config(path: &Path, is_read_only: bool) -> DriveConfig {
        DriveConfig {
            drive_id: "rootfs".to_owned(),
            path_on_host: path.to_owned(),
            is_root_device: false,
            is_read_only,
            cache_type: CacheType::Writeback,
            io_engine: IoEngine::Sync,
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
        let opening = Opening { id: "d", path: Path::new("/x") };
        let text =
            |number, read_only| opening.not_openable(&io::Error::from_raw_os_error(number), read_only).to_string();
        assert_eq!(
            text(libc::EACCES, false),
            "open disk 'd' at /x: Permission denied; a disk that the guest need not write can be opened read-only \
             (is_read_only, --disk PATH,ro)"
        );
        assert_eq!(text(libc::EACCES, true), "open disk 'd' at /x: Permission denied");
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
