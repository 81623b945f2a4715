//! Where images are kept: a directory that several commands use at once, and that a `kill -9` leaves whole.
//!
//! ```text
//! oci-layout index.json blobs/sha256/HEX    an OCI image layout: any tool for those reads it
//! layers/HEX.erofs                          layers as file-system images, by the digest of their unpacked tar
//! work/                                     what is being made (part.rs) and what is in use (lease.rs)
//! templates/                                VMs that were saved when they had booted (template.rs)
//! ```
//!
//! A file is made in `work/` under a lock, verified, flushed to disk and renamed, so that what has its final name is
//! whole. The index is written last. What nobody refers to is removed under the store's lock (sweep.rs).
//!
//! Source: OCI image specification 1.1, image-layout.md.

mod error;
mod find;
mod index;
mod lease;
mod part;
mod sweep;
mod template;

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::digest::Digest;
use crate::document::{DOCUMENT_MAX, Descriptor};
pub use error::StoreError;
pub use find::{Image, Listed};
pub use index::Entry;
pub use lease::Lease;
pub use part::{Claim, Part};
pub use sweep::Swept;
pub use template::{Making, Ready, Template};

/// Names another store.
const VARIABLE: &str = "VMM_STORE";
/// The most bytes that it may have.
const LIMIT_VARIABLE: &str = "VMM_STORE_LIMIT";
/// The directories of images.
const OF_IMAGES: [&str; 3] = ["blobs/sha256", "layers", "work"];
/// All directories whose bytes count.
const ALL: [&str; 4] = ["blobs/sha256", "layers", "work", template::FOLDER];
/// What every layout says of itself, and where.
const LAYOUT_FILE: &str = "oci-layout";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Without a limit, what is left free of the file system: a share of it, and of a large one so many bytes.
const RESERVE_PERCENT: u64 = 5;
const RESERVE_MAX: u64 = 1 << 30;

/// More than most layers have, bytes.
const PLENTY: u64 = 4 << 30;

/// The store of a user.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    limit: Option<u64>,
}

