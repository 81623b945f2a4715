//! What `docker save` writes: a tar with a `manifest.json` that lists configurations and layers' tars. A manifest as
//! registries have it is made of these.
//!
//! Source: Docker image specification 1.2 ("Combined Image JSON + Filesystem Changeset Format").

use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use serde::Deserialize;

use super::resolve;
use super::tarball::{MemberReader, Tarball};
use super::{Found, Source, SourceError};
use crate::digest::{Digest, Digesting};
use crate::document::{Config, Descriptor, DocumentError, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::layer::Compression;
use crate::reference::{Name, Place};

/// Where the images are listed.
pub(super) const LIST: &str = "manifest.json";

/// One image of such a tar.
pub struct DockerArchive {
    tar: Tarball,
    names: Vec<Name>,
    manifest: Vec<u8>,
    /// Where the configuration and each layer is in the tar.
    blobs: Vec<(Digest, String)>,
}

/// An image in the list.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl DockerArchive {
    /// In this tar.
    pub fn open(tar: Tarball, place: &Place) -> Result<Self, SourceError> {
        if !tar.has(LIST) {
            let why =
                format!("this is no docker archive: it has no {LIST} (oci-archive: reads a tar of an OCI layout)");
            return Err(SourceError::form(&place.path, why));
        }
        let listed = choose(&tar, place)?;
        let config_bytes = document(&tar, &listed.config, &place.path)?;
        let json = |fault| DocumentError::Json { what: "configuration", fault };
        let config: Config = serde_json::from_slice(&config_bytes).map_err(json)?;
        let (manifest, expected) = (listed.layers.len(), config.rootfs.diff_ids.len());
        if manifest != expected {
            return Err(DocumentError::Count { manifest, config: expected }.into());
        }
        let config_digest = Digest::of(&config_bytes);
        let mut blobs = vec![(config_digest, listed.config.clone())];
        let mut layers = Vec::new();
        for (path, diff_id) in listed.layers.iter().zip(&config.rootfs.diff_ids) {
            let layer = layer(tar.open(path)?, diff_id).map_err(|error| SourceError::io("read", &place.path, error))?;
            blobs.push((layer.digest, path.clone()));
            layers.push(layer);
        }
        let config = Descriptor {
            media_type: OCI_CONFIG.into(),
            digest: config_digest,
            size: config_bytes.len() as u64,
            platform: None,
            annotations: None,
        };
        let manifest = Manifest { schema_version: 2, media_type: Some(OCI_MANIFEST.into()), config, layers };
        let manifest = serde_json::to_vec(&manifest).map_err(json)?;
        let names = listed.repo_tags.unwrap_or_default().iter().filter_map(|name| name.parse().ok()).collect();
        Ok(Self { tar, names, manifest, blobs })
    }
}

/// The image that is meant: the one of a name, or the only one.
fn choose(tar: &Tarball, place: &Place) -> Result<Listed, SourceError> {
    let bytes = document(tar, LIST, &place.path)?;
    let json = |fault| DocumentError::Json { what: "list of images", fault };
    let list: Vec<Listed> = serde_json::from_slice(&bytes).map_err(json)?;
    let names = || {
        let names: Vec<_> = list.iter().flat_map(|one| one.repo_tags.iter().flatten()).take(20).cloned().collect();
        if names.is_empty() { "none with a name".into() } else { names.join(", ") }
    };
    let refuse = |why: String| Err(SourceError::form(&place.path, why));
    match (&*list, &place.selector) {
        ([], _) => refuse("there is no image in it".into()),
        ([one], None) => Ok(one.clone()),
        (_, None) => refuse(format!("there are several images in it; say which, as PATH:NAME: {}", names())),
        (_, Some(selector)) => {
            let wanted: Name = selector.parse().map_err(|error| SourceError::form(&place.path, format!("{error}")))?;
            let has = |one: &&Listed| one.repo_tags.iter().flatten().any(|name| name.parse() == Ok(wanted.clone()));
            let found = list.iter().find(has).cloned();
            found.map_or_else(|| refuse(format!("there is no image `{selector}`, but {}", names())), Ok)
        }
    }
}

fn document(tar: &Tarball, name: &str, path: &std::path::Path) -> Result<Vec<u8>, SourceError> {
    let read = resolve::read_document(tar.open(name)?);
    Ok(read.map_err(|error| SourceError::io("read", path, error))??)
}

/// What a layer is. A plain tar has the digest that the configuration names; others are read for theirs.
fn layer(mut member: MemberReader, diff_id: &Digest) -> io::Result<Descriptor> {
    let mut magic = Vec::new();
    member.by_ref().take(4).read_to_end(&mut magic)?;
    member.seek(SeekFrom::Start(0))?;
    let (media_type, packed) = match Compression::of_first_bytes(&magic) {
        Compression::None => (OCI_LAYER, false),
        Compression::Gzip => ("application/vnd.oci.image.layer.v1.tar+gzip", true),
        Compression::Zstd => ("application/vnd.oci.image.layer.v1.tar+zstd", true),
    };
    let size = member.size();
    let digest = if packed {
        let mut through = Digesting::new(member);
        io::copy(&mut through, &mut io::sink())?;
        through.finish().0
    } else {
        *diff_id
    };
    Ok(Descriptor { media_type: media_type.into(), digest, size, platform: None, annotations: None })
}

impl Source for DockerArchive {
    fn manifest(&self) -> Result<Found, SourceError> {
        let media_type = OCI_MANIFEST.to_owned();
        Ok(Found { bytes: self.manifest.clone(), media_type, names: self.names.clone() })
    }

    fn open(&self, blob: &Descriptor, from: u64) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let found = self.blobs.iter().find(|(digest, _)| *digest == blob.digest);
        let (_, name) = found.ok_or_else(|| SourceError::Refused(format!("there is no blob {}", blob.digest)))?;
        let mut member = self.tar.open(name)?;
        member.seek(SeekFrom::Start(from)).map_err(|error| SourceError::io("read", &PathBuf::from(name), error))?;
        Ok(Box::new(member))
    }
}
