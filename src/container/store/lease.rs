//! What is in use: a file in `work/` that lists digests, and is locked for as long as its process lives. `prune` and `rm`
//! leave alone what a lease lists, be it of an image that is being added or of one that runs.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Store, StoreError};
use crate::digest::Digest;

/// How its files' names begin.
pub(super) const PREFIX: &str = "lease-";
/// Longest that is read, bytes.
const LEASE_MAX: u64 = 1 << 20;

/// Blobs and layers that must stay. Dropped, or with its process's end, it ends.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    path: PathBuf,
    /// Locked.
    file: File,
}

impl Store {
    /// A lease of nothing yet.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.work().join(format!("{PREFIX}{}-{number}", std::process::id()));
        let _lock = self.lock()?;
        let fault = |error| StoreError::io("make", &path, error);
        // A dead process of the same id may have left one.
        let mut options = OpenOptions::new();
        let file = options.append(true).read(true).create(true).mode(0o600).open(&path).map_err(fault)?;
        file.try_lock().map_err(|error| fault(error.into()))?;
        file.set_len(0).map_err(fault)?;
        Ok(Lease { store: self.clone(), path, file })
    }
}

impl Lease {
    /// These must stay, too: those that are there now, and those that come.
    pub fn add(&self, digests: impl IntoIterator<Item = Digest>) -> Result<(), StoreError> {
        let text: String = digests.into_iter().map(|digest| format!("{digest}\n")).collect();
        // Whoever sweeps has either seen it, or is done.
        let _lock = self.store.lock()?;
        (&self.file).write_all(text.as_bytes()).map_err(|error| StoreError::io("write", &self.path, error))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What the lease at `path` lists, if its process lives. The store is locked.
pub(super) fn read(path: &Path) -> Result<Option<BTreeSet<Digest>>, StoreError> {
    let fault = |error| StoreError::io("read", path, error);
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(fault)?,
    };
    match file.try_lock() {
        Ok(()) => return Ok(None),
        Err(std::fs::TryLockError::WouldBlock) => {}
        Err(std::fs::TryLockError::Error(error)) => return Err(fault(error)),
    }
    let mut text = String::new();
    file.take(LEASE_MAX).read_to_string(&mut text).map_err(fault)?;
    Ok(Some(text.lines().filter_map(|line| line.parse().ok()).collect()))
}
