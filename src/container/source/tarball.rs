//! A tar whose members are read where they are, without unpacking it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType};

use super::SourceError;

/// Most members that are kept in mind.
const MEMBERS_MAX: usize = 100_000;
/// Longest chain of links between members.
const LINKS_MAX: usize = 8;

/// A tar in a file that can be read anywhere.
pub struct Tarball {
    file: File,
    /// For messages.
    path: PathBuf,
    members: HashMap<String, Member>,
}

/// What is in it.
enum Member {
    File { at: u64, size: u64 },
    Link(String),
}

/// A member, as a file of its own.
pub struct MemberReader<'a> {
    file: &'a File,
    start: u64,
    size: u64,
    position: u64,
}

impl Tarball {
    /// Reads the headers. `path` is for messages.
    pub fn open_file(file: File, path: &Path) -> Result<Self, SourceError> {
        let fault = |error: io::Error| SourceError::form(path, format!("this is no tar that can be read: {error}"));
        let size = file.metadata().map_err(fault)?.len();
        let mut members = HashMap::new();
        let mut archive = Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(fault)? {
            let entry = entry.map_err(fault)?;
            let Some(name) = entry.path().ok().and_then(|path| plain(&path, Path::new(""))) else { continue };
            let member = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    Member::File { at: entry.raw_file_position(), size: entry.size() }
                }
                kind @ (EntryType::Symlink | EntryType::Link) => {
                    let base = if kind == EntryType::Symlink { Path::new(&name).parent() } else { None };
                    let target = entry.link_name().ok().flatten();
                    let Some(target) = target.and_then(|to| plain(&to, base.unwrap_or(Path::new("")))) else {
                        continue;
                    };
                    Member::Link(target)
                }
                _ => continue,
            };
            if let Member::File { at, size: length } = member
                && at.checked_add(length).is_none_or(|end| end > size)
            {
                return Err(SourceError::form(path, format!("the archive is cut off within `{name}`")));
            }
            members.insert(name, member);
            if members.len() > MEMBERS_MAX {
                return Err(SourceError::form(path, format!("the archive has more than {MEMBERS_MAX} members")));
            }
        }
        Ok(Self { file, path: path.to_owned(), members })
    }

    /// Whether there is such a member.
    pub fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// A member's contents.
    pub fn open(&self, name: &str) -> Result<MemberReader<'_>, SourceError> {
        let mut at = name;
        for _ in 0..=LINKS_MAX {
            match self.members.get(at) {
                Some(&Member::File { at: start, size }) => {
                    return Ok(MemberReader { file: &self.file, start, size, position: 0 });
                }
                Some(Member::Link(target)) => at = target,
                None => return Err(SourceError::form(&self.path, format!("the archive has no `{name}`"))),
            }
        }
        Err(SourceError::form(&self.path, format!("in the archive, `{name}` is a link that leads to itself")))
    }
}

/// A path within the tar, without dots; nothing if it leads out of it.
fn plain(path: &Path, base: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for component in base.components().chain(path.components()) {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

impl MemberReader<'_> {
    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for MemberReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let length = into.len().min(left);
        let count = self.file.read_at(into.get_mut(..length).unwrap_or_default(), self.start + self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for MemberReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
