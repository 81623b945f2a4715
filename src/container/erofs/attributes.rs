//! The extended attributes of one inode: their names' prefixes as numbers, and all of them as bytes after the inode.
//! Source: fs/erofs/erofs_fs.h, `erofs_xattr_ibody_header` and `erofs_xattr_entry`.

use std::collections::BTreeMap;

use super::Error;

/// Prefixes of names, and the numbers that stand for them. The whole name of an ACL is its prefix.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
const HEADER_LEN: usize = 12;
const ENTRY_LEN: usize = 4;
/// Most bytes of all attributes: what the inode's field of 16 bits can say.
const ALL_MAX: usize = HEADER_LEN + (u16::MAX as usize - 1) * ENTRY_LEN;

/// Extended attributes of one inode, sorted, so that the same ones make the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(BTreeMap<(u8, Vec<u8>), Vec<u8>>);

impl Attributes {
    /// Sets attribute `name` to `value`; false if EROFS has no prefix for such a name.
    ///
    /// # Errors
    /// [`Error::AttributesTooLarge`] if the name, the value or all of them together are more than an inode can have.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<bool, Error> {
        let Some((rest, prefix)) = PREFIXES.iter().find_map(|(prefix, number)| {
            let rest = name.strip_prefix(*prefix)?;
            (rest.is_empty() != prefix.ends_with(b".")).then_some((rest, *number))
        }) else {
            return Ok(false);
        };
        let fits = u8::try_from(rest.len()).is_ok() && u16::try_from(value.len()).is_ok();
        if !fits || self.encoded_len() + entry_len(rest, value) + HEADER_LEN > ALL_MAX {
            return Err(Error::AttributesTooLarge);
        }
        self.0.insert((prefix, rest.to_vec()), value.to_vec());
        Ok(true)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes that they take after the inode.
    pub fn encoded_len(&self) -> usize {
        let entries: usize = self.0.iter().map(|((_, name), value)| entry_len(name, value)).sum();
        if entries == 0 { 0 } else { HEADER_LEN + entries }
    }

    /// The inode's field that tells these bytes: the header counts one, each four bytes after it one more.
    pub(super) fn count_field(&self) -> u16 {
        let words = self.encoded_len().saturating_sub(HEADER_LEN).div_ceil(ENTRY_LEN);
        if self.is_empty() { 0 } else { u16::try_from(words + 1).unwrap_or(u16::MAX) }
    }

    /// Appends them to an inode.
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        if self.is_empty() {
            return;
        }
        bytes.extend([0; HEADER_LEN]);
        for ((prefix, name), value) in &self.0 {
            let end = bytes.len() + entry_len(name, value);
            bytes.push(u8::try_from(name.len()).unwrap_or(u8::MAX)); // set() has looked at both
            bytes.push(*prefix);
            bytes.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend(name);
            bytes.extend(value);
            bytes.resize(end, 0);
        }
    }
}

/// Bytes of one attribute: its header, its name without the prefix and its value, aligned.
fn entry_len(name: &[u8], value: &[u8]) -> usize {
    (ENTRY_LEN + name.len() + value.len()).next_multiple_of(ENTRY_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_a_number_are_told_apart_from_too_large_ones() {
        let mut attributes = Attributes::default();
        for unknown in [&b"system.nfs4_acl"[..], b"user", b"user.", b"system.posix_acl_accessories", b""] {
            assert!(!attributes.set(unknown, b"v").expect("not too large"), "{}", unknown.escape_ascii());
        }
        assert!(attributes.is_empty());
        assert!(attributes.set(b"system.posix_acl_access", b"v").expect("not too large"));
        let long = [&b"user."[..], &[b'x'; 256]].concat();
        assert!(matches!(attributes.set(&long, b""), Err(Error::AttributesTooLarge)));
        assert!(matches!(attributes.set(b"user.a", &[0; 65536]), Err(Error::AttributesTooLarge)));
        for name in 0..3 {
            attributes.set(format!("user.{name}").as_bytes(), &[0; 65535]).expect("three of four quarters");
        }
        assert!(matches!(attributes.set(b"user.3", &[0; 65535]), Err(Error::AttributesTooLarge)));
    }

    #[test]
    fn the_bytes_are_as_many_as_announced() {
        let mut attributes = Attributes::default();
        assert_eq!((attributes.encoded_len(), attributes.count_field()), (0, 0));
        attributes.set(b"trusted.overlay.opaque", b"y").expect("it fits");
        attributes.set(b"security.capability", &[1; 20]).expect("it fits");
        let mut bytes = Vec::new();
        attributes.encode(&mut bytes);
        assert_eq!(bytes.len(), attributes.encoded_len());
        assert_eq!(usize::from(attributes.count_field()), (bytes.len() - HEADER_LEN) / 4 + 1);
    }
}
