//! Compressed kernels: which compression, and the bytes behind it. Pure.
//!
//! Sources: Linux, Documentation/arch/x86/boot.rst (payload_offset, payload_length), scripts/Makefile.lib (what the
//! build compresses with), lib/decompress_unlz4.c (lz4's legacy frame).

use std::io::Read;

/// Most bytes that a payload may unpack to.
const UNPACKED_MAX: u64 = 1 << 30;
/// Most memory for a decompressor's window.
const WINDOW_MAX: u64 = 512 << 20;
/// Uncompressed size of a block of lz4's legacy frame.
const LZ4_BLOCK: usize = 8 << 20;

/// Magic numbers of what Linux's build can compress a kernel with.
const COMPRESSIONS: [(&[u8], &str); 8] = [
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x5d\0\0", "lzma"),
    (b"BZh", "bzip2"),
    (b"\x89LZO", "lzo"),
    (b"\x7fELF", "none"),
];

/// The name of the compression of `payload`.
pub fn compression(payload: &[u8]) -> Option<&'static str> {
    COMPRESSIONS.iter().find(|(magic, _)| payload.starts_with(magic)).map(|(_, name)| *name)
}

/// Unpacks `payload`; an error says why that is not possible.
pub fn unpack(payload: &[u8]) -> Result<Vec<u8>, String> {
    match compression(payload) {
        Some("none") => Ok(payload.to_vec()),
        Some("gzip") => read(flate2::read::GzDecoder::new(payload)),
        Some("xz") => read(lzma_rust2::XzReader::new_mem_limit(payload, false, (WINDOW_MAX >> 10) as u32)),
        Some("lzma") => {
            let reader = lzma_rust2::LzmaReader::new_mem_limit(payload, (WINDOW_MAX >> 10) as u32, None);
            read(reader.map_err(|error| error.to_string())?)
        }
        Some("zstd") => {
            let reader = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(payload, WINDOW_MAX);
            read(reader.map_err(|error| error.to_string())?)
        }
        Some("lz4") => lz4(payload.get(4..).unwrap_or_default()),
        Some(name) => Err(format!("{name} cannot be unpacked here")),
        None => Err("its compression is unknown".to_owned()),
    }
}

fn read(reader: impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    reader.take(UNPACKED_MAX).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Blocks of a length and its bytes. The build puts the unpacked size behind the last one.
fn lz4(mut rest: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while let Some((len, after)) = rest.split_first_chunk() {
        let len = u32::from_le_bytes(*len) as usize;
        if after.is_empty() || len == 0 {
            break;
        }
        let packed = after.get(..len).ok_or("its last block is cut short")?;
        let unpacked = lz4_flex::block::decompress_into(packed, &mut block).map_err(|error| error.to_string())?;
        bytes.extend_from_slice(block.get(..unpacked).unwrap_or_default());
        rest = after.get(len..).unwrap_or_default();
        if bytes.len() as u64 > UNPACKED_MAX {
            return Err("it is too large".to_owned());
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn gzip_and_lz4_unpack() {
        let text = b"IKCFG_ST and more ".repeat(500);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        assert_eq!(unpack(&gzip.finish().unwrap()).unwrap(), text);

        let packed = lz4_flex::block::compress(&text);
        let mut lz4 = b"\x02\x21\x4c\x18".to_vec();
        lz4.extend((packed.len() as u32).to_le_bytes());
        lz4.extend(&packed);
        lz4.extend((text.len() as u32).to_le_bytes());
        assert_eq!(unpack(&lz4).unwrap(), text);
    }

    #[test]
    fn xz_lzma_and_zstd_unpack() {
        let xz = b"\xfd\x37\x7a\x58\x5a\x00\x00\x01\x69\x22\xde\x36\x02\x01\x04\x00\x21\x01\x0c\x00\xd6\x7c\x18\xaf\x01\x00\x14\x78\x7a\x20\x61\x6e\x64\x20\x74\x68\x65\x20\x78\x38\x36\x20\x66\x69\x6c\x74\x65\x72\x00\x00\x00\x00\x41\x8e\xb5\x0e\x00\x01\x29\x15\x2b\xce\x1d\x09\x90\x42\x99\x0d\x01\x00\x00\x00\x00\x01\x59\x5a";
        assert_eq!(unpack(xz).unwrap(), b"xz and the x86 filter");
        let lzma = b"\x5d\x00\x00\x04\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x36\x1e\x89\xdd\x7d\x49\x14\x93\xbc\x92\xb8\x60\xba\x6a\xff\xff\x76\xb0\x00\x00";
        assert_eq!(unpack(lzma).unwrap(), b"lzma alone");
        let text = b"zstd ".repeat(100);
        let zstd = ruzstd::encoding::compress_to_vec(&text[..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(unpack(&[&zstd[..], &500u32.to_le_bytes()].concat()).unwrap(), text);
    }

    #[test]
    fn what_cannot_be_unpacked_says_why() {
        assert!(unpack(b"BZh9").unwrap_err().contains("bzip2"));
        assert!(unpack(b"nothing").unwrap_err().contains("unknown"));
        for broken in [
            &b"\x1f\x8b"[..],
            b"\xfd7zXZ\0\0\0",
            b"\x28\xb5\x2f\xfd\0",
            b"\x02\x21\x4c\x18\xff\0\0\0x",
            b"\x5d\0\0\x80",
        ] {
            assert!(unpack(broken).is_err(), "{broken:x?}");
        }
    }
}
