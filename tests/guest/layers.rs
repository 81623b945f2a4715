//! Layers of images as the guest sees them: converted here, mounted there as read-only disks, and joined by overlayfs.

use std::fs::File;
use std::path::{Path, PathBuf};

use container::layer::{Compression, Limits, convert};
use tar_core::builder::EntryBuilder;
use tar_core::{EntryType, SparseEntry};

use crate::disk::{disk, folder, noise};
use crate::vm::{Vm, host};

/// Kernels that must see the same: 6.1 with EROFS built in, and 6.1 and 6.12 with it as a module.
const KERNELS: [&str; 3] = ["tuned/vmlinux", "debian12/vmlinux", "debian13/vmlinux"];
const GIB: u64 = 1 << 30;

/// A layer in the making: a tar, and what `stat` should say of its files.
#[derive(Default)]
struct Layer {
    tar: Vec<u8>,
    lines: Vec<String>,
}

/// What an entry has beside its contents.
struct Entry<'a> {
    path: &'a str,
    kind: EntryType,
    mode: u32,
    owner: (u32, u32),
    modified: u32,
    /// Where a link leads.
    target: &'a str,
    device: (u32, u32),
}

/// An entry of root's.
fn entry(path: &str, kind: EntryType, mode: u32) -> Entry<'_> {
    Entry { path, kind, mode, owner: (0, 0), modified: 0, target: "", device: (0, 0) }
}

impl Layer {
    /// Adds an entry; `links` is the number of names that it should have.
    fn with(mut self, entry: &Entry<'_>, contents: &[u8], links: u32) -> Self {
        let kind: u32 = match entry.kind {
            EntryType::Directory => 0o4_0000,
            EntryType::Symlink => 0o12_0000,
            EntryType::Char => 0o2_0000,
            EntryType::Block => 0o6_0000,
            EntryType::Fifo => 0o1_0000,
            _ => 0o10_0000,
        };
        let size = match entry.kind {
            EntryType::Directory => "dir".to_owned(),
            EntryType::Symlink => entry.target.len().to_string(),
            _ => contents.len().to_string(),
        };
        let ((uid, gid), (major, minor)) = (entry.owner, entry.device);
        let mode = kind | entry.mode;
        self.lines.push(format!(
            "./{} {mode:x} {uid}:{gid} {major:x}:{minor:x} {} {links} {size}",
            entry.path, entry.modified
        ));
        self.raw(entry, contents, |_| {})
    }

    /// Adds an entry of which nothing is expected.
    fn raw(mut self, entry: &Entry<'_>, contents: &[u8], edit: impl FnOnce(&mut EntryBuilder)) -> Self {
        let mut header =
            if entry.kind == EntryType::GnuSparse { EntryBuilder::new_gnu() } else { EntryBuilder::new_ustar() };
        header.path(entry.path).entry_type(entry.kind).mode(entry.mode).expect("a mode");
        header.uid(entry.owner.0.into()).expect("an owner").gid(entry.owner.1.into()).expect("a group");
        header.mtime(entry.modified.into()).expect("a time").size(contents.len() as u64).expect("a size");
        if !entry.target.is_empty() {
            header.link_name(entry.target);
        }
        if matches!(entry.kind, EntryType::Char | EntryType::Block) {
            header.device(entry.device.0, entry.device.1).expect("a device");
        }
        edit(&mut header);
        self.tar.extend(header.finish_bytes());
        self.tar.extend(contents);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, contents: &[u8]) -> Self {
        self.with(&entry(path, EntryType::Regular, 0o644), contents, 1)
    }

    fn directory(self, path: &str, links: u32) -> Self {
        self.with(&entry(path, EntryType::Directory, 0o755), b"", links)
    }

    fn whiteout(self, path: &str) -> Self {
        self.raw(&entry(path, EntryType::Regular, 0), b"", |_| {})
    }

    /// Its image, as a file.
    fn image(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        let out = File::create(&path).expect("an image");
        convert(&self.tar[..], Compression::None, out, &Limits::default()).expect("a layer");
        path
    }

    /// What `stat` should say, sorted.
    fn manifest(&self) -> Vec<String> {
        let mut lines = self.lines.clone();
        lines.sort();
        lines
    }
}

/// The guest's lines that begin with a path.
fn paths(console: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        console.lines().filter(|line| line.starts_with("./")).map(|l| l.trim_end().to_owned()).collect();
    lines.sort();
    lines
}

/// Prints a line for each file below the current directory, but for those whose names begin with `n-`.
const STAT: &str = "find . -mindepth 1 ! -name 'n-*' ! -type d -exec stat -c '%n %f %u:%g %t:%T %Y %h %s' {} +
    find . -mindepth 1 -type d -exec stat -c '%n %f %u:%g %t:%T %Y %h dir' {} +";

