//! The last parts of an image: blocks of directories, long links, the metadata area, the superblock.

use std::io::{Seek, Write};

use super::blocks::Blocks;
use super::directory::{self, Entry, Packed};
use super::format::{self, BLOCK, BLOCK_LEN, CHUNK_INDEX_LEN, INODE_LEN, SLOT, Storage, Super};
use super::layout::Packer;
use super::tree::Survey;
use super::{Error, Inode, InodeId, Node, Tree, room_beside};

/// Bytes at the start of the metadata area without an inode, so that none has the number 0: programs take a directory's
/// entry with that number for a deleted one.
const RESERVED: usize = 64;
/// Most bytes of a symbolic link's target: PATH_MAX without its NUL.
const TARGET_MAX: usize = 4095;

/// Where an inode goes and how its contents are found.
struct Placed {
    id: InodeId,
    /// Bytes from the start of the metadata area.
    place: u64,
    size: u64,
    storage: Storage,
    /// Of a directory: its blocks.
    packed: Vec<Packed>,
}

/// Completes the image; returns its size in bytes.
pub fn metadata<W: Write + Seek>(mut blocks: Blocks<W>, tree: &Tree, uuid: [u8; 16]) -> Result<u64, Error> {
    let survey = tree.survey();
    let mut packer = Packer::new(RESERVED);
    let mut next = u64::from(blocks.block());
    let mut placed = Vec::with_capacity(survey.order.len());
    let mut nids = vec![0; tree.len()];
    for id in &survey.order {
        let one = plan(tree, *id, &mut next, &mut packer)?;
        nids[id.index()] = one.place / SLOT as u64;
        placed.push(one);
    }
    blocks.has_room((next - u64::from(blocks.block()) + packer.blocks()).saturating_mul(BLOCK))?;

    for one in &placed {
        write_blocks(&mut blocks, tree, &survey, &nids, one)?;
    }
    let area = blocks.position();
    placed.sort_unstable_by_key(|one| one.place);
    for (number, one) in (1..).zip(&placed) {
        blocks.skip(area + one.place - blocks.position())?;
        blocks.append(&with_payload(tree, &survey, &nids, one, number))?;
    }
    blocks.align()?;
    let chunked = placed.iter().any(|one| matches!(one.storage, Storage::Chunks { .. }));
    let first = Super {
        root_nid: u16::try_from(nids[Tree::ROOT.index()]).unwrap_or(u16::MAX), // the first to be placed
        inodes: placed.len() as u64,
        blocks: blocks.block(),
        metadata_block: u32::try_from(area / BLOCK).unwrap_or(u32::MAX), // within the limit
        uuid,
        chunked,
    };
    blocks.finish(&first.block())
}

/// Decides on an inode's storage and place. `next` is the block after all that are taken.
fn plan(tree: &Tree, id: InodeId, next: &mut u64, packer: &mut Packer) -> Result<Placed, Error> {
    let inode = tree.inode(id);
    let attributes = &inode.metadata.attributes;
    let mut packed = Vec::new();
    let mut beside = 0;
    // The first of `count` blocks for contents.
    let mut take = |count: u64| {
        let first = *next;
        *next += count;
        u32::try_from(first).map_err(|_| Error::TooLarge { limit: u64::from(u32::MAX) * BLOCK })
    };
    let (size, storage) = match &inode.node {
        Node::File(data) => {
            beside = match data.storage() {
                Storage::Chunks { .. } => {
                    let index =
                        usize::try_from(data.chunk_count()).unwrap_or(usize::MAX).saturating_mul(CHUNK_INDEX_LEN);
                    index.saturating_add(format::chunk_padding(attributes))
                }
                _ => data.tail().len(),
            };
            (data.size(), data.storage())
        }
        Node::Directory(_) => {
            packed = directory::pack(names(tree, id).iter().map(|(name, _)| *name));
            let whole = packed.len().saturating_sub(1);
            let end = packed.last().map_or(0, |last| last.len);
            let size = (whole * BLOCK_LEN + end) as u64;
            if end <= room_beside(attributes) {
                beside = end;
                (size, Storage::Inline { first: take(whole as u64)? })
            } else {
                (size, Storage::Plain { first: take(packed.len() as u64)? })
            }
        }
        Node::Symlink(target) => match target.len() {
            0 => return Err(Error::Target),
            len if len <= room_beside(attributes) => {
                beside = len;
                (len as u64, Storage::Inline { first: 0 })
            }
            len if len <= TARGET_MAX => (len as u64, Storage::Plain { first: take(1)? }),
            _ => return Err(Error::Target),
        },
        Node::CharDevice(rdev) | Node::BlockDevice(rdev) => (0, Storage::None { rdev: *rdev }),
        Node::Fifo | Node::Socket => (0, Storage::None { rdev: 0 }),
    };
    let place = packer.place(INODE_LEN + attributes.encoded_len() + beside);
    Ok(Placed { id, place, size, storage, packed })
}

