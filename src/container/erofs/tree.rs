//! What will be in the image: inodes, and directories that name them. All of it is in memory, but for files' contents.

use std::collections::{BTreeMap, VecDeque};

use super::format::NAME_MAX;
use super::{Attributes, Data, Error};

/// A moment: since 1970, before it if `seconds` is negative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// What follows them: below 1,000,000,000.
    pub nanoseconds: u32,
}

/// What every inode has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The lower 12 bits of `st_mode`.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its contents changed last.
    pub modified: Time,
    /// Extended attributes.
    pub attributes: Attributes,
}

/// What an inode is.
#[derive(Debug)]
pub enum Node {
    /// A regular file: where its contents are in the image.
    File(Data),
    /// Names of other inodes.
    Directory(BTreeMap<Box<[u8]>, InodeId>),
    /// Where a symbolic link leads.
    Symlink(Box<[u8]>),
    /// A character device, by its number (see [`device_number`]).
    CharDevice(u32),
    /// A block device, by its number.
    BlockDevice(u32),
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
}

/// One inode.
#[derive(Debug)]
pub struct Inode {
    /// Owner, time and the like.
    pub metadata: Metadata,
    /// What it is.
    pub node: Node,
}

/// Which inode of a [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(pub(super) u32);

impl InodeId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Inodes under one root directory. What no directory names any more is not in the image.
#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
}

/// A device's number as stat(2) has it: 12 bits of the major, 20 of the minor one. `None` if it has more.
pub fn device_number(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

impl Tree {
    /// The root directory.
    pub const ROOT: InodeId = InodeId(0);

    /// A tree of an empty root directory.
    pub fn new(root: Metadata) -> Self {
        Self { inodes: vec![Inode { metadata: root, node: Node::Directory(BTreeMap::new()) }] }
    }

    /// Keeps an inode, which has no name yet.
    ///
    /// # Errors
    /// [`Error::TooManyInodes`] beyond 2³².
    pub fn add(&mut self, inode: Inode) -> Result<InodeId, Error> {
        let id = InodeId(u32::try_from(self.inodes.len()).map_err(|_| Error::TooManyInodes)?);
        self.inodes.push(inode);
        Ok(id)
    }

    /// An inode.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// An inode, to change it.
    pub fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.index()]
    }

    /// Whether it is a directory.
    pub fn is_directory(&self, id: InodeId) -> bool {
        matches!(self.inode(id).node, Node::Directory(_))
    }

    /// What `directory` has under `name`.
    pub fn child(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        match &self.inode(directory).node {
            Node::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// Names an inode in a directory; whatever had that name loses it.
    ///
    /// # Errors
    /// [`Error::Name`] if no file can be called so.
    ///
    /// # Panics
    /// If `directory` is none: a fault of the caller, which has to know.
    pub fn link(&mut self, directory: InodeId, name: &[u8], inode: InodeId) -> Result<(), Error> {
        let odd = name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, 0 | b'/'));
        if odd || name.len() > NAME_MAX {
            return Err(Error::Name);
        }
        let Node::Directory(entries) = &mut self.inode_mut(directory).node else { panic!("a name in no directory") };
        entries.insert(name.into(), inode);
        Ok(())
    }

    /// How many inodes were ever added.
    pub(super) fn len(&self) -> usize {
        self.inodes.len()
    }

    /// All inodes that have names, level by level, and what their names say about them.
    pub(super) fn survey(&self) -> Survey {
        let mut survey =
            Survey { order: Vec::new(), links: vec![0; self.len()], parents: vec![Self::ROOT; self.len()] };
        let mut directories = VecDeque::from([Self::ROOT]);
        survey.links[Self::ROOT.index()] = 2;
        survey.order.push(Self::ROOT);
        while let Some(directory) = directories.pop_front() {
            let Node::Directory(entries) = &self.inode(directory).node else { continue };
            for id in entries.values() {
                let links = &mut survey.links[id.index()];
                *links += 1;
                if *links == 1 {
                    survey.order.push(*id);
                }
                if self.is_directory(*id) {
                    *links += 1; // its own "."
                    survey.links[directory.index()] += 1; // its ".."
                    survey.parents[id.index()] = directory;
                    directories.push_back(*id);
                }
            }
        }
        survey
    }
}

/// What [`Tree::survey`] finds; the vectors are by inode.
pub(super) struct Survey {
    /// Each inode once; the root first, what is in one directory together.
    pub order: Vec<InodeId>,
    /// Names of each, counted as `st_nlink` is.
    pub links: Vec<u32>,
    /// Of a directory: the one above it.
    pub parents: Vec<InodeId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_file_can_have_are_refused() {
        let mut tree = Tree::new(Metadata::default());
        let id = tree.add(Inode { metadata: Metadata::default(), node: Node::Fifo }).expect("room");
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(matches!(tree.link(Tree::ROOT, name, id), Err(Error::Name)), "{}", name.escape_ascii());
        }
        tree.link(Tree::ROOT, &[b'x'; 255], id).expect("a name");
    }

    #[test]
    fn links_are_counted_and_what_lost_its_name_is_gone() {
        let mut tree = Tree::new(Metadata::default());
        let fifo = |tree: &mut Tree| tree.add(Inode { metadata: Metadata::default(), node: Node::Fifo }).expect("room");
        let (a, b) = (fifo(&mut tree), fifo(&mut tree));
        let node = Node::Directory(BTreeMap::new());
        let dir = tree.add(Inode { metadata: Metadata::default(), node }).expect("room");
        tree.link(Tree::ROOT, b"a", a).expect("a name");
        tree.link(Tree::ROOT, b"dir", dir).expect("a name");
        tree.link(dir, b"a", a).expect("a name");
        tree.link(dir, b"b", b).expect("a name");
        tree.link(dir, b"b", a).expect("a name");
        let survey = tree.survey();
        assert_eq!(survey.order, [Tree::ROOT, a, dir]);
        assert_eq!(survey.links, [3, 3, 0, 2]);
    }

    #[test]
    fn device_numbers_are_those_of_stat() {
        assert_eq!(device_number(8, 1), Some(0x801));
        assert_eq!(device_number(259, 0x1_2345), Some(0x45 | 259 << 8 | 0x123 << 20));
        assert_eq!(device_number(4096, 0), None);
        assert_eq!(device_number(0, 1 << 20), None);
    }
}