#[test]
fn every_type_of_file_is_what_it_was_in_the_layer() {
    let folder = folder();
    let large = noise(3_000_001);
    let long = format!("{}é", "n".repeat(250));
    let target = "t".repeat(3000);
    let mut layer = Layer::default()
        .directory("d", 2)
        .file("empty", b"")
        .file("d/small", b"small")
        .file("d/large", &large)
        .file(&long, b"long")
        .with(&Entry { owner: (1_000_000, 70_000), ..entry("setuid", EntryType::Regular, 0o6755) }, b"x", 1)
        .with(&Entry { modified: u32::MAX, ..entry("late", EntryType::Directory, 0o1777) }, b"", 2)
        .with(&Entry { target: "../nowhere", ..entry("link", EntryType::Symlink, 0o777) }, b"", 1)
        .with(&Entry { target: &target, ..entry("far", EntryType::Symlink, 0o777) }, b"", 1)
        .with(&Entry { device: (5, 1), ..entry("char", EntryType::Char, 0o620) }, b"", 1)
        .with(&Entry { device: (259, 1000), ..entry("block", EntryType::Block, 0o660) }, b"", 1)
        .with(&entry("fifo", EntryType::Fifo, 0o600), b"", 1)
        .with(&entry("one", EntryType::Regular, 0o600), b"one file", 2)
        .directory("many", 2);
    layer = layer.raw(&Entry { target: "one", ..entry("two", EntryType::Link, 0) }, b"", |_| {});
    layer.lines.push("./two 8180 0:0 0:0 0 2 8".to_owned());
    for n in 0..1000 {
        layer =
            layer.raw(&entry(&format!("many/n-{n}"), EntryType::Regular, 0o644), format!("{n}\n").as_bytes(), |_| {});
    }
    let map = [SparseEntry { offset: 2 * GIB + 1_000_000, length: 4 }, SparseEntry { offset: 5 * GIB, length: 0 }];
    layer = layer.raw(&entry("sparse", EntryType::GnuSparse, 0o644), b"here", |header| {
        header.sparse(&map, 5 * GIB);
    });
    layer.lines.push(format!("./sparse 81a4 0:0 0:0 0 1 {}", 5 * GIB));
    let image = layer.image(folder.path(), "layer");
    std::fs::write(folder.path().join("large"), &large).expect("a file");

    let script = format!(
        "mkdir /l; mount -t erofs -o ro /dev/vda /l && cd /l || exit
         {STAT}
         echo large=$(md5sum < d/large)
         echo far=$(readlink far | tr -d '\\n' | wc -c)
         echo many=$(ls many | wc -l) sum=$(for n in $(seq 0 999); do cat many/n-$n; done | md5sum)
         echo none=$(cat many/n-1000 many/n 2>/dev/null; echo $?)
         echo here=$(dd if=sparse bs=4 skip=537120912 count=1 2>/dev/null)
         echo zeros=$(dd if=sparse bs=65536 skip=81900 2>/dev/null | tr -d '\\0' | wc -c)
         touch x 2>/dev/null || echo ro=yes"
    );
    let sums = |text: String| text.split(' ').next().unwrap_or_default().to_owned();
    let large = sums(host("md5sum", &[folder.path().join("large").as_os_str()]));
    std::fs::write(folder.path().join("many"), (0..1000).map(|n| format!("{n}\n")).collect::<String>())
        .expect("a file");
    let many = sums(host("md5sum", &[folder.path().join("many").as_os_str()]));
    for kernel in KERNELS {
        let ended = Vm::boot(kernel).args(disk(&image, ",ro")).run(&script).start().ends(0);
        assert_eq!(paths(&ended.console), layer.manifest(), "{kernel}");
        assert_eq!(ended.value("large"), format!("{large} -"), "{kernel}");
        assert_eq!(ended.value("far"), "3000", "{kernel}");
        assert_eq!(ended.value("many"), format!("1000 sum={many} -"), "{kernel}");
        assert_eq!(ended.value("none"), "1", "{kernel}");
        assert_eq!((ended.value("here"), ended.value("zeros")), ("here", "0"), "{kernel}");
        assert_eq!(ended.value("ro"), "yes", "{kernel}");
    }
}

#[test]
fn overlayfs_takes_whiteouts_and_opaque_directories_for_what_they_are() {
    let folder = folder();
    let lower = Layer::default()
        .directory("keep", 2)
        .file("keep/a", b"a")
        .file("keep/gone", b"x")
        .directory("opaque", 2)
        .file("opaque/old", b"old")
        .directory("again", 2)
        .file("again/old", b"old")
        .directory("gone", 2)
        .file("gone/x", b"x")
        .file("file", b"a file")
        .file("changed", b"before");
    let upper = Layer::default()
        .whiteout("keep/.wh.gone")
        .file("keep/b", b"b")
        .whiteout("opaque/.wh..wh..opq")
        .file("opaque/new", b"new")
        .directory("opaque/below", 2)
        .whiteout("opaque/below/.wh.useless")
        .directory("again", 2)
        .file("again/new", b"new")
        .whiteout(".wh.again")
        .whiteout(".wh.gone")
        .whiteout(".wh.file")
        .directory("file", 2)
        .file("changed", b"after");
    let (lower, upper) = (lower.image(folder.path(), "lower"), upper.image(folder.path(), "upper"));
    let script = "mkdir /l /u /m /t; mount -t erofs /dev/vda /l && mount -t erofs /dev/vdb /u || exit
        mount -t tmpfs none /t; mkdir /t/up /t/work
        for o in lowerdir=/u:/l lowerdir=/u:/l,upperdir=/t/up,workdir=/t/work; do
            mount -t overlay -o $o none /m && cd /m || exit
            echo \"seen=$(find . -mindepth 1 | sort | tr '\\n' ' ')$(cat changed; ls gone 2>/dev/null; echo $?)\"
            touch keep/gone again/old 2>/dev/null && echo written=$(cat keep/gone again/old | wc -c)
            cd /; umount /m
        done";
    let all =
        "./again ./again/new ./changed ./file ./keep ./keep/a ./keep/b ./opaque ./opaque/below ./opaque/new after1";
    for kernel in KERNELS {
        let disks = [disk(&lower, ",ro"), disk(&upper, ",ro")].concat();
        let ended = Vm::boot(kernel).args(disks).run(script).start().ends(0);
        let seen: Vec<_> = ended.console.lines().filter_map(|line| line.trim_end().strip_prefix("seen=")).collect();
        assert_eq!(seen, [all, all], "{kernel}");
        assert_eq!(ended.value("written"), "0", "{kernel}");
    }
}
