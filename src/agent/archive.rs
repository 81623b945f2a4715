//! Files of a container as a tar, out of it and into it. A thread in the container's mount namespace does it: whatever
//! links the container has made, they lead nowhere outside of it.

use std::fs;
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use protocol::frame::{Kind, MOST_DATA};
use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::apart::apart;
use crate::connection::{Connection, Incoming};
use crate::users;
use crate::{Doing, Fault};

/// Sends what is at `path`; the tar's names begin with the path's last part.
pub fn get(connection: &Connection, pid: u32, path: &str) -> Result<(), Fault> {
    let path = absolute(path)?;
    inside(pid, || {
        let pack = || -> io::Result<()> {
            let facts = fs::symlink_metadata(&path)?;
            let name = PathBuf::from(path.file_name().unwrap_or(".".as_ref()));
            let mut archive = tar::Builder::new(BufWriter::with_capacity(MOST_DATA, Frames(connection)));
            archive.follow_symlinks(false);
            match facts.is_dir() {
                true => archive.append_dir_all(&name, &path)?,
                false => archive.append_path_with_name(&path, &name)?,
            }
            archive.into_inner()?.flush()
        };
        pack().doing(|| format!("read {}", path.display()))
    })
}

/// Unpacks what comes into the directory `path`, or beside it under its name where there is none.
pub fn put(incoming: &mut Incoming<'_>, pid: u32, path: &str) -> Result<(), Fault> {
    let path = absolute(path)?;
    let owner = users::root_of(pid);
    inside(pid, || {
        users::write_as(owner);
        let mut from = Pieces { incoming, left: Cursor::default(), ended: false };
        let unpack = |from: &mut Pieces<'_, '_>| -> io::Result<()> {
            let (into, name) = match (fs::metadata(&path), path.parent(), path.file_name()) {
                (Ok(facts), ..) if facts.is_dir() => (path.as_path(), None),
                (_, Some(parent), Some(name)) if parent.is_dir() => (parent, Some(name)),
                _ => return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such directory")),
            };
            let mut archive = tar::Archive::new(from);
            for entry in archive.entries()? {
                let mut entry = entry?;
                entry.set_preserve_permissions(true);
                let Some(name) = name else {
                    entry.unpack_in(into)?;
                    continue;
                };
                // The first part of each name becomes the one that is wanted.
                let told = entry.path()?.into_owned();
                let rest = told.components().skip(1).filter(|part| matches!(part, Component::Normal(_)));
                entry.unpack(into.join(name).join(rest.collect::<PathBuf>()).components().collect::<PathBuf>())?;
            }
            Ok(())
        };
        let done = unpack(&mut from).doing(|| format!("write to {}", path.display()));
        // The host is heard to the end, so that it hears the answer.
        let drained = io::copy(&mut from, &mut io::sink()).doing(|| "read from the host".to_owned());
        done.and(drained.map(drop))
    })
}

fn absolute(path: &str) -> Result<PathBuf, Fault> {
    let path = Path::new(path);
    let plain = path.has_root() && path.components().all(|part| !matches!(part, Component::ParentDir));
    if plain { Ok(path.to_owned()) } else { Err(format!("{} is not a path from / on", path.display())) }
}

/// Runs `what` on a thread that sees the container's files and no others.
fn inside<T: Send>(pid: u32, what: impl FnOnce() -> Result<T, Fault> + Send) -> Result<T, Fault> {
    let entering = || "enter the container's mount namespace".to_owned();
    let namespace = open(format!("/proc/{pid}/ns/mnt"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let namespace = namespace.doing(entering)?;
    apart(|| {
        own_directories().doing(entering)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount)).doing(entering)?;
        what()
    })
}

/// Gives this thread a root and a working directory of its own, which setns(2) wants.
#[allow(unsafe_code)] // unshare(2)
fn own_directories() -> rustix::io::Result<()> {
    // SAFETY: only the thread's view of file system attributes is separated (CLONE_FS); no descriptor or memory changes.
    unsafe { unshare_unsafe(UnshareFlags::FS) }
}

/// Writes go to the host.
struct Frames<'a>(&'a Connection);

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = bytes.get(..bytes.len().min(MOST_DATA)).unwrap_or_default();
        self.0.data(Kind::Stdout, part).map_err(io::Error::other)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what the host sends, until its empty piece.
struct Pieces<'a, 'b> {
    incoming: &'a mut Incoming<'b>,
    left: Cursor<Vec<u8>>,
    ended: bool,
}

impl Read for Pieces<'_, '_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.left.read(to)?;
            if count > 0 || self.ended || to.is_empty() {
                return Ok(count);
            }
            let frame = self.incoming.next_frame().map_err(io::Error::other)?;
            let frame = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
            if frame.kind == Kind::Stdin {
                self.ended = frame.body.is_empty();
                self.left = Cursor::new(frame.body);
            }
        }
    }
}
