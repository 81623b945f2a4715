//! One layer of an image, which is a tar that may be compressed, becomes one read-only EROFS image as overlayfs wants it:
//! whiteouts are character devices 0:0, and an opaque directory has `trusted.overlay.opaque`. So has the root directory of a
//! layer that hides all lower ones; overlayfs does not look at it there: who joins layers leaves out those below.
//!
//! The layer is hostile. It is read once, from front to end; nothing of it is put on a file system of the host, so that
//! there is nothing to escape from: names are looked up in a tree in memory, whose root is the only one there is.
//! Contents of files go to the image as they come. What is kept in memory is bounded by [`Limits`], and what is wrong is
//! one [`LayerError`], which says with which entry.
//!
//! Sources: OCI image specification, layer.md; Linux, Documentation/filesystems/overlayfs.rst. Where they leave it open,
//! what Docker's and containerd's unpacking do.

mod entries;
mod error;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
mod pax;
mod place;
mod stream;
#[cfg(test)]
mod tests;
mod unpack;

use std::io::{BufReader, Read, Seek, Write};

pub use error::{Fault, LayerError};
pub use stream::Compression;

pub(crate) use stream::Uncompressed;
use unpack::Unpack;

/// What a layer may cost. What is beyond is a [`Fault::TooMuch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed layer, and bytes of the image.
    pub bytes: u64,
    /// Entries, with the directories that they imply.
    pub entries: u64,
    /// Bytes of memory for names, links, extended attributes and the like, about.
    pub memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 1_000_000, memory: 256 << 20 }
    }
}

/// What was made of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// SHA-256 of the uncompressed layer: the image's configuration has it under `rootfs.diff_ids`, and it is for the
    /// caller to compare.
    pub diff_id: [u8; 32],
    /// Bytes of the image.
    pub bytes: u64,
    /// Entries of the layer.
    pub entries: u64,
}

/// Converts the layer that `input` has, up to its end, to an image in `out`, which is empty.
///
/// The same layer makes the same bytes, whatever it was compressed with. After an error, `out` holds something without a
/// superblock, which does not mount.
///
/// # Errors
/// [`LayerError`]: the layer is wrong, or beyond the limits, or one of both files failed.
pub fn convert<R: Read, W: Write + Seek>(
    input: R,
    kind: Compression,
    out: W,
    limits: &Limits,
) -> Result<Converted, LayerError> {
    let stream = Uncompressed::new(input, kind, limits.bytes).map_err(LayerError::read)?;
    let mut stream = BufReader::with_capacity(stream::BUFFER, stream);
    let mut unpack = Unpack::new(out, limits)?;
    entries::each(&mut stream, |entry, contents| unpack.entry(entry, contents))?;
    let diff_id = stream.into_inner().finish().map_err(LayerError::read)?;
    unpack.finish(diff_id)
}
