//! A GUID partition table made on the fly, for a disk whose partitions are files of the host (UEFI specification 2.10,
//! chapter 5). Pure; the control thread makes it.
//!
//! The table says the same whenever names, sizes and order are the same: its GUIDs are derived from them.

use sha2::{Digest, Sha256};

use super::file::SECTOR;

/// Partitions begin at multiples of this, bytes: huge pages of the host, should a disk ever be mapped.
pub const ALIGN: u64 = 2 << 20;
/// Partitions have whole blocks of this, bytes.
pub const BLOCK: u64 = 4096;
/// UTF-16 units of a partition's name (table 5-6).
pub const NAME_MAX: usize = 36;

/// Entries of the table, and bytes of each (5.3.2: at least 16384 bytes are reserved for them).
const ENTRIES: u32 = 128;
const ENTRY: usize = 128;
/// Bytes of the header that its CRC covers (table 5-5).
const HEADER: u32 = 92;
/// Sectors of one copy of the table: the header and the entries.
const TABLE: u64 = 33;
/// "Linux filesystem data", 0fc63daf-8483-4772-8e79-3d69d8477de4, as it lies on the disk.
const TYPE: [u8; 16] = [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];

/// What becomes one partition.
#[derive(Debug, Clone, Copy)]
pub struct Partition<'a> {
    /// At most [`NAME_MAX`] UTF-16 units; what is more is left out.
    pub name: &'a str,
    /// Bytes, at least one.
    pub len: u64,
}

/// Where everything lies, and the bytes that are in no partition.
#[derive(Debug, PartialEq, Eq)]
pub struct Gpt {
    /// Where each partition begins on the disk, bytes.
    pub starts: Vec<u64>,
    /// Bytes of the disk.
    pub size: u64,
    /// The disk's first bytes: protective MBR, header, entries.
    pub primary: Vec<u8>,
    /// The disk's last bytes: entries, header.
    pub backup: Vec<u8>,
}

/// One copy of the header: everything that is not the same on each disk.
struct Header {
    own: u64,
    other: u64,
    entries_at: u64,
    last_usable: u64,
    disk: [u8; 16],
    entries_crc: u32,
}

