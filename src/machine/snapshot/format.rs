//! The file with a state: one line that says what it is, and the state as JSON. What a state says is checked by those whom it
//! concerns; here, that it is whole.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The format's version. Another one is refused.
const VERSION: u32 = 1;
/// Longest first line, and longest state, bytes: that of 4096 vCPUs is under 200 MB.
const LINE_MAX: usize = 4096;
const STATE_MAX: u64 = 1 << 28;

/// The first line. More keys may come in later versions, and are passed over, so that every program can say of every file what
/// it is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    /// The format's version.
    vmm_snapshot: u32,
    /// The program's version.
    vmm_version: String,
    /// Bytes that follow.
    bytes: u64,
    /// Their CRC-32 (IEEE 802.3).
    crc32: u32,
}

/// Writes it all.
pub fn write(state: &impl Serialize, file: &mut impl Write) -> io::Result<()> {
    // By way of a value, for which there is code already.
    let body = serde_json::to_value(state)?.to_string().into_bytes();
    let header = Header {
        vmm_snapshot: VERSION,
        vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
        bytes: body.len() as u64,
        crc32: crc32fast::hash(&body),
    };
    let mut line = serde_json::to_vec(&header)?;
    line.push(b'\n');
    if line.len() as u64 + header.bytes >= STATE_MAX {
        return Err(bad("its state is larger than any that can be read"));
    }
    file.write_all(&line)?;
    file.write_all(&body)
}

/// Reads what [`write`] wrote.
pub fn read<T: DeserializeOwned>(file: impl Read) -> io::Result<T> {
    let mut bytes = Vec::new();
    file.take(STATE_MAX).read_to_end(&mut bytes)?;
    let end = bytes.iter().take(LINE_MAX).position(|byte| *byte == b'\n');
    let (line, body) = end.map(|end| bytes.split_at(end + 1)).ok_or_else(|| bad("it is no snapshot of a VM"))?;
    let header: Header = serde_json::from_slice(line).map_err(|_| bad("it is no snapshot of a VM"))?;
    let Header { vmm_snapshot, vmm_version, bytes, crc32 } = header;
    if vmm_snapshot != VERSION {
        let text = format!("its format has version {vmm_snapshot} (vmm {vmm_version}); this program reads {VERSION}");
        return Err(bad(&text));
    }
    if body.len() as u64 != bytes {
        return Err(bad(&format!("{bytes} bytes should follow its first line, and {} do", body.len())));
    }
    if crc32fast::hash(body) != crc32 {
        return Err(bad("it is damaged: its checksum is another one"));
    }
    let value: Value = serde_json::from_slice(body)?;
    T::deserialize(&value).map_err(|error| bad(&format!("it holds no state: {error}")))
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let mut file = Vec::new();
        write(&vec![1, 2, 3], &mut file).unwrap();
        file
    }

    fn refused(file: &[u8]) -> String {
        read::<Vec<u32>>(file).unwrap_err().to_string()
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(read::<Vec<u32>>(written().as_slice()).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn what_is_not_whole_or_not_ours_is_refused_with_the_reason() {
        let file = written();
        assert_eq!(refused(&file[..file.len() - 1]), "7 bytes should follow its first line, and 6 do");
        let mut damaged = file.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(refused(&damaged), "it is damaged: its checksum is another one");
        for other in [&b""[..], b"\n", b"{}\n", b"\x7fELF\n", &[b'x'; 2 * LINE_MAX]] {
            assert_eq!(refused(other), "it is no snapshot of a VM");
        }
        assert!(read::<Vec<String>>(file.as_slice()).unwrap_err().to_string().starts_with("it holds no state: "));
    }

    #[test]
    fn another_version_is_named() {
        let text = String::from_utf8(written()).unwrap();
        let next = text.replacen("\"vmm_snapshot\":1", "\"vmm_snapshot\":2,\"more\":[]", 1);
        let version = env!("CARGO_PKG_VERSION");
        let told = format!("its format has version 2 (vmm {version}); this program reads 1");
        assert_eq!(refused(next.as_bytes()), told);
    }
}
