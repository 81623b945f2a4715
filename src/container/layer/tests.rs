//! Tests: layers made here, and what is in their images.

mod gnu_tar;
mod hostile;

use std::io::{Cursor, Write};

use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use tar_core::builder::EntryBuilder;
use tar_core::{EntryType, SparseEntry};

use super::{Compression, Converted, Fault, LayerError, Limits, convert};
use crate::erofs::reader::{self, Found, Listing};

/// A tar in the making.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    /// Adds an entry whose header `edit` completes.
    fn entry(mut self, path: &[u8], kind: EntryType, contents: &[u8], edit: impl FnOnce(&mut EntryBuilder)) -> Self {
        let mut builder = EntryBuilder::new_ustar();
        builder.path(path).entry_type(kind).mode(0o644).expect("a mode");
        builder.size(contents.len() as u64).expect("a size");
        edit(&mut builder);
        self.0.extend(builder.finish_bytes());
        self.0.extend(contents);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, contents: &[u8]) -> Self {
        self.entry(path.as_bytes(), EntryType::Regular, contents, |_| {})
    }

    fn directory(self, path: &str) -> Self {
        self.entry(path.as_bytes(), EntryType::Directory, b"", |header| {
            header.mode(0o700).expect("a mode");
        })
    }

    fn link(self, path: &str, kind: EntryType, target: &str) -> Self {
        self.entry(path.as_bytes(), kind, b"", |header| {
            header.link_name(target);
        })
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    fn convert(self) -> Result<Listing, LayerError> {
        unpack(&self.end(), Compression::None).map(|(_, listing)| listing)
    }

    /// The sentence about what is wrong with it.
    fn fault(self) -> String {
        self.convert().expect_err("a fault").to_string()
    }
}

fn unpack(layer: &[u8], kind: Compression) -> Result<(Converted, Listing), LayerError> {
    let mut out = Cursor::new(Vec::new());
    let converted = convert(layer, kind, &mut out, &Limits::default())?;
    assert_eq!(converted.bytes, out.get_ref().len() as u64);
    Ok((converted, reader::list(out.get_ref()).expect("a good image")))
}

fn at<'a>(listing: &'a Listing, path: &str) -> &'a Found {
    listing.get(path.as_bytes()).unwrap_or_else(|| panic!("no {path} in {:?}", paths(listing)))
}

fn paths(listing: &Listing) -> Vec<String> {
    listing.keys().map(|path| path.escape_ascii().to_string()).collect()
}

fn is_opaque(found: &Found) -> bool {
    found.attributes.get(&b"trusted.overlay.opaque"[..]).is_some_and(|value| value == b"y")
}

fn is_whiteout(found: &Found) -> bool {
    (found.mode >> 12, found.rdev) == (0o2, 0)
}

#[test]
fn whatever_it_is_compressed_with_a_layer_makes_one_image_and_one_sum() {
    let layer = Tar::default().file("a", b"contents").directory("d").end();
    let sum: [u8; 32] = Sha256::digest(&layer).into();
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&layer[..700]).expect("a part");
    let mut members = gzip.finish().expect("a member");
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&layer[700..]).expect("the other part");
    members.extend(gzip.finish().expect("a member"));
    let frames = [&layer[..900], &layer[900..]].map(|part| zstd::encode_all(part, 3).expect("a frame")).concat();
    for (kind, bytes) in [(Compression::None, &layer), (Compression::Gzip, &members), (Compression::Zstd, &frames)] {
        assert_eq!(Compression::of_first_bytes(bytes), kind);
        let (converted, listing) = unpack(bytes, kind).expect("a layer");
        assert_eq!((converted.diff_id, converted.entries), (sum, 2));
        assert_eq!(at(&listing, "/a").contents, b"contents");
        let mut image = Cursor::new(Vec::new());
        convert(&bytes[..], kind, &mut image, &Limits::default()).expect("a layer");
        let mut plain = Cursor::new(Vec::new());
        convert(&layer[..], Compression::None, &mut plain, &Limits::default()).expect("a layer");
        assert!(image == plain, "{kind:?} made another image");
        let cut = unpack(&bytes[..bytes.len() - 5], kind);
        if kind != Compression::None {
            assert!(matches!(cut.expect_err("cut short").fault, Fault::Read(_)), "{kind:?}");
        }
    }
}