impl Gpt {
    /// The table of these partitions; nothing where they do not fit into 64 bits.
    pub fn of(partitions: &[Partition<'_>]) -> Option<Self> {
        let digest = digest(partitions);
        let (mut starts, mut entries, mut end) = (Vec::new(), Vec::new(), (TABLE + 1) * SECTOR);
        for (partition, number) in partitions.iter().zip(1_u64..) {
            let start = end.checked_next_multiple_of(ALIGN)?;
            end = start.checked_add(partition.len.max(1).checked_next_multiple_of(BLOCK)?)?;
            let unique = guid(Sha256::new().chain_update(digest).chain_update(number.to_le_bytes()));
            let (first, last) = (start / SECTOR, (end / SECTOR).checked_sub(1)?);
            entries.extend(entry(unique, first, last, partition.name));
            starts.push(start);
        }
        entries.resize(ENTRY.checked_mul(usize::try_from(ENTRIES).ok()?)?, 0);
        let size = end.checked_add(TABLE * SECTOR)?.checked_next_multiple_of(BLOCK)?;
        let last = (size / SECTOR).checked_sub(1)?;
        let (backup_at, last_usable) = (last.checked_sub(TABLE - 1)?, last.checked_sub(TABLE)?);
        let disk = guid(Sha256::new().chain_update(digest));
        let entries_crc = crc32fast::hash(&entries);
        let header =
            |own, other, entries_at| Header { own, other, entries_at, last_usable, disk, entries_crc }.sector();
        let primary = [protective_mbr(last), header(1, last, 2), entries.clone()].concat();
        let backup = [entries, header(last, 1, backup_at)].concat();
        Some(Self { starts, size, primary, backup })
    }
}

/// Stands for what a disk is made of.
fn digest(partitions: &[Partition<'_>]) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix("partitions of files, 1\0");
    for partition in partitions {
        let name = partition.name.as_bytes();
        hash.update(u64::try_from(name.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(name);
        hash.update(partition.len.to_le_bytes());
    }
    hash.finalize().into()
}

/// A GUID of a hash, as it lies on the disk: version 8, custom (RFC 9562, 5.8; UEFI 2.10, appendix A).
fn guid(hash: Sha256) -> [u8; 16] {
    let [a, b, c, d, e, f, g, version, variant, h, i, j, k, l, m, n, ..]: [u8; 32] = hash.finalize().into();
    [a, b, c, d, e, f, g, version & 0x0f | 0x80, variant & 0x3f | 0x80, h, i, j, k, l, m, n]
}

/// One entry (table 5-6). `last` is the partition's own last sector.
fn entry(unique: [u8; 16], first: u64, last: u64, name: &str) -> Vec<u8> {
    let mut entry = Vec::with_capacity(ENTRY);
    entry.extend(TYPE);
    entry.extend(unique);
    entry.extend(first.to_le_bytes());
    entry.extend(last.to_le_bytes());
    entry.extend([0; 8]); // attributes: none
    entry.extend(name.encode_utf16().take(NAME_MAX).flat_map(u16::to_le_bytes));
    entry.resize(ENTRY, 0);
    entry
}

/// The first sector, for those who know no GPT: one partition of an unknown kind that has everything (table 5-3, 5-4).
fn protective_mbr(last: u64) -> Vec<u8> {
    let mut mbr = vec![0; 446];
    mbr.extend([0, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff]); // as cylinders, heads and sectors: from 0/0/2 on
    mbr.extend(1_u32.to_le_bytes());
    mbr.extend(u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    mbr.resize(510, 0);
    mbr.extend([0x55, 0xaa]);
    mbr
}

impl Header {
    /// The header's sector (table 5-5).
    fn sector(&self) -> Vec<u8> {
        let mut sector = self.bytes(crc32fast::hash(&self.bytes(0)));
        sector.resize(512, 0);
        sector
    }

    fn bytes(&self, crc: u32) -> Vec<u8> {
        let mut header = b"EFI PART".to_vec();
        for word in [0x0001_0000, HEADER, crc, 0] {
            header.extend(word.to_le_bytes()); // revision 1.0, size, CRC of it, reserved
        }
        for place in [self.own, self.other, TABLE + 1, self.last_usable] {
            header.extend(place.to_le_bytes());
        }
        header.extend(self.disk);
        header.extend(self.entries_at.to_le_bytes());
        for word in [ENTRIES, 128, self.entries_crc] {
            header.extend(word.to_le_bytes());
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(partitions: &[(&str, u64)]) -> Gpt {
        let partitions: Vec<_> = partitions.iter().map(|(name, len)| Partition { name, len: *len }).collect();
        Gpt::of(&partitions).unwrap()
    }

    fn guids(gpt: &Gpt) -> (&[u8], Vec<&[u8]>) {
        (&gpt.primary[512 + 56..512 + 72], gpt.primary[1024..].chunks(128).map(|entry| &entry[16..32]).collect())
    }

    #[test]
    fn the_same_partitions_are_the_same_disk() {
        let one = table(&[("a", 1), ("b", 5000)]);
        assert_eq!(one, table(&[("a", 1), ("b", 5000)]));
        assert_eq!((one.starts.as_slice(), one.size), (&[ALIGN, 2 * ALIGN][..], 2 * ALIGN + 8192 + 20480));
        let (disk, parts) = guids(&one);
        for other in [
            table(&[("b", 5000), ("a", 1)]),
            table(&[("a", 1), ("b", 5001)]),
            table(&[("a", 1), ("c", 5000)]),
            table(&[("a", 1)]),
        ] {
            let (other_disk, others) = guids(&other);
            assert_ne!(disk, other_disk);
            assert!(others.iter().take(1).all(|guid| !parts.contains(guid)), "each partition has its own");
        }
        assert_ne!(parts[0], parts[1]);
        assert_eq!([disk[7] >> 4, disk[8] >> 6], [8, 2], "version and variant");
    }

    #[test]
    fn names_are_cut_and_sizes_do_not_wrap() {
        let gpt = table(&[(&"ä".repeat(40), 1)]);
        assert_eq!(
            gpt.primary[1024 + 56..1024 + 128],
            "ä".repeat(36).encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()
        );
        for len in [u64::MAX, u64::MAX / 2] {
            assert_eq!(Gpt::of(&[Partition { name: "", len }; 2]), None);
        }
    }
}
