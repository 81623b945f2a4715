//! Tests: what goes into an image comes out of it, by the reader of the tests and by Debian's `fsck.erofs`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::process::Command;

use proptest::prelude::*;

use super::reader::{self, Found, Listing};
use super::{Attributes, Error, Image, Inode, Metadata, Node, Time, Tree};

/// Pieces of a file: bytes of one value, and how many.
type Pieces = Vec<(u8, u32)>;

#[derive(Debug, Clone)]
enum Kind {
    File(Pieces),
    Directory,
    Symlink(Vec<u8>),
    Device(u32),
    Fifo,
    Socket,
    /// Another name for the file made before.
    Link,
}

#[derive(Debug, Clone)]
struct Made {
    /// Which of the directories so far it is in.
    parent: usize,
    name: Vec<u8>,
    kind: Kind,
    permissions: u16,
    owner: (u32, u32),
    modified: (i64, u32),
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

fn made() -> impl Strategy<Value = Made> {
    let pieces = prop::collection::vec((0..3_u8, prop_oneof![1..10_u32, 4000..4200_u32, 60_000..200_000_u32]), 0..4);
    let kind = prop_oneof![
        3 => pieces.prop_map(Kind::File),
        3 => Just(Kind::Directory),
        1 => prop::collection::vec(1..=255_u8, 1..4096).prop_map(Kind::Symlink),
        1 => any::<u32>().prop_map(Kind::Device),
        1 => prop_oneof![Just(Kind::Fifo), Just(Kind::Socket)],
        2 => Just(Kind::Link),
    ];
    let name = prop_oneof![
        2 => prop::collection::vec(prop_oneof![Just(b'a'), Just(b'!'), Just(0xff), Just(b'.')], 1..4),
        1 => prop::collection::vec(prop_oneof![1..b'/', b'0'..=255], 1..256),
    ];
    let attribute = (
        prop_oneof![
            Just(b"user.a".to_vec()),
            Just(b"trusted.overlay.opaque".to_vec()),
            Just(b"security.capability".to_vec()),
            Just(b"system.posix_acl_access".to_vec())
        ],
        prop_oneof![prop::collection::vec(any::<u8>(), 0..30), prop::collection::vec(any::<u8>(), 3000..9000)],
    );
    let attributes = prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(attribute, 1..4)];
    let meta = (0..0o1_0000_u16, any::<(u32, u32)>(), any::<i64>(), 0..1_000_000_000_u32, attributes);
    (any::<prop::sample::Index>(), name, kind, meta).prop_map(|(parent, name, kind, meta)| Made {
        parent: parent.index(8),
        name,
        kind,
        permissions: meta.0,
        owner: meta.1,
        modified: (meta.2, meta.3),
        attributes: meta.4,
    })
}

/// Makes an image, and what should be found in it.
fn build(all: &[Made]) -> (Vec<u8>, Listing) {
    let mut out = Cursor::new(Vec::new());
    let mut image = Image::new(&mut out, 1 << 32).expect("an image");
    let mut tree = Tree::new(Metadata::default());
    let mut expected = Listing::from([(Vec::new(), found(0o4_0000, &Made::plain()))]);
    let mut directories = vec![(Tree::ROOT, Vec::new())];
    let mut files = Vec::new();
    for one in all {
        let (parent, above) = directories[one.parent % directories.len()].clone();
        let path = [&above[..], b"/", &one.name].concat();
        if matches!(&one.name[..], b"." | b"..") || expected.contains_key(&path) {
            continue;
        }
        let mut attributes = Attributes::default();
        for (name, value) in &one.attributes {
            assert!(attributes.set(name, value).expect("it fits"));
        }
        if let Kind::Link = one.kind {
            if let Some((id, listed)) = files.last().cloned() {
                tree.link(parent, &one.name, id).expect("a name");
                expected.insert(path, listed);
            }
            continue;
        }
        let mut should = found(0, one);
        let node = node(&mut image, one, &attributes, &mut should);
        let metadata = Metadata {
            permissions: one.permissions,
            uid: one.owner.0,
            gid: one.owner.1,
            modified: Time { seconds: one.modified.0, nanoseconds: one.modified.1 },
            attributes,
        };
        let id = tree.add(Inode { metadata, node }).expect("room");
        tree.link(parent, &one.name, id).expect("a name");
        should.size = should.contents.len() as u64;
        expected.insert(path.clone(), should.clone());
        match &one.kind {
            Kind::Directory => directories.push((id, path)),
            Kind::File(_) => files.push((id, should)),
            _ => {}
        }
    }
    let size = image.finish(&tree, [7; 16]).expect("room");
    let bytes = out.into_inner();
    assert_eq!(size, bytes.len() as u64);
    (bytes, expected)
}

