//! Entries of a layer become inodes: the last one of a name wins, directories that are missing are made, whiteouts wait
//! until the end, as one hides only what lower layers have.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Seek, Write};

use tar_core::EntryType;
use tar_core::parse::ParsedEntry;

use super::entries::{Contents, Piece};
use super::place::{self, Leave, Missing};
use super::{Converted, Fault, LayerError, Limits, pax};
use crate::erofs::{self, Attributes, Image, Inode, InodeId, Metadata, Node, Tree};

/// Before the name of what is not there any more.
const WHITEOUT: &[u8] = b".wh.";
/// Says that nothing of the directory it is in is there any more.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names with it are AUFS's own, which everybody leaves out.
const AUFS: &[u8] = b".wh..wh.";
/// What overlayfs tells itself: not for a layer to say.
const OVERLAY_ATTRIBUTE: &[u8] = b"trusted.overlay.";
/// Most bytes of a symbolic link's target.
const TARGET_MAX: usize = 4095;

/// What a layer has cost, and may.
struct Budget<'a> {
    limits: &'a Limits,
    entries: u64,
    memory: u64,
}

impl Budget<'_> {
    fn entry(&mut self) -> Result<(), Fault> {
        self.entries += 1;
        let limit = self.limits.entries;
        if self.entries > limit { Err(Fault::TooMuch { what: "entries", limit }) } else { Ok(()) }
    }

    fn memory(&mut self, bytes: usize) -> Result<(), Fault> {
        self.memory = self.memory.saturating_add(bytes as u64);
        let limit = self.limits.memory;
        let what = "bytes of names, links and attributes";
        if self.memory > limit { Err(Fault::TooMuch { what, limit }) } else { Ok(()) }
    }
}

impl Missing for Budget<'_> {
    fn make(&mut self, tree: &mut Tree, parent: InodeId, name: &[u8]) -> Result<Option<InodeId>, Fault> {
        self.entry()?;
        self.memory(name.len())?;
        let (metadata, node) = place::implied();
        let id = tree.add(Inode { metadata, node })?;
        tree.link(parent, name, id)?;
        Ok(Some(id))
    }
}

/// A layer on its way.
pub struct Unpack<'a, W> {
    image: Image<W>,
    tree: Tree,
    budget: Budget<'a>,
    entries: u64,
    /// Names in a directory that lower layers' files lose.
    hidden: BTreeMap<InodeId, BTreeSet<Box<[u8]>>>,
    /// Directories of which lower layers' part is not seen.
    opaque: BTreeSet<InodeId>,
}

impl<'a, W: Write + Seek> Unpack<'a, W> {
    /// Begins with an empty root directory.
    pub fn new(out: W, limits: &'a Limits) -> Result<Self, LayerError> {
        Ok(Self {
            image: Image::new(out, limits.bytes)?,
            tree: Tree::new(place::implied().0),
            budget: Budget { limits, entries: 0, memory: 0 },
            entries: 0,
            hidden: BTreeMap::new(),
            opaque: BTreeSet::new(),
        })
    }

    /// Takes an entry.
    pub fn entry<R: BufRead>(
        &mut self,
        entry: &ParsedEntry<'_>,
        contents: &mut Contents<'_, R>,
    ) -> Result<(), LayerError> {
        self.entries += 1;
        self.take(entry, contents).map_err(|fault| LayerError::at(&entry.path, fault))
    }

    fn take<R: BufRead>(&mut self, entry: &ParsedEntry<'_>, contents: &mut Contents<'_, R>) -> Result<(), Fault> {
        self.budget.entry()?;
        let path = place::names(&entry.path)?;
        if path.first().is_some_and(|name| name.starts_with(AUFS) && *name != OPAQUE) {
            return Ok(());
        }
        let directory = is_directory(entry);
        let Some((name, above)) = path.split_last() else {
            if !directory {
                return Err(Fault::Root);
            }
            self.tree.inode_mut(Tree::ROOT).metadata = self.metadata(entry)?;
            return Ok(());
        };
        if name.starts_with(WHITEOUT) {
            return self.whiteout(name, above);
        }
        if entry.entry_type == EntryType::Link {
            return self.hard_link(entry, above, name);
        }
        let metadata = self.metadata(entry)?;
        let parent = self.parent(above)?;
        if directory && let Some(there) = self.tree.child(parent, name).filter(|id| self.tree.is_directory(*id)) {
            self.tree.inode_mut(there).metadata = metadata;
            return Ok(());
        }
        let node = if directory { place::implied().1 } else { self.node(entry, &metadata.attributes, contents)? };
        self.budget.memory(name.len())?;
        let id = self.tree.add(Inode { metadata, node })?;
        Ok(self.tree.link(parent, name, id)?)
    }

    /// The directory that something goes into.
    fn parent(&mut self, above: &[&[u8]]) -> Result<InodeId, Fault> {
        Ok(place::directory(&mut self.tree, above, &mut self.budget)?.unwrap_or(Tree::ROOT)) // it makes what is missing
    }

    fn metadata(&mut self, entry: &ParsedEntry<'_>) -> Result<Metadata, Fault> {
        let (uid, gid) = pax::owner(entry)?;
        let mut attributes = Attributes::default();
        for (name, value) in &entry.xattrs {
            // What EROFS has no number for is left out, as Docker leaves out what a file system refuses.
            if !name.starts_with(OVERLAY_ATTRIBUTE) {
                attributes.set(name, value)?;
            }
        }
        self.budget.memory(attributes.encoded_len())?;
        let permissions = u16::try_from(entry.mode & 0o7777).unwrap_or(0);
        Ok(Metadata { permissions, uid, gid, modified: pax::modified(entry)?, attributes })
    }