/// A directory's entries in the order of the disk, with those for itself and for the one above it.
fn names(tree: &Tree, id: InodeId) -> Vec<(&[u8], Option<InodeId>)> {
    let Node::Directory(entries) = &tree.inode(id).node else { return Vec::new() };
    let mut names: Vec<(&[u8], Option<InodeId>)> = entries.iter().map(|(name, id)| (&name[..], Some(*id))).collect();
    for dots in [&b"."[..], b".."] {
        let at = names.partition_point(|(name, _)| *name < dots);
        names.insert(at, (dots, None));
    }
    names
}

/// A directory's blocks, all of them.
fn directory_blocks(tree: &Tree, survey: &Survey, nids: &[u64], one: &Placed) -> Vec<Vec<u8>> {
    let names = names(tree, one.id);
    let entries: Vec<Entry<'_>> = names
        .iter()
        .map(|(name, child)| {
            let id = child.unwrap_or(if *name == b"." { one.id } else { survey.parents[one.id.index()] });
            Entry { name, nid: nids[id.index()], kind: format::file_kind(&tree.inode(id).node).entry }
        })
        .collect();
    let mut rest = &entries[..];
    one.packed
        .iter()
        .map(|block| {
            let (these, others) = rest.split_at(block.entries);
            rest = others;
            directory::encode(these)
        })
        .collect()
}

/// Writes what an inode has in blocks of its own and is not yet in the image.
fn write_blocks<W: Write + Seek>(
    blocks: &mut Blocks<W>,
    tree: &Tree,
    survey: &Survey,
    nids: &[u64],
    one: &Placed,
) -> Result<(), Error> {
    match (&tree.inode(one.id).node, one.storage) {
        (Node::Directory(_), storage) => {
            let beside = usize::from(matches!(storage, Storage::Inline { .. }));
            let whole = one.packed.len() - beside.min(one.packed.len());
            if whole > 0 {
                for block in directory_blocks(tree, survey, nids, one).iter().take(whole) {
                    blocks.append(block)?;
                    blocks.align()?;
                }
            }
        }
        (Node::Symlink(target), Storage::Plain { .. }) => {
            blocks.append(target)?;
            blocks.align()?;
        }
        _ => {}
    }
    Ok(())
}

/// An inode and all that follows it.
fn with_payload(tree: &Tree, survey: &Survey, nids: &[u64], one: &Placed, number: u32) -> Vec<u8> {
    let inode: &Inode = tree.inode(one.id);
    let mut bytes = format::inode(inode, number, survey.links[one.id.index()], one.size, one.storage);
    match (&inode.node, one.storage) {
        (Node::File(data), Storage::Chunks { .. }) => {
            bytes.resize(bytes.len() + format::chunk_padding(&inode.metadata.attributes), 0);
            data.chunks().for_each(|chunk| bytes.extend(format::chunk_index(chunk)));
        }
        (Node::File(data), Storage::Inline { .. }) => bytes.extend(data.tail()),
        (Node::Directory(_), Storage::Inline { .. }) => {
            bytes.extend(directory_blocks(tree, survey, nids, one).last().into_iter().flatten());
        }
        (Node::Symlink(target), Storage::Inline { .. }) => bytes.extend(target.iter()),
        _ => {}
    }
    bytes
}
