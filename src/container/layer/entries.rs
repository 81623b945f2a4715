//! The entries of a tar, one after the other, by the parser of the crate `tar_core`, which does no I/O: here is what reads
//! as much of the stream as it asks for, and not more than a header may have.

use std::io::{self, BufRead, Read};

use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, SparseEntry};

use super::error::text;
use super::{Fault, LayerError};

/// What headers, contents and the end are multiples of.
const BLOCK: u64 = 512;
/// Most bytes of one entry's headers, extended ones and a sparse file's map among them.
const HEAD_MAX: usize = 4 << 20;
/// Most bytes of a path: PATH_MAX.
const PATH_MAX: u32 = 4096;
/// Most pieces of a sparse file.
const PIECES_MAX: usize = 1 << 15;
/// From this size on, headers are read half as much again ahead.
const AHEAD: usize = 8 << 10;

/// Calls `take` for each entry of the tar, in its order; what it leaves of the contents is skipped. Stops after the tar's
/// end, which is before the stream's.
pub fn each<R: BufRead>(
    input: R,
    mut take: impl FnMut(&ParsedEntry<'_>, &mut Contents<'_, R>) -> Result<(), LayerError>,
) -> Result<(), LayerError> {
    let limits = Limits { max_path_len: Some(PATH_MAX), max_sparse_entries: PIECES_MAX, ..Limits::default() };
    let mut parser = Parser::new(limits);
    parser.set_ignore_pax_errors(true); // times before 1970 are errors to it; super::pax looks at the numbers
    let mut source = Source { input, ahead: Vec::new(), at: 0 };
    let mut head = Vec::new();
    let mut before = String::new();
    loop {
        let event = parser.parse(&head).map_err(|error| no_tar(&error, &before))?;
        let (consumed, entry, sparse) = match event {
            ParseEvent::NeedData { min_bytes } => {
                let more = if head.len() < AHEAD { BLOCK as usize } else { head.len() / 2 };
                let wanted = min_bytes.max(head.len() + more);
                if wanted > HEAD_MAX {
                    return Err(no_tar(&"an entry's header has more than 4 MiB", &before));
                }
                if source.read_until(&mut head, wanted).map_err(LayerError::read)? {
                    continue;
                }
                // Without the two blocks of zeros that end it, a tar ends where a header would begin.
                let ended = head.iter().all(|byte| *byte == 0);
                return if ended { Ok(()) } else { Err(no_tar(&"it ends in the middle of a header", &before)) };
            }
            ParseEvent::Entry { consumed, entry } => (consumed, entry, None),
            ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                (consumed, entry, Some((sparse_map, real_size)))
            }
            ParseEvent::GlobalExtensions { consumed, .. } => {
                source.unread(&mut head, consumed);
                continue;
            }
            ParseEvent::End { .. } => return Ok(()),
        };
        source.put_back(head.get(consumed..).unwrap_or(&[]));
        let at = |fault| LayerError::at(&entry.path, fault);
        let stored = if has_contents(entry.entry_type) { entry.size } else { 0 };
        let padding = stored.wrapping_neg() % BLOCK;
        let mut contents = Contents { source: &mut source, left: stored, sparse };
        take(&entry, &mut contents)?;
        contents.left.checked_add(padding).ok_or_else(|| at(Fault::Field("size")))?;
        contents.skip().map_err(at)?;
        // umoci leaves out the zeros that fill the last block when nothing follows; Go's reader does not miss them.
        io::copy(&mut source.by_ref().take(padding), &mut io::sink()).map_err(LayerError::read)?;
        before = text(&entry.path);
        head.clear();
    }
}

/// Whether something follows the header. A size in the header of another type of entry means nothing (POSIX leaves it
/// open; so do GNU tar and Go's, with which images are made).
fn has_contents(kind: EntryType) -> bool {
    use EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
    !matches!(kind, Link | Symlink | Char | Block | Directory | Fifo)
}

fn no_tar(error: &dyn std::fmt::Display, before: &str) -> LayerError {
    let place = if before.is_empty() { "at its start".to_owned() } else { format!("after entry '{before}'") };
    Fault::Tar(format!("{error} ({place})")).into()
}

/// An entry's contents.
pub struct Contents<'a, R> {
    source: &'a mut Source<R>,
    /// Bytes in the tar.
    left: u64,
    sparse: Option<(Vec<SparseEntry>, u64)>,
}

/// A piece of a file's contents.
pub enum Piece<'a> {
    Bytes(&'a [u8]),
    Zeros(u64),
}

impl<R: BufRead> Contents<'_, R> {
    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.sparse.as_ref().map_or(self.left, |(_, size)| *size)
    }

    /// Gives all of it to `take`, in order.
    pub fn read(&mut self, mut take: impl FnMut(Piece<'_>) -> Result<(), Fault>) -> Result<(), Fault> {
        let Some((map, size)) = self.sparse.take() else {
            return self.copy(self.left, &mut take);
        };
        let mut at = 0;
        for SparseEntry { offset, length } in map {
            let hole = offset.checked_sub(at).ok_or(Fault::SparseMap)?;
            at = offset.checked_add(length).filter(|end| *end <= size).ok_or(Fault::SparseMap)?;
            take(Piece::Zeros(hole))?;
            if length > self.left {
                return Err(Fault::SparseMap);
            }
            self.copy(length, &mut take)?;
        }
        if self.left > 0 {
            return Err(Fault::SparseMap);
        }
        take(Piece::Zeros(size - at))
    }

    fn copy(&mut self, len: u64, take: &mut dyn FnMut(Piece<'_>) -> Result<(), Fault>) -> Result<(), Fault> {
        let end = self.left - len;
        while self.left > end {
            let bytes = self.source.fill_buf().map_err(Fault::of_read)?;
            if bytes.is_empty() {
                let error =
                    io::Error::new(io::ErrorKind::UnexpectedEof, "the layer ends in the middle of its contents");
                return Err(Fault::Read(error));
            }
            let len = bytes.len().min(usize::try_from(self.left - end).unwrap_or(usize::MAX));
            take(Piece::Bytes(bytes.get(..len).unwrap_or(bytes)))?;
            self.source.consume(len);
            self.left -= len as u64;
        }
        Ok(())
    }

    fn skip(mut self) -> Result<(), Fault> {
        self.copy(self.left, &mut |_| Ok(()))
    }
}

/// The stream, into which can be put back what was read too much of it.
struct Source<R> {
    input: R,
    ahead: Vec<u8>,
    at: usize,
}

impl<R: BufRead> Source<R> {
    /// Reads until `bytes` are `wanted`; false if not one came.
    fn read_until(&mut self, bytes: &mut Vec<u8>, wanted: usize) -> io::Result<bool> {
        let before = bytes.len();
        self.by_ref().take((wanted - before) as u64).read_to_end(bytes)?;
        Ok(bytes.len() > before)
    }

    /// The next bytes will be these.
    fn put_back(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.ahead.splice(..self.at, bytes.iter().copied());
            self.at = 0;
        }
    }

    /// The same with all of `bytes` but the first ones.
    fn unread(&mut self, bytes: &mut Vec<u8>, consumed: usize) {
        self.put_back(bytes.get(consumed..).unwrap_or(&[]));
        bytes.clear();
    }
}

impl<R: BufRead> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}

impl<R: BufRead> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.ahead.get(self.at..) {
            Some(ahead) if !ahead.is_empty() => Ok(ahead),
            _ => self.input.fill_buf(),
        }
    }

    fn consume(&mut self, len: usize) {
        if self.at < self.ahead.len() {
            self.at += len;
        } else {
            self.input.consume(len);
        }
    }
}
