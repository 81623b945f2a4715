//! A reader of EROFS for tests, written from the format's description and not from the writer: it trusts nothing, and an
//! image that the kernel would stumble over is an error.

use std::collections::BTreeMap;

type Result<T> = std::result::Result<T, String>;

const BLOCK: u64 = 4096;

/// What an image holds: by path, the root's being empty.
pub type Listing = BTreeMap<Vec<u8>, Found>;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The inode's number: the same for names of one file.
    pub nid: u64,
    /// `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of the last change: seconds and nanoseconds.
    pub modified: (i64, u32),
    /// `st_nlink`.
    pub links: u32,
    /// Of a device.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Of a regular file or a link, if it is not too large to be kept.
    pub contents: Vec<u8>,
    /// Attributes by their names.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Most bytes of contents that are read.
const CONTENTS_MAX: u64 = 16 << 20;

struct Reader<'a> {
    image: &'a [u8],
    area: u64,
    chunked: bool,
}

/// All that is in an image.
///
/// # Errors
/// What is wrong with it.
pub fn list(image: &[u8]) -> Result<Listing> {
    let block = image.get(..4096).ok_or("no superblock")?;
    let number = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let mut copy = block[1024..].to_vec();
    copy[4..8].fill(0);
    if number(1024) != 0xe0f5_e1e2 || number(1028) != checksum(&copy) {
        return Err("a bad superblock".into());
    }
    if u64::from(number(1024 + 36)) * BLOCK != image.len() as u64 {
        return Err("a size that is not the superblock's".into());
    }
    let reader = Reader { image, area: u64::from(number(1024 + 40)) * BLOCK, chunked: number(1024 + 80) == 4 };
    let mut listing = Listing::new();
    let root = u64::from(u16::from_le_bytes([block[1024 + 14], block[1024 + 15]]));
    reader.walk(root, &mut listing)?;
    let inodes: std::collections::BTreeSet<u64> = listing.values().map(|found| found.nid).collect();
    if inodes.len() as u64 != u64::from(number(1024 + 16)) {
        return Err("another number of inodes than the superblock's".into());
    }
    Ok(listing)
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
        }
    }
    sum
}

