//! Layers that want to harm: each is one error that says where, or is harmless.

use std::io::{Cursor, Write};

use flate2::write::GzEncoder;
use tar_core::EntryType;
use tar_core::builder::PaxBuilder;

use super::{Tar, at, paths, unpack};
use crate::layer::{Compression, Fault, Limits, convert};

#[test]
fn a_layer_cannot_tell_overlayfs_where_to_look() {
    let listing = Tar::default()
        .entry(b"d", EntryType::Directory, b"", |header| {
            header.add_pax("SCHILY.xattr.trusted.overlay.redirect", "/etc");
            header.add_pax("SCHILY.xattr.user.kept", "v");
            header.add_pax("SCHILY.xattr.com.apple.unknown", "v");
        })
        .convert()
        .expect("a layer");
    let kept: Vec<_> = at(&listing, "/d").attributes.keys().collect();
    assert_eq!(kept, [b"user.kept"]);
}

#[test]
fn links_are_followed_within_the_layer_only() {
    let listing = Tar::default()
        .link("lib", EntryType::Symlink, "usr/lib")
        .file("lib/a", b"")
        .link("up", EntryType::Symlink, "../../../../etc")
        .file("up/passwd", b"ours")
        .link("abs", EntryType::Symlink, "/etc/")
        .file("abs/shadow", b"ours")
        .convert()
        .expect("a layer");
    assert_eq!(
        paths(&listing),
        ["", "/abs", "/etc", "/etc/passwd", "/etc/shadow", "/lib", "/up", "/usr", "/usr/lib", "/usr/lib/a"]
    );
    assert_eq!(at(&listing, "/lib").contents, b"usr/lib");

    let around = Tar::default().link("a", EntryType::Symlink, "b").link("b", EntryType::Symlink, "a").file("a/x", b"");
    assert_eq!(around.fault(), "layer entry 'a/x': its path goes through more than 40 symbolic links");
}

#[test]
fn paths_that_lead_out_or_through_files_are_refused() {
    for path in ["../etc/passwd", "a/../../x", "/../x"] {
        assert_eq!(
            Tar::default().file(path, b"").fault(),
            format!("layer entry '{path}': its path leads out of the layer")
        );
        let link = Tar::default().link("l", EntryType::Link, path);
        assert_eq!(link.fault(), "layer entry 'l': its path leads out of the layer");
    }
    let through = Tar::default().file("a", b"").file("a/b", b"");
    assert_eq!(through.fault(), "layer entry 'a/b': its path goes through 'a', which is not a directory");
    let long = "x".repeat(256);
    let named = Tar::default().file(&long, b"").fault();
    assert_eq!(named, format!("layer entry '{long}': a name of a file is 1 to 255 bytes long, without '/' and NUL"));
}

#[test]
fn numbers_that_are_none_are_refused() {
    for (key, value, fault) in [
        ("mtime", "noon", "has a bad time of its last change"),
        ("uid", "-1", "has a bad owner"),
        ("gid", "x", "has a bad group"),
        ("uid", "4294967296", "has a bad owner"),
        ("size", "1e3", "has a bad size"),
    ] {
        let layer = Tar::default().entry(b"a", EntryType::Regular, b"", |header| {
            header.add_pax(key, value);
        });
        assert_eq!(layer.fault(), format!("layer entry 'a': {fault}"), "{key}={value}");
    }
    let device = Tar::default().entry(b"a", EntryType::Char, b"", |header| {
        header.device(4096, 0).expect("a device");
    });
    assert_eq!(device.fault(), "layer entry 'a': has a bad device number");
    let odd = Tar::default().entry(b"a", EntryType::Other(b'Q'), b"", |_| {});
    assert_eq!(odd.fault(), "layer entry 'a': has the unknown type 'Q'");
}

