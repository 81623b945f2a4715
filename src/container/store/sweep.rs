//! Removing what nobody refers to: neither a name nor a lease. Under the store's lock.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use super::part::is_at;
use super::{Entry, Store, StoreError, lease};
use crate::digest::Digest;
use crate::reference::Name;

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs.
    pub blobs: u64,
    /// Layers.
    pub layers: u64,
    /// What commands that were killed have left.
    pub leftovers: u64,
    /// Of all of them, on disk.
    pub bytes: u64,
}

impl Store {
    /// Removes what nobody refers to.
    pub fn sweep(&self) -> Result<Swept, StoreError> {
        let _lock = self.lock()?;
        let mut swept = Swept::default();
        let keep = self.in_use(&mut swept)?;
        for (directory, suffix) in [("blobs/sha256", ""), ("layers", ".erofs")] {
            for (path, size) in self.files(directory)? {
                let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(suffix));
                if name.and_then(|name| Digest::from_hex(name).ok()).is_some_and(|digest| keep.contains(&digest)) {
                    continue;
                }
                remove(&path)?;
                swept.bytes += size;
                *(if suffix.is_empty() { &mut swept.blobs } else { &mut swept.layers }) += 1;
            }
        }
        for (path, size) in self.files("work")? {
            if !is_lease(&path) && is_left(&path)? {
                remove(&path)?;
                swept.bytes += size;
                swept.leftovers += 1;
            }
        }
        Ok(swept)
    }

    /// Takes the names away from all images but these, and those that are in use or come in just now. Returns the names.
    pub fn remove_unused(&self, used: &BTreeSet<Digest>) -> Result<Vec<Name>, StoreError> {
        let _lock = self.lock()?;
        let leased = self.leased(&mut Swept::default())?;
        let keeps = |entry: &Entry| used.contains(&entry.manifest.digest) || leased.contains(&entry.manifest.digest);
        let (kept, gone): (Vec<_>, Vec<_>) = self.entries()?.into_iter().partition(keeps);
        if !gone.is_empty() {
            self.write_entries(kept)?;
        }
        Ok(gone.into_iter().map(|entry| entry.name).collect())
    }

    /// All that a name or a living lease refers to. Dead leases are removed.
    fn in_use(&self, swept: &mut Swept) -> Result<BTreeSet<Digest>, StoreError> {
        let mut keep = self.leased(swept)?;
        for entry in self.entries()? {
            keep.extend(self.image(&entry.manifest.digest)?.digests());
        }
        Ok(keep)
    }

    /// All that a living lease refers to. Dead leases are removed.
    fn leased(&self, swept: &mut Swept) -> Result<BTreeSet<Digest>, StoreError> {
        let mut keep = BTreeSet::new();
        for (path, size) in self.files("work")? {
            if !is_lease(&path) {
                continue;
            }
            match lease::read(&path)? {
                Some(digests) => keep.extend(digests),
                None => {
                    remove(&path)?;
                    swept.bytes += size;
                    swept.leftovers += 1;
                }
            }
        }
        Ok(keep)
    }
}

fn is_lease(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(lease::PREFIX))
}

/// Whether nobody holds its lock. Who opened it meanwhile finds out that it is gone (part.rs).
fn is_left(path: &Path) -> Result<bool, StoreError> {
    let fault = |error| StoreError::io("look at", path, error);
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file.map_err(fault)?,
    };
    Ok(file.try_lock().is_ok() && is_at(&file, path).map_err(fault)?)
}

/// Removes a file, if it is still there.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", path, error)),
        _ => Ok(()),
    }
}
