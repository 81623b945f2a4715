//! A file's contents on their way into the image: block after block, chunks of zeros left out, and the piece after the
//! last whole block kept for its place beside the inode.

use std::io::{Seek, Write};

use super::Error;
use super::blocks::Blocks;
use super::format::{BLOCK, Storage};

/// Blocks of a chunk, as a power of two: at least 16 (64 KiB), so that what is read in one go stays in one piece.
const CHUNK_BITS_MIN: u8 = 4;
const CHUNK_BITS_MAX: u8 = 31;
/// Most chunks of a file, so that a huge file of nothing needs no huge index: its chunks are larger.
const CHUNKS_MAX: u64 = 1 << 15;

/// Where a file's contents are in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    size: u64,
    runs: Vec<Run>,
    /// What comes after the last whole block, if it goes beside the inode.
    tail: Vec<u8>,
    bits: u8,
}

/// Chunks that follow one another, in the file and in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// The first one's first block; none if they are all zeros.
    first: Option<u32>,
    chunks: u64,
}

impl Data {
    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that this takes in memory, about.
    pub fn weight(&self) -> usize {
        self.tail.len() + self.runs.len() * size_of::<Run>()
    }

    /// How the inode finds them.
    pub(super) fn storage(&self) -> Storage {
        match self.runs.as_slice() {
            [] if self.tail.is_empty() => Storage::Plain { first: 0 },
            [] => Storage::Inline { first: 0 },
            [Run { first: Some(first), .. }] if self.tail.is_empty() => Storage::Plain { first: *first },
            [Run { first: Some(first), .. }] => Storage::Inline { first: *first },
            _ => Storage::Chunks { bits: self.bits },
        }
    }

    /// What lies right after the inode.
    pub(super) fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Chunks of the file, and the place of each.
    pub(super) fn chunks(&self) -> impl Iterator<Item = Option<u32>> + '_ {
        let blocks = 1_u32 << self.bits;
        self.runs.iter().flat_map(move |run| {
            (0..run.chunks).map(move |n| run.first.map(|first| first + u32::try_from(n).unwrap_or(u32::MAX) * blocks))
        })
    }

    /// How many chunks.
    pub(super) fn chunk_count(&self) -> u64 {
        self.runs.iter().map(|run| run.chunks).sum()
    }
}

/// Takes a file's contents from the first byte to the last.
pub struct FileWriter<'a, W> {
    blocks: &'a mut Blocks<W>,
    data: Data,
    /// Bytes taken.
    at: u64,
    /// From here on, bytes go into the tail; the file's size if none do.
    tail_start: u64,
    /// Where the chunk that is being filled lies: nowhere while it has only zeros.
    place: Option<u32>,
}

