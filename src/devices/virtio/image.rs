//! Files of the host whose bytes a guest gets: what they may be, who else uses them, and what to say when they can not be
//! opened. The control thread opens them.
#![allow(unsafe_code)] // fcntl(2)

use std::fs::{File, FileType};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::OpenError;

/// A file that is being opened, for the words of errors.
pub struct Opening<'a> {
    /// What it becomes: "disk".
    pub device: &'static str,
    /// The device's id.
    pub id: &'a str,
    /// The file.
    pub path: &'a Path,
    /// How the user says that it is only read: a key and a flag.
    pub read_only_by: &'static str,
}

impl Opening<'_> {
    /// It failed: `why`.
    pub fn error(&self, why: &str) -> OpenError {
        OpenError::new(format!("open {} '{}' at {}: {why}", self.device, self.id, self.path.display()))
    }

    /// The host's kernel refused.
    pub fn refused(&self, error: &io::Error) -> OpenError {
        self.error(&cause(error))
    }

    /// Looks at the file, before it is opened: the open of a FIFO would wait for its other end.
    pub fn kind(&self) -> Result<FileType, OpenError> {
        std::fs::metadata(self.path).map(|found| found.file_type()).map_err(|error| self.refused(&error))
    }

    /// Takes an open-file-description lock on the whole file (fcntl(2)): exclusive for a writer, shared for readers. It
    /// is advisory, and goes when the last descriptor and the last mapping of this open file do.
    pub fn lock(&self, file: &File, read_only: bool) -> Result<(), OpenError> {
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
                Err(self.error("another process has the image open for writing; give each VM its own copy"))
            }
            Some(libc::EAGAIN | libc::EACCES) => Err(self.error(&format!(
                "another process uses the image; give each VM its own copy, or let all of them only read it ({})",
                self.read_only_by
            ))),
            _ => {
                let (device, id) = (self.device, self.id);
                tracing::warn!(device, id, "the image is used without a lock: its file system has none ({error})");
                Ok(())
            }
        }
    }
}

/// What a file is when it is neither a regular file nor a block device.
pub fn special(kind: FileType) -> Option<&'static str> {
    match () {
        () if kind.is_file() || kind.is_block_device() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_char_device() => Some("a character device"),
        () if kind.is_fifo() => Some("a named pipe"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("a special file"),
    }
}

/// The system's own words, without the number that io::Error adds.
pub fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