impl Store {
    /// That of this user, made if it is not there: `$VMM_STORE`, else /var/lib/vmm for root and `$XDG_DATA_HOME/vmm`
    /// (~/.local/share/vmm) for others. `$VMM_STORE_LIMIT` is the most that it may have, bytes (`20G`).
    pub fn of_this_user() -> Result<Self, StoreError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let standard = || match rustix::process::geteuid().is_root() {
            true => Some(PathBuf::from("/var/lib/vmm")),
            false => variable("XDG_DATA_HOME")
                .map(PathBuf::from)
                .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".local/share")))
                .map(|data| data.join("vmm")),
        };
        let root = variable(VARIABLE).map(PathBuf::from).or_else(standard).ok_or(StoreError::NoPlace)?;
        let limit = variable(LIMIT_VARIABLE).map(|text| bytes(&text.to_string_lossy())).transpose()?;
        Self::open(&root, limit)
    }

    /// In this directory, made if it is not there. `limit` is the most that it may have, bytes.
    pub fn open(root: &Path, limit: Option<u64>) -> Result<Self, StoreError> {
        let store = Self { root: root.to_owned(), limit };
        let mut make = DirBuilder::new();
        make.recursive(true).mode(0o700);
        for directory in OF_IMAGES {
            let path = root.join(directory);
            make.create(&path).map_err(|error| StoreError::io("make the directory", &path, error))?;
        }
        if !store.root.join(LAYOUT_FILE).exists() {
            let _lock = store.lock()?;
            store.replace(LAYOUT_FILE, LAYOUT)?;
        }
        Ok(store)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where a blob is, if it is there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Where a layer's file-system image is, if it is there. `diff_id` is the digest of its unpacked tar.
    pub fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{}.erofs", diff_id.hex()))
    }

    /// A blob, which must have its size.
    pub fn open_blob(&self, blob: &Descriptor) -> Result<File, StoreError> {
        let path = self.blob_path(&blob.digest);
        let file = File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
        let found = file.metadata().map_err(|error| StoreError::io("look at", &path, error))?.len();
        if found != blob.size {
            return Err(StoreError::Damaged { path, why: format!("has {found} bytes instead of {}", blob.size) });
        }
        Ok(file)
    }

    /// A document's bytes, verified.
    pub fn read_document(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(DOCUMENT_MAX + 1).read_to_end(&mut bytes));
        read.map_err(|error| StoreError::io("read", &path, error))?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(StoreError::Damaged { path, why: format!("has the digest {found}") });
        }
        Ok(bytes)
    }

    /// Puts a document in; one that is there stays.
    pub fn add_document(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if let Claim::Part(part) = self.claim_blob(&digest, &|| {})? {
            part.reset()?;
            part.file().write_all(bytes).map_err(|error| StoreError::io("write", part.path(), error))?;
            part.finish()?;
        }
        Ok(digest)
    }

    /// A blob that is there, or the right to make it. `waiting` is called when somebody else makes it just now.
    pub fn claim_blob(&self, digest: &Digest, waiting: &dyn Fn()) -> Result<Claim, StoreError> {
        Part::claim(&self.work().join(format!("blob-{}", digest.hex())), &self.blob_path(digest), waiting)
    }

    /// As [`Self::claim_blob`], for a layer's file-system image.
    pub fn claim_layer(&self, diff_id: &Digest, waiting: &dyn Fn()) -> Result<Claim, StoreError> {
        Part::claim(&self.work().join(format!("layer-{}", diff_id.hex())), &self.layer_path(diff_id), waiting)
    }

    /// A file without a name, which nobody has to remove.
    pub fn scratch(&self) -> Result<File, StoreError> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.work(), flags, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR);
        file.map(File::from).map_err(|error| StoreError::io("make a file in", &self.work(), error.into()))
    }

    /// How many bytes may still come in; templates would make room for them.
    pub fn room(&self) -> Result<u64, StoreError> {
        self.room_beside(&OF_IMAGES)
    }

    /// The same, of what has no size yet: templates make room, unless there is plenty beside them.
    pub fn make_room(&self) -> Result<u64, StoreError> {
        self.room_for(PLENTY)
    }

    /// How many bytes may still come in, when templates that are in the way of so many have gone.
    fn room_for(&self, size: u64) -> Result<u64, StoreError> {
        if self.room_beside(&ALL)? < size {
            self.remove_templates()?;
        }
        self.room()
    }

    /// How many bytes may still come in beside what is in these directories.
    fn room_beside(&self, directories: &[&str]) -> Result<u64, StoreError> {
        let system = rustix::fs::statvfs(&self.root);
        let system = system.map_err(|error| StoreError::io("look at", &self.root, error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(system.f_frsize);
        let reserve = (bytes(system.f_blocks) / 100 * RESERVE_PERCENT).min(RESERVE_MAX);
        let free = bytes(system.f_bavail);
        Ok(match self.limit {
            Some(limit) => limit.saturating_sub(self.used_by(directories)?).min(free),
            None => free.saturating_sub(reserve),
        })
    }

    /// Whether that many bytes may come in. Templates are removed where they are in the way.
    pub fn check_room(&self, size: u64) -> Result<(), StoreError> {
        let room = self.room_for(size)?;
        if size <= room { Ok(()) } else { Err(StoreError::Full { store: self.root.clone(), size, room }) }
    }

    /// Bytes on disk of all that is in it.
    pub fn used(&self) -> Result<u64, StoreError> {
        self.used_by(&ALL)
    }

    fn used_by(&self, directories: &[&str]) -> Result<u64, StoreError> {
        let mut sum = 0;
        for directory in directories {
            for (_, size) in self.files(directory)? {
                sum += size;
            }
        }
        Ok(sum)
    }

    fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// The files of one of the directories, with their bytes on disk.
    fn files(&self, directory: &str) -> Result<Vec<(PathBuf, u64)>, StoreError> {
        let path = self.root.join(directory);
        let fault = |error| StoreError::io("read the directory", &path, error);
        let mut files = Vec::new();
        let entries = match path.read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
            entries => entries.map_err(fault)?,
        };
        for entry in entries {
            let entry = entry.map_err(fault)?;
            match entry.metadata() {
                Ok(found) => files.push((entry.path(), found.blocks().saturating_mul(512))),
                // Finished or removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(fault(error)),
            }
        }
        Ok(files)
    }

    /// Holds the store for as long as the file lives: names and what is in use do not change meanwhile.
    fn lock(&self) -> Result<File, StoreError> {
        let fault = |error| StoreError::io("lock", &self.root, error);
        let file = File::open(&self.root).map_err(fault)?;
        part::wait_for(|| match file.try_lock() {
            Ok(()) => Ok(part::Step::Done(())),
            Err(TryLockError::WouldBlock) => Ok(part::Step::Again(0)),
            Err(TryLockError::Error(error)) => Err(fault(error)),
        })?
        .ok_or_else(|| StoreError::Stuck(self.root.clone()))?;
        Ok(file)
    }

    /// Writes a small file of the root as a whole.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.work().join(format!("{name}-{}", std::process::id()));
        let target = self.root.join(name);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&path, &target)?;
            File::open(&self.root)?.sync_all()
        });
        written.map_err(|error| {
            let _ = std::fs::remove_file(&path);
            StoreError::io("write", &target, error)
        })
    }
}

/// `20G`, `512M`, `1000`.
fn bytes(text: &str) -> Result<u64, StoreError> {
    let wrong = || StoreError::Limit(text.to_owned());
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (text.get(..at), 10),
        Some((at, 'M' | 'm')) => (text.get(..at), 20),
        Some((at, 'G' | 'g')) => (text.get(..at), 30),
        Some((at, 'T' | 't')) => (text.get(..at), 40),
        _ => (Some(text), 0),
    };
    let number: u64 = digits.and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
    number.checked_mul(1 << shift).filter(|&number| number > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests;