    /// What is neither a directory nor another name of something.
    fn node<R: BufRead>(
        &mut self,
        entry: &ParsedEntry<'_>,
        attributes: &Attributes,
        contents: &mut Contents<'_, R>,
    ) -> Result<Node, Fault> {
        Ok(match entry.entry_type {
            EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => {
                let mut file = self.image.file(contents.size(), attributes)?;
                contents.read(|piece| match piece {
                    Piece::Bytes(bytes) => Ok(file.write(bytes)?),
                    Piece::Zeros(len) => Ok(file.zeros(len)?),
                })?;
                let data = file.finish()?;
                self.budget.memory(data.weight())?;
                Node::File(data)
            }
            EntryType::Symlink => {
                let target = link_target(entry)?;
                if target.len() > TARGET_MAX {
                    return Err(erofs::Error::Target.into());
                }
                self.budget.memory(target.len())?;
                Node::Symlink(target.into())
            }
            EntryType::Char => Node::CharDevice(device_number(entry)?),
            EntryType::Block => Node::BlockDevice(device_number(entry)?),
            EntryType::Fifo => Node::Fifo,
            other => return Err(Fault::Type(char::from(other.to_byte()))),
        })
    }

    fn hard_link(&mut self, entry: &ParsedEntry<'_>, above: &[&[u8]], name: &[u8]) -> Result<(), Fault> {
        let target = link_target(entry)?;
        let shown = || super::error::text(target);
        let path = place::names(target)?;
        let (last, way) = path.split_last().ok_or_else(|| Fault::DirectoryTarget(shown()))?;
        let there = place::directory(&mut self.tree, way, &mut Leave)?.and_then(|dir| self.tree.child(dir, last));
        let there = there.ok_or_else(|| Fault::NoTarget(shown()))?;
        if self.tree.is_directory(there) {
            return Err(Fault::DirectoryTarget(shown()));
        }
        let parent = self.parent(above)?;
        self.budget.memory(name.len())?;
        Ok(self.tree.link(parent, name, there)?)
    }

    fn whiteout(&mut self, name: &[u8], above: &[&[u8]]) -> Result<(), Fault> {
        if name == OPAQUE {
            let directory = self.parent(above)?;
            self.opaque.insert(directory);
        } else if !name.starts_with(AUFS) {
            let hidden = name.strip_prefix(WHITEOUT).unwrap_or(name);
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Fault::Whiteout);
            }
            let directory = self.parent(above)?;
            self.budget.memory(hidden.len())?;
            self.hidden.entry(directory).or_default().insert(hidden.into());
        }
        Ok(())
    }

    /// Completes the image.
    pub fn finish(mut self, diff_id: [u8; 32]) -> Result<Converted, LayerError> {
        self.hide()?;
        let mut uuid: [u8; 16] = std::array::from_fn(|n| diff_id[n]);
        uuid[6] = uuid[6] & 0x0f | 0x80; // RFC 9562: version 8, made of what one likes
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let bytes = self.image.finish(&self.tree, uuid)?;
        Ok(Converted { diff_id, bytes, entries: self.entries })
    }

    /// Puts whiteouts into the tree. A name that the layer itself has needs none, but a directory must not be merged
    /// with what is hidden. Under an opaque directory there is nothing to hide; overlayfs would list whiteouts there.
    fn hide(&mut self) -> Result<(), Fault> {
        for (directory, names) in &self.hidden {
            let there = names.iter().filter_map(|name| self.tree.child(*directory, name));
            self.opaque.extend(there.filter(|id| self.tree.is_directory(*id)));
        }
        for directory in &self.opaque {
            self.tree.inode_mut(*directory).metadata.attributes.set(b"trusted.overlay.opaque", b"y")?;
        }
        let mut open = vec![Tree::ROOT];
        while let Some(directory) = open.pop() {
            if self.opaque.contains(&directory) {
                continue;
            }
            let Node::Directory(entries) = &self.tree.inode(directory).node else { continue };
            open.extend(entries.values().filter(|id| self.tree.is_directory(**id)));
            for name in self.hidden.remove(&directory).unwrap_or_default() {
                if self.tree.child(directory, &name).is_none() {
                    self.budget.entry()?;
                    let id = self.tree.add(Inode { metadata: Metadata::default(), node: Node::CharDevice(0) })?;
                    self.tree.link(directory, &name, id)?;
                }
            }
        }
        Ok(())
    }
}

/// A file whose name ends with a slash is a directory: that is how tars had them before there was a type for it.
fn is_directory(entry: &ParsedEntry<'_>) -> bool {
    let old = matches!(entry.entry_type, EntryType::Regular | EntryType::Continuous) && entry.path.ends_with(b"/");
    entry.entry_type == EntryType::Directory || old
}

fn link_target<'a>(entry: &'a ParsedEntry<'_>) -> Result<&'a [u8], Fault> {
    entry.link_target.as_deref().filter(|target| !target.contains(&0)).ok_or(Fault::Field("link"))
}

fn device_number(entry: &ParsedEntry<'_>) -> Result<u32, Fault> {
    let number = erofs::device_number(entry.dev_major.unwrap_or(0), entry.dev_minor.unwrap_or(0));
    number.ok_or(Fault::Field("device number"))
}