/// What an inode becomes, with its contents in the image; notes what should be found.
fn node(image: &mut Image<&mut Cursor<Vec<u8>>>, one: &Made, attributes: &Attributes, should: &mut Found) -> Node {
    let (node, mode) = match &one.kind {
        Kind::File(pieces) => {
            let size = pieces.iter().map(|(_, len)| u64::from(*len)).sum();
            let mut writer = image.file(size, attributes).expect("room");
            for (value, len) in pieces {
                let bytes = vec![*value; *len as usize];
                should.contents.extend(&bytes);
                let told = *value == 0 && len % 2 == 1;
                if told { writer.zeros(u64::from(*len)) } else { writer.write(&bytes) }.expect("room");
            }
            (Node::File(writer.finish().expect("all of it")), 0o10_0000)
        }
        Kind::Directory => (Node::Directory(BTreeMap::new()), 0o4_0000),
        Kind::Symlink(target) => {
            should.contents.clone_from(target);
            (Node::Symlink(target[..].into()), 0o12_0000)
        }
        Kind::Device(rdev) => {
            should.rdev = *rdev;
            (Node::CharDevice(*rdev), 0o2_0000)
        }
        Kind::Fifo => (Node::Fifo, 0o1_0000),
        Kind::Socket | Kind::Link => (Node::Socket, 0o14_0000),
    };
    should.mode |= mode;
    node
}

impl Made {
    fn plain() -> Self {
        let (owner, modified) = ((0, 0), (0, 0));
        Self { parent: 0, name: Vec::new(), kind: Kind::Fifo, permissions: 0, owner, modified, attributes: Vec::new() }
    }
}

fn found(mode: u16, one: &Made) -> Found {
    Found {
        nid: 0,
        mode: mode | one.permissions,
        uid: one.owner.0,
        gid: one.owner.1,
        modified: one.modified,
        links: 0,
        rdev: 0,
        size: 0,
        contents: Vec::new(),
        attributes: one.attributes.iter().cloned().collect(),
    }
}

/// Compares what was read with what was made; numbers of inodes and links by what they mean.
fn compare(read: &Listing, expected: &Listing) {
    assert_eq!(read.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let mut names = BTreeMap::<u64, u32>::new();
    read.values().for_each(|found| *names.entry(found.nid).or_default() += 1);
    for (path, found) in read {
        let directory = found.mode & 0o17_0000 == 0o4_0000;
        let below = |other: &&Vec<u8>| {
            other.starts_with(path) && other[path.len()..].iter().filter(|b| **b == b'/').count() == 1
        };
        let links = if directory {
            let is_directory = |path: &&Vec<u8>| read[*path].mode & 0o17_0000 == 0o4_0000;
            2 + read.keys().filter(below).filter(|other| other[path.len()] == b'/').filter(is_directory).count()
        } else {
            names[&found.nid] as usize
        };
        assert_eq!(found.links as usize, links, "links of {}", path.escape_ascii());
        let size = if directory { 0 } else { found.size };
        assert_eq!(Found { nid: 0, links: 0, size, ..found.clone() }, expected[path], "{}", path.escape_ascii());
    }
}

/// Has erofs-utils look at an image.
fn check(image: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image");
    // It also reads the header of attributes that an inode has not, which may be past the end of the image.
    fs::write(&path, [image, &[0; 12]].concat()).expect("an image");
    let fsck = Command::new("fsck.erofs").arg(&path).output().expect("fsck.erofs of the package erofs-utils");
    let said = [fsck.stdout, fsck.stderr].concat();
    assert!(fsck.status.success(), "{}", said.escape_ascii());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_in_comes_out(all in prop::collection::vec(made(), 0..40)) {
        let (image, expected) = build(&all);
        compare(&reader::list(&image).expect("a good image"), &expected);
        check(&image);
        prop_assert!(build(&all).0 == image, "the same tree made other bytes");
    }
}

#[test]
fn a_directory_of_many_blocks_is_sorted_and_complete() {
    let file = |n: u32| Made { name: format!("{n:x}-{}", "y".repeat(n as usize % 200)).into_bytes(), ..Made::plain() };
    let all: Vec<Made> = (0..5000).map(file).collect();
    let (image, expected) = build(&all);
    assert_eq!(expected.len(), 5001);
    compare(&reader::list(&image).expect("a good image"), &expected);
    check(&image);
}

#[test]
fn an_empty_image_is_three_blocks_at_most_and_the_limit_holds() {
    let make = |limit| Image::new(Cursor::new(Vec::new()), limit)?.finish(&Tree::new(Metadata::default()), [0; 16]);
    assert_eq!(make(1 << 20).expect("room"), 8192);
    assert_eq!(make(8192).expect("room"), 8192);
    assert!(matches!(make(8191), Err(Error::TooLarge { limit: 8191 })));
    assert!(matches!(make(100), Err(Error::TooLarge { limit: 100 })));
}

#[test]
fn a_link_that_leads_nowhere_or_too_far_is_refused() {
    for (len, good) in [(0, false), (1, true), (4032, true), (4033, true), (4095, true), (4096, false)] {
        let mut tree = Tree::new(Metadata::default());
        let node = Node::Symlink(vec![b'x'; len].into());
        let id = tree.add(Inode { metadata: Metadata::default(), node }).expect("room");
        tree.link(Tree::ROOT, b"link", id).expect("a name");
        let mut out = Cursor::new(Vec::new());
        let done = Image::new(&mut out, 1 << 20).expect("room").finish(&tree, [0; 16]);
        assert_eq!(done.is_ok(), good, "{len}");
        if good {
            let listing = reader::list(out.get_ref()).expect("a good image");
            assert_eq!(listing[&b"/link"[..]].contents.len(), len);
            check(out.get_ref());
        }
    }
}