impl<'a, W: Write + Seek> FileWriter<'a, W> {
    /// For a file of `size` bytes, whose end may lie beside the inode if it has at most `room` bytes.
    pub(super) fn new(blocks: &'a mut Blocks<W>, size: u64, room: usize) -> Self {
        let mut bits = CHUNK_BITS_MIN;
        while size.div_ceil(BLOCK << bits) > CHUNKS_MAX && bits < CHUNK_BITS_MAX {
            bits += 1;
        }
        let beside = size % BLOCK;
        let tail_start = if beside <= room as u64 { size - beside } else { size };
        Self { blocks, data: Data { size, runs: Vec::new(), tail: Vec::new(), bits }, at: 0, tail_start, place: None }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When the image cannot be written or would be too large. The file's size is not exceeded: what is beyond it is an
    /// error, too.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            if self.at >= self.tail_start {
                if (bytes.len() as u64) > self.data.size - self.at {
                    return Err(Error::WrongSize);
                }
                self.data.tail.extend_from_slice(bytes);
                self.at += bytes.len() as u64;
                return Ok(());
            }
            let len = self.chunk_rest().min(bytes.len() as u64);
            let (piece, rest) = bytes.split_at(usize::try_from(len).unwrap_or(bytes.len()));
            if self.place.is_some() || !is_zero(piece) {
                self.settle()?;
                self.blocks.append(piece)?;
            }
            self.advance(len);
            bytes = rest;
        }
        Ok(())
    }

    /// Takes zeros.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn zeros(&mut self, mut zeros: u64) -> Result<(), Error> {
        while zeros > 0 {
            if self.at >= self.tail_start {
                if zeros > self.data.size - self.at {
                    return Err(Error::WrongSize);
                }
                let len = self.data.tail.len() + usize::try_from(zeros).unwrap_or(0); // less than a block
                self.data.tail.resize(len, 0);
                self.at += zeros;
                return Ok(());
            }
            if self.place.is_none() && self.at.is_multiple_of(self.chunk_len()) {
                let whole = zeros.min(self.tail_start - self.at) / self.chunk_len();
                self.push(None, whole);
                self.at += whole * self.chunk_len();
                zeros -= whole * self.chunk_len();
            }
            let len = self.chunk_rest().min(zeros);
            if self.place.is_some() {
                self.blocks.skip(len)?;
            }
            self.advance(len);
            zeros -= len;
        }
        Ok(())
    }

    /// The file is complete.
    ///
    /// # Errors
    /// [`Error::WrongSize`] if it is not; else as [`Self::write`].
    pub fn finish(mut self) -> Result<Data, Error> {
        if self.at != self.data.size {
            return Err(Error::WrongSize);
        }
        let started = !self.tail_start.is_multiple_of(self.chunk_len());
        let holes = self.data.runs.iter().any(|run| run.first.is_none()) || (started && self.place.is_none());
        if holes && !self.data.tail.is_empty() {
            // A chunk-based file has nothing beside its inode but the index: its end is a part of the last chunk.
            let tail = std::mem::take(&mut self.data.tail);
            // Behind what the chunk has in the image lies the next file: zeros must be there, too.
            if self.place.is_some() || !is_zero(&tail) {
                self.at = self.tail_start;
                self.settle()?;
                self.blocks.append(&tail)?;
            }
            self.push(self.place, 1);
        } else if started {
            self.push(self.place, 1);
        }
        self.blocks.align()?;
        Ok(self.data)
    }

    /// Bytes of a chunk.
    fn chunk_len(&self) -> u64 {
        BLOCK << self.data.bits
    }

    /// Bytes that the current chunk still takes, all or what comes before the tail.
    fn chunk_rest(&self) -> u64 {
        (self.chunk_len() - self.at % self.chunk_len()).min(self.tail_start - self.at)
    }

    /// Gives the current chunk a place, with zeros for what it has had so far.
    fn settle(&mut self) -> Result<(), Error> {
        if self.place.is_none() {
            self.place = Some(self.blocks.block());
            self.blocks.skip(self.at % self.chunk_len())?;
        }
        Ok(())
    }

    /// Counts bytes, and notes a chunk that is full.
    fn advance(&mut self, len: u64) {
        self.at += len;
        if len > 0 && self.at.is_multiple_of(self.chunk_len()) {
            self.push(self.place, 1);
            self.place = None;
        }
    }

    /// Notes chunks: as more of the last run, if they continue it.
    fn push(&mut self, first: Option<u32>, chunks: u64) {
        let blocks = 1_u64 << self.data.bits;
        match self.data.runs.last_mut() {
            Some(Run { first: None, chunks: before }) if first.is_none() => *before += chunks,
            Some(Run { first: Some(start), chunks: before })
                if first.map(u64::from) == Some(u64::from(*start) + *before * blocks) =>
            {
                *before += chunks;
            }
            _ if chunks > 0 => self.data.runs.push(Run { first, chunks }),
            _ => {}
        }
    }
}