#[test]
fn media_types_say_how_a_layer_is_compressed() {
    for (media_type, kind) in [
        ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
        ("application/vnd.docker.image.rootfs.diff.tar", Some(Compression::None)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(Compression::Gzip)),
        ("application/vnd.oci.image.layer.v1.tar+bzip2", None),
        ("application/vnd.oci.image.config.v1+json", None),
    ] {
        assert_eq!(Compression::of_media_type(media_type), kind, "{media_type}");
    }
}

#[test]
fn what_is_after_the_tars_end_counts_for_the_sum() {
    let mut layer = Tar::default().file("a", b"1").end();
    layer.extend([7; 300_000]);
    let (converted, _) = unpack(&layer, Compression::None).expect("a layer");
    assert_eq!(converted.diff_id, <[u8; 32]>::from(Sha256::digest(&layer)));
}

#[test]
fn whiteouts_are_what_overlayfs_takes_for_them() {
    let (_, listing) = unpack(
        &Tar::default()
            .file("etc/.wh.gone", b"")
            .file("etc/.wh.again", b"")
            .directory("etc/again")
            .file("opaque/.wh..wh..opq", b"")
            .directory("opaque")
            .file("opaque/.wh.useless", b"")
            .file("opaque/under/.wh.useless", b"")
            .file("etc/.wh.file", b"")
            .file("etc/file", b"new")
            .directory(".wh..wh.plnk")
            .file(".wh..wh.plnk/12.3", b"")
            .file("x/.wh..wh.aufs", b"")
            .end(),
        Compression::None,
    )
    .expect("a layer");
    assert_eq!(paths(&listing), ["", "/etc", "/etc/again", "/etc/file", "/etc/gone", "/opaque", "/opaque/under"]);
    assert!(is_whiteout(at(&listing, "/etc/gone")));
    assert!(is_opaque(at(&listing, "/etc/again")), "what was hidden is not merged with what came instead");
    assert!(is_opaque(at(&listing, "/opaque")));
    assert_eq!(at(&listing, "/opaque").mode & 0o777, 0o700, "the entry after the whiteout counts");
    assert_eq!(at(&listing, "/etc/file").contents, b"new");
    assert!(!is_opaque(at(&listing, "")));

    let layer = Tar::default().file(".wh..wh..opq", b"").file(".wh.a", b"").file("b", b"").end();
    let (_, listing) = unpack(&layer, Compression::None).expect("a layer");
    assert!(is_opaque(at(&listing, "")));
    assert_eq!(paths(&listing), ["", "/b"]);

    for name in ["a/.wh.", "a/.wh..", "a/.wh..."] {
        assert_eq!(Tar::default().file(name, b"").fault(), format!("layer entry '{name}': is a whiteout of nothing"));
    }
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let listing = Tar::default()
        .file("a", b"old")
        .file("./a", b"new")
        .file("d/x", b"x")
        .directory("d")
        .file("gone/x", b"x")
        .file("gone", b"a file now")
        .file("f", b"a file")
        .file("/f/../f/", b"")
        .link("l", EntryType::Symlink, "a")
        .file("l", b"not through the link")
        .convert()
        .expect("a layer");
    assert_eq!(paths(&listing), ["", "/a", "/d", "/d/x", "/f", "/gone", "/l"]);
    assert_eq!(at(&listing, "/a").contents, b"new");
    assert_eq!(at(&listing, "/d").mode, 0o4_0700, "its entry came after it was made");
    assert_eq!(at(&listing, "/gone").contents, b"a file now");
    assert_eq!(at(&listing, "/f").mode >> 12, 0o4);
    assert_eq!(at(&listing, "/l").contents, b"not through the link");
}

#[test]
fn missing_directories_are_made_and_the_root_can_be_described() {
    let listing = Tar::default().file("a/b/c", b"").convert().expect("a layer");
    for path in ["", "/a", "/a/b"] {
        let found = at(&listing, path);
        assert_eq!((found.mode, found.uid, found.modified), (0o4_0755, 0, (0, 0)), "{path}");
    }
    let listing = Tar::default().directory("./").convert().expect("a layer");
    assert_eq!(at(&listing, "").mode, 0o4_0700);
    assert_eq!(Tar::default().file(".", b"").fault(), "layer entry '.': the root can only be a directory");
}

