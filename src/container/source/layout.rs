//! An OCI image layout: a directory, or a tar of one.
//!
//! Source: OCI image specification 1.1, image-layout.md; containers-transports(5) (`oci:`, `oci-archive:`).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use super::resolve::{self, Document};
use super::tarball::Tarball;
use super::{Found, Source, SourceError};
use crate::document::{Descriptor, Index};
use crate::reference::{Name, Place};

/// Where a layout lists its images.
const INDEX: &str = "index.json";
/// containerd's annotation: the image's complete name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// One image of a layout.
pub struct Layout {
    files: Files,
    path: PathBuf,
    selector: Option<String>,
}

/// Where its files are.
enum Files {
    Directory(PathBuf),
    Tar(Tarball),
}

impl Layout {
    /// In a directory.
    pub fn directory(place: &Place) -> Result<Self, SourceError> {
        let path = place.path.clone();
        path.metadata().map_err(|error| SourceError::io("look at", &path, error))?;
        if !path.join(INDEX).exists() {
            return Err(SourceError::form(&path, format!("this is no OCI image layout: it has no {INDEX}")));
        }
        Ok(Self { files: Files::Directory(path.clone()), path, selector: place.selector.clone() })
    }

    /// In a tar, whose path is only for messages and names.
    pub fn tar(tar: Tarball, place: &Place) -> Result<Self, SourceError> {
        if !tar.has(INDEX) {
            let why =
                format!("this is no OCI archive: it has no {INDEX} (docker-archive: reads what docker save writes)");
            return Err(SourceError::form(&place.path, why));
        }
        Ok(Self { files: Files::Tar(tar), path: place.path.clone(), selector: place.selector.clone() })
    }

    fn file(&self, name: &str) -> Result<Box<dyn ReadSeek + Send + '_>, SourceError> {
        match &self.files {
            Files::Directory(directory) => {
                let path = directory.join(name);
                let file = File::open(&path).map_err(|error| SourceError::io("open", &path, error))?;
                Ok(Box::new(file))
            }
            Files::Tar(tar) => Ok(Box::new(tar.open(name)?)),
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let read = resolve::read_document(self.file(name)?);
        Ok(read.map_err(|error| SourceError::io("read", &self.path.join(name), error))??)
    }

    /// What the index says of the image.
    fn choose(&self) -> Result<Descriptor, SourceError> {
        let index = Index::read(&self.document(INDEX)?)?;
        let refuse = |why: String| Err(SourceError::form(&self.path, why));
        let names: Vec<_> = index.manifests.iter().map(|one| one.ref_name().unwrap_or("(no name)")).collect();
        let chosen: Vec<_> = match &self.selector {
            Some(selector) => index.manifests.iter().filter(|one| one.ref_name() == Some(selector)).cloned().collect(),
            None => index.manifests.clone(),
        };
        match (&*chosen, &self.selector) {
            ([], Some(selector)) => refuse(format!("there is no image `{selector}`, but {}", list(&names))),
            ([], None) => refuse("there is no image in it".into()),
            ([one], _) => Ok(one.clone()),
            // One image, a manifest for each platform.
            (several, _)
                if several.iter().all(|one| one.platform.is_some() && one.ref_name() == several[0].ref_name()) =>
            {
                Ok(Index { manifests: chosen, ..index }.for_this_machine()?.clone())
            }
            _ => refuse(format!("there are several images in it; say which, as PATH:REF: {}", list(&names))),
        }
    }

    /// The name that the layout has for it; without one, of its own path.
    fn name(&self, chosen: &Descriptor) -> Option<Name> {
        let whole = chosen.annotations.as_ref().and_then(|texts| texts.get(CONTAINERD_NAME));
        let reference = chosen.ref_name();
        let whole = whole.map(String::as_str).or(reference.filter(|name| name.contains([':', '/'])));
        if let Some(name) = whole.and_then(|name| name.parse().ok()) {
            return Some(name);
        }
        let path = std::path::absolute(&self.path).ok()?;
        let stem = path.file_name()?.to_str()?.trim_end_matches(".tar").to_lowercase();
        format!("localhost/{stem}:{}", reference.unwrap_or("latest")).parse().ok()
    }
}

/// What a file in a directory and one in a tar have in common.
trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

fn list(names: &[&str]) -> String {
    let shown: Vec<_> = names.iter().take(20).map(|name| name.chars().take(100).collect::<String>()).collect();
    if shown.is_empty() { "none".into() } else { shown.join(", ") }
}

fn blob_name(blob: &Descriptor) -> String {
    format!("blobs/sha256/{}", blob.digest.hex())
}

impl Source for Layout {
    fn manifest(&self) -> Result<Found, SourceError> {
        let chosen = self.choose()?;
        let read = |blob: &Descriptor| self.document(&blob_name(blob));
        let first =
            Document { bytes: resolve::verified(&chosen, read(&chosen)?)?, media_type: chosen.media_type.clone() };
        let document = resolve::manifest(first, read)?;
        let names = self.name(&chosen).into_iter().collect();
        Ok(Found { bytes: document.bytes, media_type: document.media_type, names })
    }

    fn open(&self, blob: &Descriptor, from: u64) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let name = blob_name(blob);
        let mut file = self.file(&name)?;
        file.seek(SeekFrom::Start(from)).map_err(|error| SourceError::io("read", &self.path.join(&name), error))?;
        Ok(Box::new(file))
    }
}
