//! A layer that is arbitrary bytes, for fuzzing: whatever they are, the conversion ends with an error or with an image
//! that the reader of the tests finds nothing wrong with.
//!
//! Test threads only.

use std::io::Cursor;

use super::{Compression, Limits, convert};
use crate::erofs::reader;

const BLOCK: usize = 512;
/// Where a header has its sum.
const SUM: std::ops::Range<usize> = 148..156;

/// Converts a layer made of `data`: the first byte says how it is compressed, and whether sums in headers are put right,
/// without which few bytes are a tar.
pub fn unpack(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let kind = match choice % 8 {
        0 => Compression::Gzip,
        1 => Compression::Zstd,
        _ => Compression::None,
    };
    let mut layer = data.to_vec();
    if kind == Compression::None && choice & 8 == 0 {
        layer.resize(layer.len().next_multiple_of(BLOCK), 0);
        layer.chunks_mut(BLOCK).for_each(put_right);
    }
    let limits = Limits { bytes: 4 << 20, entries: 1000, memory: 1 << 20 };
    let mut out = Cursor::new(Vec::new());
    match convert(&layer[..], kind, &mut out, &limits) {
        Ok(converted) => {
            assert_eq!(converted.bytes, out.get_ref().len() as u64, "another size than told");
            reader::list(out.get_ref()).expect("an image without a fault");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    assert!(out.get_ref().len() as u64 <= limits.bytes, "more than the limit");
}

/// Gives a block the sum that it would have as a header.
fn put_right(block: &mut [u8]) {
    if block.iter().all(|byte| *byte == 0) {
        return;
    }
    block[SUM].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