#[test]
fn hard_links_are_names_of_one_file() {
    let listing = Tar::default()
        .file("d/a", b"one file")
        .link("b", EntryType::Link, "./d/a")
        .link("b", EntryType::Link, "/b")
        .link("s", EntryType::Symlink, "nowhere")
        .link("t", EntryType::Link, "s")
        .file("d/a", b"another")
        .convert()
        .expect("a layer");
    assert_eq!((&at(&listing, "/b").contents[..], at(&listing, "/b").links), (&b"one file"[..], 1));
    assert_eq!(at(&listing, "/d/a").contents, b"another");
    assert_eq!((at(&listing, "/s").nid, at(&listing, "/s").links), (at(&listing, "/t").nid, 2));

    let gone = Tar::default().link("a", EntryType::Link, "x/gone");
    assert_eq!(gone.fault(), "layer entry 'a': is a hard link to 'x/gone', which is not in the layer");
    let directory = Tar::default().directory("d").link("a", EntryType::Link, "d");
    assert_eq!(directory.fault(), "layer entry 'a': is a hard link to 'd', which is a directory");
}

#[test]
fn headers_say_all_that_an_inode_has() {
    let acl = [2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff];
    let listing = Tar::default()
        .entry("é\n".as_bytes(), EntryType::Regular, b"x", |header| {
            header
                .mode(0o106_755)
                .expect("a mode")
                .uid(4_000_000_000)
                .expect("an owner")
                .gid(1 << 31)
                .expect("a group");
            header.add_pax("mtime", "-1.25").add_pax("SCHILY.xattr.security.capability", [1, 0, 0, 2, 0, 0xff]);
            header.add_pax("SCHILY.xattr.system.posix_acl_access", acl);
        })
        .entry(b"c", EntryType::Char, b"", |header| {
            header.device(5, 1).expect("a device");
        })
        .entry(b"b", EntryType::Block, b"", |header| {
            header.device(259, 0x1234).expect("a device");
        })
        .entry(b"p", EntryType::Fifo, b"", |_| {})
        .convert()
        .expect("a layer");
    let found = at(&listing, "/é\n");
    assert_eq!((found.mode, found.uid, found.gid), (0o10_6755, 4_000_000_000, 1 << 31));
    assert_eq!(found.modified, (-2, 750_000_000));
    assert_eq!(found.attributes[&b"security.capability"[..]], [1, 0, 0, 2, 0, 0xff]);
    assert_eq!(found.attributes[&b"system.posix_acl_access"[..]], acl);
    assert_eq!((at(&listing, "/c").mode >> 12, at(&listing, "/c").rdev), (0o2, 5 << 8 | 1));
    assert_eq!((at(&listing, "/b").mode >> 12, at(&listing, "/b").rdev), (0o6, 0x34 | 259 << 8 | 0x12 << 20));
    assert_eq!(at(&listing, "/p").mode >> 12, 0o1);
}

#[test]
fn sparse_files_are_whole_and_take_little() {
    let gib = 1 << 30;
    let map = [(4096, 4), (gib, 8), (4 * gib, 0)].map(|(offset, length)| SparseEntry { offset, length });
    let layer = Tar::default().entry(b"s", EntryType::GnuSparse, b"0123456789ab", |header| {
        *header = EntryBuilder::new_gnu();
        header.path("s").entry_type(EntryType::GnuSparse).mode(0o644).expect("a mode").size(12).expect("a size");
        header.sparse(&map, 4 * gib);
    });
    let mut out = Cursor::new(Vec::new());
    let converted = convert(&layer.end()[..], Compression::None, &mut out, &Limits::default()).expect("a layer");
    assert!(converted.bytes < 2 << 20, "{} bytes", converted.bytes);
    let listing = reader::list(out.get_ref()).expect("a good image");
    assert_eq!(at(&listing, "/s").size, 4 * gib);
    assert_eq!(at(&listing, "/s").contents[4096..4100], *b"0123");

    for map in [vec![(0, 13)], vec![(0, 4), (2, 8)], vec![(0, 4)], vec![(u64::MAX - 3, 12)], vec![(gib, 12)]] {
        let map: Vec<_> = map.into_iter().map(|(offset, length)| SparseEntry { offset, length }).collect();
        let layer = Tar::default().entry(b"s", EntryType::GnuSparse, b"0123456789ab", |header| {
            *header = EntryBuilder::new_gnu();
            header.path("s").entry_type(EntryType::GnuSparse).mode(0o644).expect("a mode").size(12).expect("a size");
            header.sparse(&map, 4096);
        });
        assert_eq!(layer.fault(), "layer entry 's': is a sparse file whose map does not fit its contents", "{map:?}");
    }
}
