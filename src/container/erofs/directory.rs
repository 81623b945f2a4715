//! A directory's contents: entries in blocks, each block its entries first and then their names, all in the order of
//! their bytes, in which the kernel searches. Source: fs/erofs/erofs_fs.h, `erofs_dirent`; fs/erofs/namei.c.

use super::format::{BLOCK_LEN, DIRENT_LEN};

/// One entry.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    pub name: &'a [u8],
    /// The inode's number.
    pub nid: u64,
    /// Its type, as entries have it.
    pub kind: u8,
}

/// How many entries go into each block; the last number may leave most of its block free.
///
/// Entries are sorted; only their names matter here.
pub fn pack<'a>(names: impl Iterator<Item = &'a [u8]>) -> Vec<Packed> {
    let mut blocks: Vec<Packed> = Vec::new();
    for name in names {
        let len = DIRENT_LEN + name.len();
        match blocks.last_mut() {
            Some(block) if block.len + len <= BLOCK_LEN => {
                block.entries += 1;
                block.len += len;
            }
            _ => blocks.push(Packed { entries: 1, len }),
        }
    }
    blocks
}

/// What one block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    pub entries: usize,
    /// Bytes of them with their names.
    pub len: usize,
}

/// A block's bytes, without what is free at its end.
pub fn encode(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_LEN);
    let mut name_at = entries.len() * DIRENT_LEN;
    for entry in entries {
        bytes.extend(entry.nid.to_le_bytes());
        bytes.extend(u16::try_from(name_at).unwrap_or(u16::MAX).to_le_bytes()); // within a block
        bytes.extend([entry.kind, 0]);
        name_at += entry.name.len();
    }
    entries.iter().for_each(|entry| bytes.extend(entry.name));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_never_more_than_full() {
        let name = [b'x'; 244]; // 16 of them fill a block
        let names = std::iter::repeat_n(&name[..], 33);
        let full = Packed { entries: 16, len: BLOCK_LEN };
        assert_eq!(pack(names), [full, full, Packed { entries: 1, len: 256 }]);
    }

    #[test]
    fn names_follow_the_entries() {
        let entries = [Entry { name: b".", nid: 7, kind: 2 }, Entry { name: b"abc", nid: 9, kind: 1 }];
        let bytes = encode(&entries);
        assert_eq!(bytes.len(), 2 * DIRENT_LEN + 4);
        assert_eq!(&bytes[8..11], [24, 0, 2]);
        assert_eq!(&bytes[20..23], [25, 0, 1]);
        assert_eq!(&bytes[24..], b".abc");
    }
}
