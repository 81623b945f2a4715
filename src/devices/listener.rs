//! UNIX sockets with a name in the file system: made, taken over from a process that has ended, and gone with who made them.
//! Control thread.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use crate::lock;

/// A socket that listens and never blocks. Dropping it takes its name away.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the name, so that only our own is removed.
    file: Option<(u64, u64)>,
}

/// The socket could not be made; what is wrong with its path, without the path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ListenError(String);

/// Takes what is wrong as it is.
fn wrong(why: impl Display) -> ListenError {
    ListenError(why.to_string())
}

impl Listener {
    /// Listens at `path`. A socket that nobody listens at any more is replaced: under a lock on its directory, so that of
    /// several who find it so one gets it.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let _lock = lock_directory(path).map_err(|error| ListenError(format!("lock its directory: {error}")))?;
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                make_room(path)?;
                let removed = fs::remove_file(path).and_then(|()| UnixListener::bind(path));
                removed.map_err(|error| ListenError(format!("replace the socket of a process that has ended: {error}")))
            }
            made => made.map_err(wrong),
        }?;
        socket.set_nonblocking(true).map_err(wrong)?;
        Ok(Self { socket, path: path.to_owned(), file: file(path) })
    }

    /// The next connection, if one waits; it never blocks, either.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may be another's by now.
        if self.file.is_some() && self.file == file(&self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of what has this name.
fn file(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Whether what is at `path` is a socket that nobody listens at.
fn make_room(path: &Path) -> Result<(), ListenError> {
    if !fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        return Err(wrong("a file that is no socket is there; remove it or choose another path"));
    }
    match connect(path).map_err(|error| (error.kind(), error)) {
        Err((ErrorKind::ConnectionRefused, _)) => Ok(()),
        // A listener with a full backlog says EAGAIN: it lives.
        Ok(_) | Err((ErrorKind::WouldBlock, _)) => {
            Err(wrong("another process listens there; end it or choose another path"))
        }
        Err((_, error)) => Err(ListenError(format!("a socket is there that can not be replaced: {error}"))),
    }
}

/// Holds the directory of `path` (flock(2)) for as long as the file lives. Nothing where it can not be read: who can not list
/// it can still make a socket there.
fn lock_directory(path: &Path) -> io::Result<Option<File>> {
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(directory) = File::open(directory) else { return Ok(None) };
    match lock::lock(&directory) {
        Ok(true) => Ok(Some(directory)),
        Ok(false) => Err(io::Error::other(format!("another process has held it for {:?}", lock::PATIENCE))),
        // A file system without locks.
        Err(_) => Ok(None),
    }
}

/// Connects without ever waiting, which std's own connect does where the backlog is full.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (Several at once: the vsock's tests.)
    #[test]
    fn what_is_no_stale_socket_stays() {
        let room = tempfile::TempDir::new().unwrap();
        let path = room.path().join("a.sock");
        let refused = |path: &Path| Listener::bind(path).unwrap_err().to_string();
        std::fs::write(&path, "text").unwrap();
        assert!(refused(&path).contains("no socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"text");
        std::fs::remove_file(&path).unwrap();
        assert!(refused(&room.path().join("no/a.sock")).contains("No such file"));
        let first = Listener::bind(&path).unwrap();
        while connect(&path).is_ok() {}
        assert!(refused(&path).contains("another process listens there"), "its backlog is full, and it lives");
        std::fs::remove_file(&path).unwrap();
        let second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists(), "the name is the second one's");
        drop(second);
        assert!(!path.exists());
    }
}
