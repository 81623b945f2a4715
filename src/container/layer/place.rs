//! Paths of a layer, looked up in the tree that is being made of it. There is no way out of the tree: `..` stops at its
//! root, in symbolic links as a chroot has it; in an entry's own path it is an error there, as Docker has it.

use std::collections::BTreeMap;

use super::Fault;
use super::error::text;
use crate::erofs::{InodeId, Metadata, Node, Tree};

/// Symbolic links on one path, as in the kernel (MAXSYMLINKS).
const LINKS_MAX: u32 = 40;

/// The names on a path, without what means nothing.
pub fn names(path: &[u8]) -> Result<Vec<&[u8]>, Fault> {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop().ok_or(Fault::Escapes)?;
            }
            name => names.push(name),
        }
    }
    Ok(names)
}

/// What is done about a directory that is missing on a path.
pub trait Missing {
    /// A directory in its place, or none.
    fn make(&mut self, tree: &mut Tree, parent: InodeId, name: &[u8]) -> Result<Option<InodeId>, Fault>;
}

/// Nothing.
pub struct Leave;

impl Missing for Leave {
    fn make(&mut self, _: &mut Tree, _: InodeId, _: &[u8]) -> Result<Option<InodeId>, Fault> {
        Ok(None)
    }
}

/// The directory at the end of a path, through symbolic links, which are the layer's own.
pub fn directory(tree: &mut Tree, path: &[&[u8]], missing: &mut dyn Missing) -> Result<Option<InodeId>, Fault> {
    let mut rest: Vec<Vec<u8>> = path.iter().rev().map(|name| name.to_vec()).collect();
    let mut way = vec![Tree::ROOT];
    let mut links = 0;
    while let Some(name) = rest.pop() {
        let here = way.last().copied().unwrap_or(Tree::ROOT);
        match &name[..] {
            b"" | b"." => continue,
            b".." => {
                way.truncate((way.len() - 1).max(1));
                continue;
            }
            _ => {}
        }
        let Some(child) = tree.child(here, &name) else {
            let Some(made) = missing.make(tree, here, &name)? else { return Ok(None) };
            way.push(made);
            continue;
        };
        match &tree.inode(child).node {
            Node::Directory(_) => way.push(child),
            Node::Symlink(target) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Fault::Loop);
                }
                if target.starts_with(b"/") {
                    way.truncate(1);
                }
                rest.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
            }
            _ => return Err(Fault::NotADirectory(text(&name))),
        }
    }
    Ok(way.last().copied())
}

/// A directory that no entry describes: the layer has only something in it.
pub fn implied() -> (Metadata, Node) {
    (Metadata { permissions: 0o755, ..Metadata::default() }, Node::Directory(BTreeMap::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_do_not_leave() {
        assert_eq!(names(b"/a//b/./c/").expect("inside"), [b"a", b"b", b"c"]);
        assert_eq!(names(b"a/../b").expect("inside"), [b"b"]);
        assert!(names(b"./").expect("the root").is_empty());
        for path in [&b".."[..], b"a/../../b", b"/..", b"a/b/../../../c"] {
            assert!(matches!(names(path), Err(Fault::Escapes)), "{}", path.escape_ascii());
        }
    }
}
