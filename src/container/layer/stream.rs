//! The uncompressed layer, as it is read: counted against the limit, and every byte in the sum that the image's
//! configuration knows the layer by.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::Fault;

/// Bytes that are read at once.
pub const BUFFER: usize = 128 << 10;

/// What a layer is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// It is a tar.
    None,
    /// RFC 1952, of any number of members.
    Gzip,
    /// RFC 8878, of any number of frames.
    Zstd,
}

impl Compression {
    /// By a descriptor's media type, OCI's or Docker's. `None` if it is not that of a layer.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        let oci = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar"];
        let docker =
            ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];
        let suffix = oci.iter().chain(&docker).find_map(|prefix| media_type.strip_prefix(prefix))?;
        match suffix {
            "" => Some(Self::None),
            "+gzip" | ".gzip" => Some(Self::Gzip),
            "+zstd" | ".zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// By the first bytes, four or more: what Docker's archives have no media type for.
    pub fn of_first_bytes(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// The layer, uncompressed.
pub struct Uncompressed<'a> {
    decoder: Box<dyn Read + 'a>,
    sum: Sha256,
    read: u64,
    limit: u64,
}

impl<'a> Uncompressed<'a> {
    /// Of at most `limit` bytes.
    pub fn new<R: Read + 'a>(input: R, kind: Compression, limit: u64) -> io::Result<Self> {
        let input = BufReader::with_capacity(BUFFER, input);
        let decoder: Box<dyn Read + 'a> = match kind {
            Compression::None => Box::new(input),
            Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
            Compression::Zstd => Box::new(zstd(input)?),
        };
        Ok(Self { decoder, sum: Sha256::new(), read: 0, limit })
    }

    /// Reads the rest, and tells the sum of all.
    pub fn finish(mut self) -> io::Result<[u8; 32]> {
        let mut buffer = vec![0; BUFFER];
        while self.read(&mut buffer)? > 0 {}
        Ok(self.sum.finalize().into())
    }
}

impl Read for Uncompressed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.decoder.read(buffer)?;
        self.read += len as u64;
        if self.read > self.limit {
            return Err(io::Error::other(Fault::TooMuch { what: "bytes when uncompressed", limit: self.limit }));
        }
        self.sum.update(buffer.get(..len).unwrap_or(&[]));
        Ok(len)
    }
}

/// A decoder that takes up to 128 MiB for its window, as the format asks of all.
fn zstd<'a, R: BufRead + 'a>(input: R) -> io::Result<impl Read + 'a> {
    zstd::stream::read::Decoder::with_buffer(input)
}
