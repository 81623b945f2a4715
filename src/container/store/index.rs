//! Names of images: the layout's `index.json`. It is read without a lock, as it is always whole, and changed under the
//! store's.

use std::collections::BTreeMap;
use std::io;

use super::{Store, StoreError};
use crate::digest::Digest;
use crate::document::{Descriptor, Index, OCI_INDEX, REF_NAME};
use crate::reference::Name;

const FILE: &str = "index.json";

/// A name and its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Complete.
    pub name: Name,
    /// What it points to.
    pub manifest: Descriptor,
}

impl Store {
    /// All names, sorted.
    pub fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let path = self.path().join(FILE);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            bytes => bytes.map_err(|error| StoreError::io("read", &path, error))?,
        };
        let index = Index::read(&bytes).map_err(|fault| StoreError::Document { path, fault })?;
        let mut entries = Vec::new();
        for manifest in index.manifests {
            // Another tool may have written something else.
            let Some(name) = manifest.ref_name().and_then(|name| name.parse().ok()) else { continue };
            entries.push(Entry { name, manifest });
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    /// Gives an image a name, which it takes from whichever had it. All of the image must be in the store.
    pub fn set_name(&self, name: &Name, manifest: &Descriptor) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let mut entries = self.entries()?;
        entries.retain(|entry| entry.name != *name);
        let annotations = Some(BTreeMap::from([(REF_NAME.to_owned(), name.to_string())]));
        entries.push(Entry { name: name.clone(), manifest: Descriptor { annotations, ..manifest.clone() } });
        self.write_entries(entries)
    }

    /// Takes these names away from the image that they were seen at. Returns those that were still there.
    pub fn remove_names(&self, names: &[Name], digest: &Digest) -> Result<Vec<Name>, StoreError> {
        let _lock = self.lock()?;
        let (gone, rest): (Vec<_>, Vec<_>) = self
            .entries()?
            .into_iter()
            .partition(|entry| entry.manifest.digest == *digest && names.contains(&entry.name));
        self.write_entries(rest)?;
        Ok(gone.into_iter().map(|entry| entry.name).collect())
    }

    pub(super) fn write_entries(&self, mut entries: Vec<Entry>) -> Result<(), StoreError> {
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        let manifests = entries.into_iter().map(|entry| entry.manifest).collect();
        let index = Index { schema_version: 2, media_type: Some(OCI_INDEX.into()), manifests };
        let fault = |error: serde_json::Error| StoreError::io("write", &self.path().join(FILE), error.into());
        self.replace(FILE, &serde_json::to_vec(&index).map_err(fault)?)
    }
}
