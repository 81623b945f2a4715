//! Layers that GNU tar makes, in each of its formats.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;

use super::{at, unpack};
use crate::layer::Compression;

/// Makes a tree on disk, and what should be found of it.
fn on_disk(folder: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    let mut files = BTreeMap::new();
    fs::create_dir_all(folder.join("a/b")).expect("a directory");
    for (name, size) in [("empty", 0), ("a/small", 100), ("a/b/block", 4096), ("a/b/large", 1_000_003)] {
        let contents: Vec<u8> = (0..size).map(|n: u32| (n * 7 % 251).to_le_bytes()[0]).collect();
        fs::write(folder.join(name), &contents).expect("a file");
        files.insert(name, contents);
    }
    let sparse = fs::File::create(folder.join("sparse")).expect("a file");
    for at in [0, 1 << 20, 5 << 20] {
        sparse.write_all_at(b"data", at).expect("room");
    }
    sparse.set_len(6 << 20).expect("room");
    drop(sparse);
    files.insert("sparse", fs::read(folder.join("sparse")).expect("it"));
    symlink("a/small", folder.join("link")).expect("a link");
    fs::hard_link(folder.join("a/small"), folder.join("hard")).expect("a link");
    files
}

/// GNU tar's own formats, with sparse files in each of its ways, names of any length and times to the nanosecond.
#[test]
fn what_gnu_tar_makes_is_understood() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = on_disk(folder.path());
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    fs::create_dir(folder.path().join("d".repeat(150))).expect("a directory");
    fs::write(folder.path().join(&long), b"far").expect("a file");
    let formats: [&[&str]; 5] = [
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ];
    for format in formats {
        let mut tar = Command::new("tar");
        tar.args(format).args(["--mtime=@1234567890.123456789", "--owner=:7000000", "-C"]);
        let tar = tar.arg(folder.path()).args(["-c", "."]).output().expect("tar");
        assert!(tar.status.success(), "{}", tar.stderr.escape_ascii());
        let (converted, listing) = unpack(&tar.stdout, Compression::None).expect("a layer");
        assert!(converted.bytes < 1_600_000, "{format:?}: holes are kept: {} bytes", converted.bytes);
        for (name, contents) in &files {
            let found = at(&listing, &format!("/{name}"));
            assert!(found.contents == *contents, "{format:?}: {name}");
            let nanoseconds = if format[0] == "--format=posix" { 123_456_789 } else { 0 };
            assert_eq!((found.uid, found.modified), (7_000_000, (1_234_567_890, nanoseconds)), "{format:?}: {name}");
        }
        assert_eq!(at(&listing, &format!("/{long}")).contents, b"far");
        assert_eq!(at(&listing, "/link").contents, b"a/small");
        assert_eq!(at(&listing, "/hard").nid, at(&listing, "/a/small").nid);
        assert_eq!(listing.len(), files.len() + 7);
    }
}
