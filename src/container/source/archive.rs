//! Opening an archive: compressed ones, and those that come through a pipe, are first put into a file without a name.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::Path;

use super::docker::{self, DockerArchive};
use super::layout::Layout;
use super::tarball::Tarball;
use super::{Source, SourceError};
use crate::layer::{Compression, Uncompressed};
use crate::reference::Place;
use crate::store::{Store, StoreError};

/// A tar of an OCI layout.
pub fn oci(store: &Store, place: &Place) -> Result<Layout, SourceError> {
    Layout::tar(open(store, &place.path)?, place)
}

/// What `docker save` writes.
pub fn docker(store: &Store, place: &Place) -> Result<DockerArchive, SourceError> {
    DockerArchive::open(open(store, &place.path)?, place)
}

/// A tar of either kind on standard input. What has both (docker save since version 25) has better names in Docker's part.
pub fn stdin(store: &Store) -> Result<Box<dyn Source>, SourceError> {
    let place = Place { path: "standard input".into(), selector: None };
    let fault = |error: io::Error| SourceError::io("read", &place.path, error);
    let input = io::stdin().as_fd().try_clone_to_owned().map(File::from).map_err(fault)?;
    let is_file = input.metadata().map_err(fault)?.is_file() && (&input).stream_position().map_err(fault)? == 0;
    let input = if is_file { input } else { spool(store, input, &place.path)? };
    let tar = Tarball::open_file(plain(store, input, &place.path)?, &place.path)?;
    Ok(if tar.has(docker::LIST) {
        Box::new(DockerArchive::open(tar, &place)?)
    } else {
        Box::new(Layout::tar(tar, &place)?)
    })
}

fn open(store: &Store, path: &Path) -> Result<Tarball, SourceError> {
    let file = File::open(path).map_err(|error| SourceError::io("open", path, error))?;
    let kind = file.metadata().map_err(|error| SourceError::io("look at", path, error))?.file_type();
    if kind.is_dir() {
        return Err(SourceError::form(path, "this is a directory; oci: reads an OCI layout"));
    }
    let file = if kind.is_file() { file } else { spool(store, file, path)? };
    Tarball::open_file(plain(store, file, path)?, path)
}

/// The tar itself, if it is compressed.
fn plain(store: &Store, file: File, path: &Path) -> Result<File, SourceError> {
    let fault = |error: io::Error| SourceError::io("read", path, error);
    let mut magic = Vec::new();
    (&file).take(4).read_to_end(&mut magic).map_err(fault)?;
    (&file).seek(SeekFrom::Start(0)).map_err(fault)?;
    match Compression::of_first_bytes(&magic) {
        _ if magic.is_empty() => Err(SourceError::form(path, "this is empty; it should be a tar with an image")),
        Compression::None => Ok(file),
        kind => spool(store, Uncompressed::new(file, kind, u64::MAX).map_err(fault)?, path),
    }
}

/// Puts all of it into a file without a name, as far as the store has room.
fn spool(store: &Store, from: impl Read, path: &Path) -> Result<File, SourceError> {
    let room = store.make_room()?;
    let mut file = store.scratch()?;
    let fault = |error| SourceError::io("read", path, error);
    let size = io::copy(&mut from.take(room.saturating_add(1)), &mut file).map_err(fault)?;
    if size > room {
        return Err(StoreError::Full { store: store.path().to_owned(), size, room }.into());
    }
    file.rewind().map_err(fault)?;
    Ok(file)
}
