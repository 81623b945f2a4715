//! The kernel of a VM for containers, and where its modules are: as distributions install them, /boot/vmlinuz-VERSION and
//! /lib/modules/VERSION.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The list of modules in their folder, by which one is known (depmod(8)).
pub const LIST: &str = "modules.dep";

/// A kernel that a VM can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its file.
    pub path: PathBuf,
    /// The folder of its modules, as /lib/modules/VERSION is one; none: all that is needed is built in.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// The one at `path`, with the modules at `modules`, or with those that lie where they are installed.
    pub fn at(path: PathBuf, modules: Option<PathBuf>) -> Self {
        let modules = modules.or_else(|| installed(&path));
        Self { path, modules }
    }

    /// The newest of a distribution's kernels whose modules are there; `root` is the root directory. One that this user may
    /// not read is passed over.
    pub fn newest(root: &Path) -> Option<Self> {
        let entries = fs::read_dir(root.join("boot")).ok()?.flatten().map(|entry| entry.path());
        let kernels = entries.filter(|path| named(path).is_some() && File::open(path).is_ok());
        let kernels = kernels.map(|path| Self::at(path, None)).filter(|kernel| kernel.modules.is_some());
        kernels.max_by(|a, b| by_version(&a.path, &b.path))
    }
}

/// The modules of the kernel at `path`: the folder that it lies in itself, or that of its version in /lib/modules, where it
/// lies in /boot.
fn installed(path: &Path) -> Option<PathBuf> {
    let folder = path.parent()?;
    let of = |version: String| folder.join("../lib/modules").join(version);
    let folders = std::iter::once(folder.to_owned()).chain(release(path).map(of)).chain(named(path).map(of));
    let found = folders.into_iter().find(|folder| folder.join(LIST).is_file())?;
    Some(fs::canonicalize(&found).unwrap_or(found))
}

/// The version in a kernel's file name.
fn named(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    ["vmlinuz-", "vmlinux-"].iter().find_map(|prefix| name.strip_prefix(prefix)).map(str::to_owned)
}

/// The version that a bzImage says it is (kernel_version in Documentation/arch/x86/boot.rst), as uname(2) has it.
pub fn release(path: &Path) -> Option<String> {
    const MAGIC: u64 = 0x202;
    const POINTER: u64 = 0x20e;
    const BASE: u64 = 0x200;
    let file = File::open(path).ok()?;
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, MAGIC).ok().filter(|()| magic == *b"HdrS")?;
    let mut pointer = [0; 2];
    file.read_exact_at(&mut pointer, POINTER).ok()?;
    let mut text = [0; 64]; // __NEW_UTS_LEN, linux/utsname.h
    let len = file.read_at(&mut text, BASE + u64::from(u16::from_le_bytes(pointer))).ok()?;
    let text = text.get(..len)?.split(|byte| matches!(byte, 0 | b' ')).next()?;
    let is_good = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_+~".contains(byte);
    let digits = text.first().is_some_and(u8::is_ascii_digit);
    (digits && text.iter().all(is_good)).then(|| String::from_utf8_lossy(text).into_owned())
}

/// Which of two kernels has the higher version: numbers are compared as numbers.
fn by_version(a: &Path, b: &Path) -> Ordering {
    let [a, b] = [a, b].map(|path| named(path).unwrap_or_default());
    parts(&a).cmp(&parts(&b)).then_with(|| a.cmp(&b))
}

/// A version's numbers, and the words between them.
fn parts(version: &str) -> Vec<(u64, String)> {
    let is_digit = |c: char| c.is_ascii_digit();
    let mut rest = version;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c| !is_digit(c)).unwrap_or(rest.len()));
        let (word, after) = after.split_at(after.find(is_digit).unwrap_or(after.len()));
        parts.push((number.parse().unwrap_or(0), word.to_owned()));
        rest = after;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a bzImage of this version.
    fn image(version: &str) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x180_u16.to_le_bytes());
        bytes.extend_from_slice(&[0; 64]);
        bytes[0x380..0x380 + version.len()].copy_from_slice(version.as_bytes());
        bytes
    }

    fn system(kernels: &[&str], modules: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("boot")).unwrap();
        for name in kernels {
            fs::write(root.path().join("boot").join(name), "").unwrap();
        }
        for version in modules {
            let folder = root.path().join("lib/modules").join(version);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(LIST), "").unwrap();
        }
        root
    }

    #[test]
    fn a_bzimage_says_its_version() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of = |bytes: &[u8]| {
            fs::write(file.path(), bytes).unwrap();
            release(file.path())
        };
        assert_eq!(of(&image("6.1.0-56-cloud-amd64 (x@y) #1")).as_deref(), Some("6.1.0-56-cloud-amd64"));
        for wrong in
            [&image("../6"), &image("6/1"), &image(""), &vec![], &vec![0x7f; 0x600], &image("6.1")[..0x20f].to_vec()]
        {
            assert_eq!(of(wrong), None);
        }
        let mut far = image("6.1");
        far[0x20e..0x210].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(of(&far), None);
    }

    #[test]
    fn modules_are_found_where_they_are_installed() {
        let root = system(&["vmlinuz-6.1.0-9", "other", "vmlinux-6.3"], &["6.1.0-9", "6.2"]);
        let found = |name: &str| Kernel::at(root.path().join("boot").join(name), None).modules;
        let folder = |version: &str| Some(fs::canonicalize(root.path().join("lib/modules").join(version)).unwrap());
        assert_eq!(found("vmlinuz-6.1.0-9"), folder("6.1.0-9"));
        assert_eq!((found("other"), found("vmlinux-6.3")), (None, None));
        fs::write(root.path().join("boot/other"), image("6.2 (x)")).unwrap();
        assert_eq!(found("other"), folder("6.2"), "whatever it is called");
        let inside = root.path().join("lib/modules/6.2/vmlinuz");
        fs::write(&inside, "").unwrap();
        assert_eq!(Kernel::at(inside.clone(), None).modules, folder("6.2"));
        assert_eq!(Kernel::at(inside, Some("/x".into())).modules, Some("/x".into()), "what is said counts");
    }

    #[test]
    fn the_newest_kernel_with_modules_is_a_distributions() {
        let kernels = ["vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-56-amd64", "vmlinuz-6.12.1", "config-7.0", "vmlinuz"];
        let root = system(&kernels, &["6.1.0-9-amd64", "6.1.0-56-amd64", "7.0"]);
        let newest = Kernel::newest(root.path()).unwrap();
        assert_eq!(newest.path, root.path().join("boot/vmlinuz-6.1.0-56-amd64"));
        assert!(newest.modules.unwrap().ends_with("lib/modules/6.1.0-56-amd64"));
        assert_eq!(Kernel::newest(system(&["vmlinuz-1"], &[]).path()), None);
        assert_eq!(Kernel::newest(Path::new("/no/system")), None);
    }
}
