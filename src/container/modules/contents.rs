//! A module's contents, as finit_module(2) takes them: an ELF file that is not compressed, of the right kernel.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;

use super::ModulesError;

/// Most bytes of a module: the largest that distributions have, of graphics, take a tenth.
const MOST: u64 = 64 << 20;
/// Most memory for a decoder's dictionary, KiB.
const DICTIONARY_KIB: u32 = 64 << 10;
/// What stands before the kernel's version in a module (include/linux/vermagic.h).
const MAGIC: &[u8] = b"vermagic=";

/// The contents of the module at `path`; `release` is the kernel's version, where it is known.
pub fn contents(path: &Path, release: Option<&str>) -> Result<Vec<u8>, ModulesError> {
    let wrong = |why: String| ModulesError::Module { path: path.to_owned(), why };
    let bytes = unpacked(path).map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > MOST {
        return Err(wrong(format!("more than {MOST} bytes are too many for a module")));
    }
    if !bytes.starts_with(b"\x7fELF") {
        return Err(wrong("it is no module: no ELF file".to_owned()));
    }
    match (release, version(&bytes)) {
        (Some(release), Some(version)) if version != release => {
            Err(wrong(format!("it is of the kernel {version}, and this one is {release}")))
        }
        _ => Ok(bytes),
    }
}

fn unpacked(path: &Path) -> io::Result<Vec<u8>> {
    let file = BufReader::new(File::open(path)?);
    let suffix = path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default();
    let reader: Box<dyn Read> = match suffix {
        "gz" => Box::new(GzDecoder::new(file)),
        "xz" => Box::new(XzReader::new_mem_limit(file, false, DICTIONARY_KIB)),
        "zst" => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
        _ => Box::new(file),
    };
    let mut bytes = Vec::new();
    reader.take(MOST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The kernel's version in a module: as far as the first space.
fn version(bytes: &[u8]) -> Option<String> {
    let at = bytes.windows(MAGIC.len()).position(|window| window == MAGIC)?;
    let version = bytes.get(at + MAGIC.len()..)?.split(|byte| matches!(byte, 0 | b' ')).next()?;
    Some(String::from_utf8_lossy(version).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    const MODULE: &[u8] = b"\x7fELF, a module\0vermagic=6.1.0-9 SMP preempt\0end";

    fn of(name: &str, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        contents(&path, Some("6.1.0-9")).map_err(|error| error.to_string())
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn modules_come_out_of_every_compression() {
        // xz --check=crc32 of MODULE.
        let xz = b"\xfd\x37\x7a\x58\x5a\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\x0c\x00\x00\x00\x8f\x98\x41\x9c\x01\x00\x2e\x7f\x45\x4c\x46\x2c\x20\x61\x20\x6d\x6f\x64\x75\x6c\x65\x00\x76\x65\x72\x6d\x61\x67\x69\x63\x3d\x36\x2e\x31\x2e\x30\x2d\x39\x20\x53\x4d\x50\x20\x70\x72\x65\x65\x6d\x70\x74\x00\x65\x6e\x64\x00\x00\x9c\x8b\x06\x6d\x00\x01\x43\x2f\xb4\x94\x03\x50\x90\x42\x99\x0d\x01\x00\x00\x00\x00\x01\x59\x5a";
        assert_eq!(of("a.ko", MODULE).unwrap(), MODULE);
        assert_eq!(of("a.ko.gz", &gzip(MODULE)).unwrap(), MODULE);
        assert_eq!(of("a.ko.zst", &zstd::encode_all(MODULE, 1).unwrap()).unwrap(), MODULE);
        assert_eq!(of("a.ko.xz", xz).unwrap(), MODULE);
    }

    #[test]
    fn what_is_no_module_of_this_kernel_is_refused() {
        assert!(
            of("a.ko", b"\x7fELF vermagic=6.1.0-10 SMP")
                .unwrap_err()
                .contains("of the kernel 6.1.0-10, and this one is 6.1.0-9")
        );
        assert!(of("a.ko", b"\x7fELF without a version").is_ok(), "the guest's kernel decides");
        for (name, bytes) in
            [("a.ko", &b"text"[..]), ("a.ko", b""), ("a.ko.xz", MODULE), ("a.ko.gz", MODULE), ("a.ko.zst", MODULE)]
        {
            assert!(of(name, bytes).unwrap_err().contains(name), "{name}");
        }
        let cut = gzip(MODULE);
        assert!(of("a.ko.gz", &cut[..cut.len() / 2]).is_err());
        let bomb = zstd::encode_all(io::repeat(0).take(MOST + 5), 1).unwrap();
        assert!(of("a.ko.zst", &bomb).unwrap_err().contains("too many for a module"));
        assert!(contents(Path::new("/no/a.ko"), None).unwrap_err().to_string().starts_with("/no/a.ko: "));
    }
}
