//! Streams as they are and as they are packed. What unpacks to more than is allowed is cut off by whoever reads.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

use crate::document::Packing;

/// Bytes that tell how a stream is packed.
pub const MAGIC: u64 = 4;

impl Packing {
    /// By how it begins: RFC 1952, RFC 8878.
    pub fn of_magic(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// What is in `from`.
    pub fn unpack<'a>(self, from: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::Plain => Box::new(from),
            Self::Gzip => Box::new(MultiGzDecoder::new(from)),
            Self::Zstd => Box::new(StreamingDecoder::new(from).map_err(io::Error::other)?),
        })
    }
}
