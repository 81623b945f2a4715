//! The on-disk structures of EROFS that the writer uses, as bytes. Source: Linux, fs/erofs/erofs_fs.h and
//! Documentation/filesystems/erofs.rst. Everything is little-endian.

use super::{Attributes, Inode, Node};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// The same, as a length in memory.
pub const BLOCK_LEN: usize = 4096;
/// Inodes are numbered by their place in the metadata area, in units of this many bytes.
pub const SLOT: usize = 32;
/// Bytes of an extended inode.
pub const INODE_LEN: usize = 64;
/// Bytes of a directory entry, without its name.
pub const DIRENT_LEN: usize = 12;
/// Most bytes of a file name.
pub const NAME_MAX: usize = 255;
/// Bytes of one chunk's place in a file's chunk indexes.
pub const CHUNK_INDEX_LEN: usize = 8;
/// Where a chunk of zeros is.
const NULL_ADDRESS: u32 = u32::MAX;

const SUPER_OFFSET: usize = 1024;
const SUPER_MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_SUPER_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
/// Some files are chunk-based: Linux 5.15 and later.
const INCOMPAT_CHUNKED_FILE: u32 = 4;
const CHUNK_FORMAT_INDEXES: u16 = 0x20;

/// How a file's contents are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// All blocks, one after the other, from this one on.
    Plain { first: u32 },
    /// The same, but what does not fill a block lies right after the inode.
    Inline { first: u32 },
    /// Chunks of 2 to the power of `bits` blocks, whose places lie after the inode.
    Chunks { bits: u8 },
    /// There are none: a device, a FIFO, a socket.
    None { rdev: u32 },
}

/// What the superblock tells of the image.
pub struct Super {
    pub root_nid: u16,
    pub inodes: u64,
    pub blocks: u32,
    pub metadata_block: u32,
    pub uuid: [u8; 16],
    pub chunked: bool,
}

impl Super {
    /// The first block of the image.
    pub fn block(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_LEN];
        let mut put =
            |at: usize, bytes: &[u8]| block[SUPER_OFFSET + at..SUPER_OFFSET + at + bytes.len()].copy_from_slice(bytes);
        put(0, &SUPER_MAGIC.to_le_bytes());
        put(8, &(COMPAT_SUPER_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[12]); // the block size's power of two
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.metadata_block.to_le_bytes());
        put(48, &self.uuid);
        put(80, &if self.chunked { INCOMPAT_CHUNKED_FILE } else { 0 }.to_le_bytes());
        let sum = crc32c(&block[SUPER_OFFSET..]);
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
        block
    }
}

/// CRC-32C as the kernel has it here: from all ones, and not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// An extended inode with its attributes: what its contents or chunk indexes follow.
pub fn inode(inode: &Inode, number: u32, links: u32, size: u64, storage: Storage) -> Vec<u8> {
    let (layout, union) = match storage {
        Storage::Plain { first } => (0_u16, first),
        Storage::Inline { first } => (2, first),
        Storage::Chunks { bits } => (4, u32::from(u16::from(bits) | CHUNK_FORMAT_INDEXES)),
        Storage::None { rdev } => (0, rdev),
    };
    let meta = &inode.metadata;
    let mut bytes = Vec::with_capacity(INODE_LEN + meta.attributes.encoded_len());
    bytes.extend((layout << 1 | 1).to_le_bytes()); // 1: extended
    bytes.extend(meta.attributes.count_field().to_le_bytes());
    bytes.extend((file_kind(&inode.node).mode | meta.permissions & 0o7777).to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(size.to_le_bytes());
    bytes.extend(union.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes.extend(meta.uid.to_le_bytes());
    bytes.extend(meta.gid.to_le_bytes());
    bytes.extend(meta.modified.seconds.to_le_bytes());
    bytes.extend(meta.modified.nanoseconds.to_le_bytes());
    bytes.extend(links.to_le_bytes());
    bytes.extend([0; 16]);
    meta.attributes.encode(&mut bytes);
    bytes
}

/// The place of a chunk, or that it is all zeros.
pub fn chunk_index(block: Option<u32>) -> [u8; CHUNK_INDEX_LEN] {
    let [a, b, c, d] = block.unwrap_or(NULL_ADDRESS).to_le_bytes();
    [0, 0, 0, 0, a, b, c, d]
}

/// A file's type in its two spellings.
pub struct Kind {
    /// As in `st_mode`.
    pub mode: u16,
    /// As in a directory entry.
    pub entry: u8,
}

/// The type of a node.
pub fn file_kind(node: &Node) -> Kind {
    let (mode, entry) = match node {
        Node::File(_) => (0o10_0000, 1),
        Node::Directory(_) => (0o4_0000, 2),
        Node::CharDevice(_) => (0o2_0000, 3),
        Node::BlockDevice(_) => (0o6_0000, 4),
        Node::Fifo => (0o1_0000, 5),
        Node::Socket => (0o14_0000, 6),
        Node::Symlink(_) => (0o12_0000, 7),
    };
    Kind { mode, entry }
}

/// Bytes after an inode and its attributes at which its chunk indexes start: they are aligned to their own size.
pub fn chunk_padding(attributes: &Attributes) -> usize {
    (INODE_LEN + attributes.encoded_len()).next_multiple_of(CHUNK_INDEX_LEN) - INODE_LEN - attributes.encoded_len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value that catalogues of CRCs give for CRC-32C, which is inverted at the end.
    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_superblock_says_what_it_was_told() {
        let told = Super { root_nid: 2, inodes: 3, blocks: 4, metadata_block: 5, uuid: [7; 16], chunked: true };
        let block = told.block();
        assert_eq!(block.len(), BLOCK_LEN);
        assert!(block[..SUPER_OFFSET].iter().all(|byte| *byte == 0));
        assert_eq!(block[SUPER_OFFSET + 14], 2);
        assert_eq!(block[SUPER_OFFSET + 80], 4);
    }
}