#[test]
fn a_layer_that_ends_early_says_where() {
    let layer = Tar::default().file("first", b"x").file("second", &[1; 3000]).end();
    let cut = |len: usize| unpack(&layer[..len], Compression::None).expect_err("cut short").to_string();
    assert_eq!(cut(200), "the layer is no tar: it ends in the middle of a header (at its start)");
    assert_eq!(cut(1100), "the layer is no tar: it ends in the middle of a header (after entry 'first')");
    for len in [1536, 2000, 4535] {
        assert_eq!(
            cut(len),
            "layer entry 'second': cannot be read: the layer ends in the middle of its contents",
            "{len}"
        );
    }
    // As with GNU tar, the blocks of zeros at the end need not be there; as with Go's, those of the last block neither.
    for len in [513, 1024, 4536, 4600, 4608, 5120, 5000] {
        unpack(&layer[..len], Compression::None).expect("a layer");
    }
}

#[test]
fn a_bad_header_says_where() {
    let mut layer = Tar::default().file("first", b"x").file("second", b"").end();
    layer[1024 + 100] = b'x';
    let fault = unpack(&layer, Compression::None).expect_err("a bad sum").to_string();
    assert!(fault.starts_with("the layer is no tar: ") && fault.ends_with("(after entry 'first')"), "{fault}");
    let fault = unpack(b"not a gzip at all", Compression::Gzip).expect_err("no gzip");
    assert!(matches!(fault.fault, Fault::Read(_)), "{fault}");
}

#[test]
fn limits_hold() {
    let layer = Tar::default().file("a/b/c", &[1; 10_000]).file("d", &[2; 10_000]).end();
    let within = Limits { bytes: 1 << 20, entries: 4, memory: 5000 };
    let run = |limits: &Limits| {
        let mut out = Cursor::new(Vec::new());
        let converted = convert(&layer[..], Compression::None, &mut out, limits);
        assert!(out.get_ref().len() as u64 <= limits.bytes);
        converted.map_err(|error| error.to_string())
    };
    run(&within).expect("within its limits");
    let fault = |limits| run(&limits).expect_err("beyond a limit");
    assert_eq!(fault(Limits { entries: 3, ..within }), "layer entry 'd': is too much: it has more than 3 entries");
    let memory = fault(Limits { memory: 3000, ..within });
    assert!(memory.ends_with("is too much: it has more than 3000 bytes of names, links and attributes"), "{memory}");
    let bytes = fault(Limits { bytes: 20_000, ..within });
    assert!(bytes.ends_with("is too much: it has more than 20000 bytes when uncompressed"), "{bytes}");

    // A bomb: little to read, and much of it.
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::best());
    let huge = Tar::default().entry(b"bomb", EntryType::Regular, b"", |header| {
        header.size(1 << 40).expect("a size");
    });
    gzip.write_all(&huge.0).expect("a header");
    (0..64).for_each(|_| gzip.write_all(&vec![0; 1 << 20]).expect("zeros"));
    let bomb = gzip.finish().expect("a bomb");
    assert!(bomb.len() < 100_000);
    let mut out = Cursor::new(Vec::new());
    let limits = Limits { bytes: 32 << 20, ..Limits::default() };
    let fault = convert(&bomb[..], Compression::Gzip, &mut out, &limits).expect_err("a bomb").to_string();
    assert_eq!(fault, "layer entry 'bomb': is too much: it has more than 33554432 bytes when uncompressed");
}

#[test]
fn a_header_without_end_is_not_kept_in_memory() {
    let mut pax = PaxBuilder::new();
    pax.add("comment", vec![b'x'; 2 << 20]);
    let layer = Tar::default().entry(b"x", EntryType::XHeader, &pax.finish(), |_| {});
    let fault = layer.fault();
    assert!(fault.contains("metadata exceeds limit"), "{fault}");
    // A sparse map in the contents that has no end of a line.
    let layer = Tar::default().entry(b"s", EntryType::Regular, &[b'1'; 8 << 20], |header| {
        header.add_pax("GNU.sparse.major", "1").add_pax("GNU.sparse.minor", "0").add_pax("GNU.sparse.realsize", "5");
    });
    assert_eq!(layer.fault(), "the layer is no tar: an entry's header has more than 4 MiB (at its start)");
}