impl Reader<'_> {
    fn bytes(&self, at: u64, len: u64) -> Result<&[u8]> {
        let range = usize::try_from(at).ok().zip(at.checked_add(len).and_then(|end| usize::try_from(end).ok()));
        range.and_then(|(from, to)| self.image.get(from..to)).ok_or_else(|| format!("{len} bytes at {at}: not there"))
    }

    fn u16(&self, at: u64) -> Result<u16> {
        self.bytes(at, 2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }

    fn u32(&self, at: u64) -> Result<u32> {
        self.bytes(at, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&self, at: u64) -> Result<u64> {
        Ok(u64::from(self.u32(at)?) | u64::from(self.u32(at + 4)?) << 32)
    }

    fn walk(&self, root: u64, listing: &mut Listing) -> Result<()> {
        let mut stack = vec![(Vec::new(), root, root, 2_u8)];
        while let Some((path, nid, parent, kind)) = stack.pop() {
            let found = self.inode(nid)?;
            let expected = [0_u16, 0o10, 0o4, 0o2, 0o6, 0o1, 0o14, 0o12].get(usize::from(kind));
            if expected.map(|mode| mode << 12) != Some(found.mode & 0o17_0000) {
                return Err(format!("an entry's type is not that of inode {nid}"));
            }
            if found.mode & 0o17_0000 == 0o4_0000 {
                for (name, child, kind) in self.directory(&found.contents)? {
                    match &name[..] {
                        b"." if child != nid => return Err(format!("directory {nid} is not its own '.'")),
                        b".." if child != parent => return Err(format!("directory {nid} is not under its '..'")),
                        b"." | b".." => {}
                        _ => stack.push(([&path[..], b"/", &name].concat(), child, nid, kind)),
                    }
                }
            }
            let contents = if found.mode & 0o17_0000 == 0o4_0000 { Vec::new() } else { found.contents };
            listing.insert(path, Found { contents, ..found });
        }
        Ok(())
    }

    /// Entries of a directory, which must be sorted.
    fn directory(&self, contents: &[u8]) -> Result<Vec<(Vec<u8>, u64, u8)>> {
        let mut entries: Vec<(Vec<u8>, u64, u8)> = Vec::new();
        for block in contents.chunks(4096) {
            let word = |at: usize| block.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
            let first = word(8).ok_or("a directory's block without an entry")?;
            if first == 0 || !first.is_multiple_of(12) {
                return Err("a directory's block without a number of entries".into());
            }
            for n in 0..first / 12 {
                let from = word(n * 12 + 8).ok_or("an entry beyond its block")?;
                let to = if n + 1 < first / 12 {
                    word(n * 12 + 20).ok_or("an entry beyond its block")?
                } else {
                    block.len()
                };
                let name = block.get(from..to).ok_or("a name beyond its block")?;
                let name: Vec<u8> = name.iter().copied().take_while(|byte| *byte != 0).collect();
                if name.is_empty() || entries.last().is_some_and(|(before, ..)| *before >= name) {
                    return Err(format!("'{}' is out of order", name.escape_ascii()));
                }
                let nid = block[n * 12..n * 12 + 8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
                entries.push((name, nid, block[n * 12 + 10]));
            }
        }
        let dots = entries.iter().filter(|(name, ..)| name == b"." || name == b"..").count();
        if dots == 2 { Ok(entries) } else { Err("a directory without '.' and '..'".into()) }
    }

    fn inode(&self, nid: u64) -> Result<Found> {
        let at = self.area + nid * 32;
        let format = self.u16(at)?;
        if format & 1 != 1 || at % BLOCK > BLOCK - 64 {
            return Err(format!("inode {nid} is compact or crosses a block"));
        }
        let count = u64::from(self.u16(at + 2)?);
        let attributes_len = if count == 0 { 0 } else { 12 + (count - 1) * 4 };
        let mode = self.u16(at + 4)?;
        let size = self.u64(at + 8)?;
        let union = self.u32(at + 16)?;
        let device = matches!(mode >> 12, 0o2 | 0o6);
        let contents = match mode >> 12 {
            0o10 | 0o4 | 0o12 => self.contents(at + 64 + attributes_len, format >> 1, size, union)?,
            _ => Vec::new(),
        };
        Ok(Found {
            nid,
            mode,
            uid: self.u32(at + 24)?,
            gid: self.u32(at + 28)?,
            modified: (self.u64(at + 32)?.cast_signed(), self.u32(at + 40)?),
            links: self.u32(at + 44)?,
            rdev: if device { union } else { 0 },
            size,
            contents,
            attributes: self.attributes(at + 64, attributes_len)?,
        })
    }

    fn attributes(&self, at: u64, len: u64) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut rest = self.bytes(at, len)?.get(12..).unwrap_or(&[]);
        while let [name_len, prefix, low, high, more @ ..] = rest {
            let prefix = match prefix {
                1 => "user.",
                2 => "system.posix_acl_access",
                3 => "system.posix_acl_default",
                4 => "trusted.",
                6 => "security.",
                _ => return Err(format!("attribute of kind {prefix}")),
            };
            let (name_len, value_len) = (usize::from(*name_len), usize::from(u16::from_le_bytes([*low, *high])));
            let name = more.get(..name_len).ok_or("an attribute's name is cut off")?;
            let value = more.get(name_len..name_len + value_len).ok_or("an attribute's value is cut off")?;
            found.insert([prefix.as_bytes(), name].concat(), value.to_vec());
            rest = rest.get((4 + name_len + value_len).next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(found)
    }

    /// Contents that `layout` says where to find; `after` is the byte after the inode and its attributes.
    fn contents(&self, after: u64, layout: u16, size: u64, union: u32) -> Result<Vec<u8>> {
        let kept = size.min(CONTENTS_MAX);
        let first = u64::from(union) * BLOCK;
        match layout {
            0 => self.bytes(first, size).map(|bytes| bytes[..usize::try_from(kept).unwrap_or(0)].to_vec()),
            2 => {
                let tail = if size == 0 { 0 } else { (size - 1) % BLOCK + 1 };
                if after % BLOCK + tail > BLOCK || tail == BLOCK {
                    return Err("what is beside an inode crosses a block".into());
                }
                Ok([self.bytes(first, size - tail)?, self.bytes(after, tail)?].concat())
            }
            4 if self.chunked => {
                let chunk = BLOCK << (union & 0x1f);
                let index = after.next_multiple_of(8);
                let mut contents = Vec::new();
                for n in 0..size.div_ceil(chunk) {
                    let block = self.u32(index + n * 8 + 4)?;
                    let len = chunk.min(size - n * chunk);
                    let bytes = if block == u32::MAX { None } else { Some(self.bytes(u64::from(block) * BLOCK, len)?) };
                    if n * chunk + len <= CONTENTS_MAX {
                        match bytes {
                            Some(bytes) => contents.extend_from_slice(bytes),
                            None => contents.resize(contents.len() + usize::try_from(len).unwrap_or(0), 0),
                        }
                    }
                }
                Ok(contents)
            }
            _ => Err(format!("layout {layout}")),
        }
    }
}