/// Whether there is nothing but zeros.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|some| some.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const CHUNK: usize = 64 << 10;

    /// What becomes of a file that is given in pieces, and how many blocks of the image it takes.
    fn store(size: usize, pieces: &[(&[u8], u64)]) -> (Data, u64) {
        let mut out = Cursor::new(Vec::new());
        let mut blocks = Blocks::new(&mut out, 1 << 30).expect("an image");
        let mut writer = FileWriter::new(&mut blocks, size as u64, 4000);
        for (bytes, zeros) in pieces {
            writer.write(bytes).expect("room");
            writer.zeros(*zeros).expect("room");
        }
        let data = writer.finish().expect("all of it");
        let taken = blocks.position() / BLOCK - 1;
        (data, taken)
    }

    #[test]
    fn a_small_file_is_only_a_tail_and_an_even_one_has_none() {
        let (data, taken) = store(10, &[(b"0123456789", 0)]);
        assert_eq!((data.storage(), data.tail(), taken), (Storage::Inline { first: 0 }, &b"0123456789"[..], 0));
        let (data, taken) = store(8192, &[(&[1; 8192], 0)]);
        assert_eq!((data.storage(), data.tail(), taken), (Storage::Plain { first: 1 }, &b""[..], 2));
        let (data, taken) = store(8200, &[(&[1; 100], 0), (&[1; 8100], 0)]);
        assert_eq!((data.storage(), data.tail(), taken), (Storage::Inline { first: 1 }, &[1; 8][..], 2));
        let (data, taken) = store(8191, &[(&[1; 8191], 0)]);
        assert_eq!((data.storage(), data.tail(), taken), (Storage::Plain { first: 1 }, &b""[..], 2));
    }

    #[test]
    fn whole_chunks_of_zeros_take_no_room_whether_told_or_found() {
        let hole = vec![0; CHUNK];
        for pieces in [
            &[(&[1; CHUNK][..], 3 * CHUNK as u64), (&[2; 5], 0)][..],
            &[(&[1; CHUNK], 0), (&hole, 0), (&hole, 0), (&hole, 0), (&[2; 5], 0)],
        ] {
            let (data, taken) = store(4 * CHUNK + 5, pieces);
            assert_eq!(data.storage(), Storage::Chunks { bits: 4 });
            assert_eq!(data.chunks().collect::<Vec<_>>(), [Some(1), None, None, None, Some(17)]);
            assert_eq!((data.chunk_count(), data.tail(), taken), (5, &b""[..], 17));
        }
    }

    #[test]
    fn zeros_within_a_chunk_are_kept() {
        let (data, taken) = store(2 * CHUNK, &[(&[1], CHUNK as u64 - 2), (&[1], CHUNK as u64 - 1), (&[1], 0)]);
        assert_eq!((data.storage(), taken), (Storage::Plain { first: 1 }, 32));
        let (data, taken) = store(2 * CHUNK, &[(&[], 10), (&[1], 2 * CHUNK as u64 - 11)]);
        assert_eq!((data.chunks().collect::<Vec<_>>(), taken), (vec![Some(1), None], 16));
    }

    #[test]
    fn zeros_at_the_end_of_a_chunk_that_has_a_place_are_in_the_image() {
        let (data, taken) = store(CHUNK + 4096 + 5, &[(&[], CHUNK as u64), (&[1; 4096], 5)]);
        assert_eq!((data.chunks().collect::<Vec<_>>(), taken), (vec![None, Some(1)], 2));
        let (data, taken) = store(2 * CHUNK + 4096 + 5, &[(&[1; CHUNK], CHUNK as u64 + 4096 + 5)]);
        assert_eq!((data.chunks().collect::<Vec<_>>(), taken), (vec![Some(1), None, None], 16));
    }

    #[test]
    fn the_index_of_a_huge_file_of_nothing_is_small() {
        let (data, taken) = store(1 << 44, &[(&[], 1 << 44)]);
        assert_eq!((data.chunk_count(), taken), (CHUNKS_MAX, 0));
        let (data, taken) = store((1 << 44) + 1, &[(&[], 1 << 44), (&[1], 0)]);
        assert!(data.chunk_count() <= CHUNKS_MAX);
        assert_eq!(taken, 1);
    }

    #[test]
    fn a_file_of_another_size_than_told_is_refused() {
        let mut out = Cursor::new(Vec::new());
        let mut blocks = Blocks::new(&mut out, 1 << 20).expect("an image");
        assert!(matches!(FileWriter::new(&mut blocks, 5, 4000).write(b"012345"), Err(Error::WrongSize)));
        assert!(matches!(FileWriter::new(&mut blocks, 4096, 0).write(&[1; 4097]), Err(Error::WrongSize)));
        assert!(matches!(FileWriter::new(&mut blocks, 4096, 0).zeros(4097), Err(Error::WrongSize)));
        assert!(matches!(FileWriter::new(&mut blocks, 5, 4000).finish(), Err(Error::WrongSize)));
        assert!(matches!(FileWriter::new(&mut blocks, 2 << 20, 0).write(&[1; 2 << 20]), Err(Error::TooLarge { .. })));
    }
}
