//! A writer of EROFS, the read-only file system that layers of images are converted to: uncompressed, so that a guest
//! maps what the host has in its page cache.
//!
//! Contents of files go straight to the output as they come ([`Image::file`]); names and inodes stay in memory, in a
//! [`Tree`], and go to its end ([`Image::finish`]). The same calls make the same bytes. In the order of the image:
//!
//! 1. The superblock, written last: an image that was cut short does not mount.
//! 2. Contents of files, without their last pieces and without chunks of zeros, and long symbolic links.
//! 3. Whole blocks of directories.
//! 4. The metadata area: inodes, each with its attributes and the last piece of its contents.
//!
//! Source of the format: Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h. Linux 5.10 mounts these
//! images, and 5.15 those with chunks of zeros.

mod attributes;
mod blocks;
mod data;
mod directory;
mod format;
mod layout;
#[cfg(any(test, feature = "testing"))]
pub mod reader;
#[cfg(test)]
mod roundtrip;
mod tree;
mod write;

use std::io::{self, Seek, Write};

pub use attributes::Attributes;
pub use data::{Data, FileWriter};
pub use tree::{Inode, InodeId, Metadata, Node, Time, Tree, device_number};

use blocks::Blocks;
use format::{BLOCK, BLOCK_LEN, INODE_LEN};

/// Most bytes of files' ends that are kept in memory, to go beside their inodes. Those of files that come later take a
/// block of the image each.
const TAILS_MAX: u64 = 64 << 20;

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The output failed.
    #[error("cannot write the image: {0}")]
    Write(#[from] io::Error),
    /// The limit that the caller gave, or the largest image of all.
    #[error("the image would have more than {limit} bytes")]
    TooLarge {
        /// Bytes.
        limit: u64,
    },
    /// No file can be called so.
    #[error("a name of a file is 1 to 255 bytes long, without '/' and NUL")]
    Name,
    /// An inode has room for so many.
    #[error("its extended attributes are too large (a name: 255 bytes, a value: 65535, all: 262144)")]
    AttributesTooLarge,
    /// Not as many bytes as announced.
    #[error("its contents have another size than announced")]
    WrongSize,
    /// Sizes are signed.
    #[error("a file has at most 2^63 - 1 bytes")]
    FileTooLarge,
    /// They are numbered with 32 bits.
    #[error("more inodes than can be numbered")]
    TooManyInodes,
    /// A symbolic link leads nowhere, or too far.
    #[error("the target of a symbolic link has 1 to 4095 bytes")]
    Target,
}

/// An image that is being written.
pub struct Image<W> {
    blocks: Blocks<W>,
    /// Bytes of files' ends in memory.
    tails: u64,
}

impl<W: Write + Seek> Image<W> {
    /// Begins an image of at most `limit` bytes in `out`, which is empty.
    ///
    /// # Errors
    /// If there is no room for a single block.
    pub fn new(out: W, limit: u64) -> Result<Self, Error> {
        Ok(Self { blocks: Blocks::new(out, limit)?, tails: 0 })
    }

    /// A place for the contents of a file of `size` bytes, whose inode will have these attributes.
    ///
    /// # Errors
    /// [`Error::FileTooLarge`].
    pub fn file(&mut self, size: u64, attributes: &Attributes) -> Result<FileWriter<'_, W>, Error> {
        i64::try_from(size).map_err(|_| Error::FileTooLarge)?;
        let tail = size % BLOCK;
        let room = if self.tails + tail <= TAILS_MAX { room_beside(attributes) } else { 0 };
        if tail <= room as u64 {
            self.tails += tail;
        }
        Ok(FileWriter::new(&mut self.blocks, size, room))
    }

    /// Completes the image with all that `tree` names; returns its size in bytes.
    ///
    /// # Errors
    /// As the output and the limit want it.
    pub fn finish(self, tree: &Tree, uuid: [u8; 16]) -> Result<u64, Error> {
        write::metadata(self.blocks, tree, uuid)
    }
}

/// Bytes of contents that fit into one block with an inode and its attributes.
fn room_beside(attributes: &Attributes) -> usize {
    BLOCK_LEN.saturating_sub(INODE_LEN + attributes.encoded_len())
}
