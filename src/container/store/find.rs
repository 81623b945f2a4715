//! Images of the store, found by what users type: a name, a digest, or the beginning of one.

use std::collections::BTreeSet;

use super::{Entry, Lease, Store, StoreError};
use crate::digest::Digest;
use crate::document::{Config, Descriptor, DocumentError, Manifest};
use crate::reference::Name;

/// Fewest digits that stand for a digest.
const SHORTEST: usize = 3;

/// An image that is in the store.
#[derive(Debug)]
pub struct Image {
    /// All its names, sorted.
    pub names: Vec<Name>,
    /// Points to the manifest.
    pub descriptor: Descriptor,
    /// From the store.
    pub manifest: Manifest,
    /// From the store.
    pub config: Config,
}

/// An image by one of its names, and why it can not be used if it can not.
pub type Listed = (Name, Result<Image, StoreError>);

impl Image {
    /// What it needs of the store: manifest, configuration, blobs of layers, and layers.
    pub fn digests(&self) -> BTreeSet<Digest> {
        let layers = self.manifest.layers.iter().map(|layer| layer.digest);
        let own = [self.descriptor.digest, self.manifest.config.digest];
        own.into_iter().chain(layers).chain(self.config.rootfs.diff_ids.iter().copied()).collect()
    }

    /// Bytes of its blobs.
    pub fn size(&self) -> u64 {
        let layers = self.manifest.layers.iter().map(|layer| layer.size);
        layers.chain([self.descriptor.size, self.manifest.config.size]).fold(0, u64::saturating_add)
    }
}

impl Store {
    /// The image that `text` means.
    pub fn find(&self, text: &str) -> Result<Image, StoreError> {
        self.image(&self.find_digest(text)?)
    }

    /// The same, with what keeps it from being removed while it is used.
    pub fn hold(&self, text: &str) -> Result<(Image, Lease), StoreError> {
        let lease = self.lease()?;
        loop {
            let image = self.find(text)?;
            lease.add(image.digests())?;
            // It may have been removed before the lease listed it.
            if self.find_digest(text)? == image.descriptor.digest {
                return Ok((image, lease));
            }
        }
    }

    /// The digest of the image that `text` means. A name goes before digits.
    pub fn find_digest(&self, text: &str) -> Result<Digest, StoreError> {
        let entries = self.entries()?;
        let name = text.parse::<Name>();
        if let Some(entry) = name.as_ref().ok().and_then(|name| entries.iter().find(|entry| is(entry, name))) {
            return Ok(entry.manifest.digest);
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() >= SHORTEST && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let digests: BTreeSet<_> = entries.iter().map(|entry| entry.manifest.digest).collect();
            let found: Vec<_> = digests.into_iter().filter(|digest| digest.hex().starts_with(digits)).collect();
            match *found {
                [] => {}
                [digest] => return Ok(digest),
                _ => return Err(StoreError::Ambiguous { text: text.to_owned(), found }),
            }
            return Err(StoreError::Unknown(text.to_owned()));
        }
        match name {
            Ok(name) => Err(StoreError::Unknown(name.familiar())),
            Err(fault) => Err(fault.into()),
        }
    }

    /// The image with this manifest.
    pub fn image(&self, digest: &Digest) -> Result<Image, StoreError> {
        let entries = self.entries()?.into_iter().filter(|entry| entry.manifest.digest == *digest);
        let entries: Vec<_> = entries.collect();
        let first = entries.first().ok_or_else(|| StoreError::Unknown(digest.to_string()))?;
        let (manifest, config) = self.documents(digest)?;
        let descriptor = Descriptor { annotations: None, ..first.manifest.clone() };
        Ok(Image { names: entries.into_iter().map(|entry| entry.name).collect(), descriptor, manifest, config })
    }

    /// All images, each once, with one of its names.
    pub fn images(&self) -> Result<Vec<Listed>, StoreError> {
        let mut seen = BTreeSet::new();
        let entries = self.entries()?.into_iter().filter(|entry| seen.insert(entry.manifest.digest));
        Ok(entries.map(|entry| (entry.name, self.image(&entry.manifest.digest))).collect())
    }

    /// Manifest and configuration, verified.
    pub(super) fn documents(&self, digest: &Digest) -> Result<(Manifest, Config), StoreError> {
        let fault =
            |digest: &Digest, fault: DocumentError| StoreError::Document { path: self.blob_path(digest), fault };
        let manifest = Manifest::read(&self.read_document(digest)?).map_err(|why| fault(digest, why))?;
        let config_digest = manifest.config.digest;
        let config = manifest.config(&self.read_document(&config_digest)?).map_err(|why| fault(&config_digest, why))?;
        Ok((manifest, config))
    }
}

/// By its name, or by the digest of any image of the same repository.
fn is(entry: &Entry, name: &Name) -> bool {
    let same_repository = entry.name.registry() == name.registry() && entry.name.repository() == name.repository();
    entry.name == *name || same_repository && name.pin() == Some(entry.manifest.digest)
}
