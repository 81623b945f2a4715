//! The image as a stream of blocks that only grows, up to a limit. Zeros need not be written: the file has holes there.

use std::io::{Seek, SeekFrom, Write};

use super::Error;
use super::format::{BLOCK, BLOCK_LEN};

/// Bytes that are collected before they are written.
const BUFFER: usize = 256 << 10;
/// Zeros that are worth a hole.
const WORTH_A_HOLE: u64 = 64 << 10;
/// Most bytes of an image: block addresses have 32 bits, and the last two mean something else.
const LARGEST: u64 = (u32::MAX as u64 - 1) * BLOCK;

/// The end of the image that is being made.
pub struct Blocks<W> {
    out: W,
    buffer: Vec<u8>,
    /// Bytes in the image before those of the buffer.
    written: u64,
    limit: u64,
}

impl<W: Write + Seek> Blocks<W> {
    /// Begins an image of at most `limit` bytes in the empty `out`. The first block is left out: it is written last.
    pub fn new(out: W, limit: u64) -> Result<Self, Error> {
        let mut blocks =
            Self { out, buffer: Vec::with_capacity(BUFFER + BLOCK_LEN), written: 0, limit: limit.min(LARGEST) };
        blocks.skip(BLOCK)?;
        Ok(blocks)
    }

    /// Bytes so far.
    pub fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// The block that begins here: the position is at the start of one.
    pub fn block(&self) -> u32 {
        u32::try_from(self.position() / BLOCK).unwrap_or(u32::MAX) // the limit is below
    }

    /// Whether `more` bytes are within the limit.
    pub fn has_room(&self, more: u64) -> Result<(), Error> {
        match self.position().checked_add(more) {
            Some(end) if end <= self.limit => Ok(()),
            _ => Err(Error::TooLarge { limit: self.limit }),
        }
    }

    /// Adds bytes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.has_room(bytes.len() as u64)?;
        if bytes.len() >= BUFFER {
            self.flush()?;
            self.out.write_all(bytes)?;
            self.written += bytes.len() as u64;
            return Ok(());
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Adds zeros.
    pub fn skip(&mut self, zeros: u64) -> Result<(), Error> {
        self.has_room(zeros)?;
        if zeros < WORTH_A_HOLE {
            self.buffer.resize(self.buffer.len() + usize::try_from(zeros).unwrap_or(0), 0);
            return if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) };
        }
        self.flush()?;
        self.written += zeros;
        self.out.seek(SeekFrom::Start(self.written))?;
        Ok(())
    }

    /// Adds zeros up to the end of a block.
    pub fn align(&mut self) -> Result<(), Error> {
        self.skip(self.position().next_multiple_of(BLOCK) - self.position())
    }

    /// Puts the first block into its place, after all others are in theirs.
    pub fn finish(mut self, first: &[u8]) -> Result<u64, Error> {
        self.align()?;
        self.flush()?;
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(first)?;
        self.out.flush()?;
        Ok(self.written)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.out.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
