//! An image of the store as one tar: of an OCI layout, or as `docker save` writes it. The same image gives the same bytes.
//!
//! Source: OCI image specification 1.1, image-layout.md; Docker image specification 1.2.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, Write};

use serde_json::json;
use tar::{Builder, Header};

use crate::digest::{Digest, Digesting};
use crate::document::{Descriptor, Index, OCI_INDEX, REF_NAME};
use crate::layer::{Compression, Uncompressed};
use crate::reference::{Name, Selector};
use crate::store::{Image, Store, StoreError};

/// Which kind of tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of an OCI layout.
    Oci,
    /// As `docker save` writes it.
    Docker,
}

/// Why there is no tar.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The image.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Where it goes.
    #[error("can not write the archive: {0}")]
    Write(#[from] io::Error),
}

/// Writes the image with these names. It must be held (`Store::hold`).
pub fn export(store: &Store, image: &Image, names: &[Name], kind: Kind, to: impl Write) -> Result<(), ExportError> {
    let mut tar = Builder::new(to);
    match kind {
        Kind::Oci => oci(store, image, names, &mut tar)?,
        Kind::Docker => docker(store, image, names, &mut tar)?,
    }
    tar.into_inner()?.flush()?;
    Ok(())
}

fn oci(store: &Store, image: &Image, names: &[Name], tar: &mut Builder<impl Write>) -> Result<(), ExportError> {
    member(tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let named = names.iter().map(|name| {
        let annotations = Some(BTreeMap::from([(REF_NAME.to_owned(), name.to_string())]));
        Descriptor { annotations, ..image.descriptor.clone() }
    });
    let manifests = named.collect();
    let index = Index { schema_version: 2, media_type: Some(OCI_INDEX.into()), manifests };
    member(tar, "index.json", &serde_json::to_vec(&index).map_err(io::Error::from)?)?;
    let mut seen = BTreeSet::new();
    for blob in [&image.descriptor, &image.manifest.config].into_iter().chain(&image.manifest.layers) {
        if seen.insert(blob.digest) {
            let file = store.open_blob(blob)?;
            stream(tar, &format!("blobs/sha256/{}", blob.digest.hex()), blob.size, file)?;
        }
    }
    Ok(())
}

fn docker(store: &Store, image: &Image, names: &[Name], tar: &mut Builder<impl Write>) -> Result<(), ExportError> {
    let config = format!("{}.json", image.manifest.config.digest.hex());
    member(tar, &config, &store.read_document(&image.manifest.config.digest)?)?;
    let mut layers = Vec::new();
    let mut seen = BTreeSet::new();
    for (blob, diff_id) in image.manifest.layers.iter().zip(&image.config.rootfs.diff_ids) {
        let name = format!("{}.tar", diff_id.hex());
        if seen.insert(*diff_id) {
            let file = store.open_blob(blob)?;
            match blob.compression() {
                Some(Compression::None) | None => stream(tar, &name, blob.size, file)?,
                // Its size stands before it, and is known after it.
                Some(kind) => {
                    let mut unpacked = store.scratch()?;
                    let mut layer = Uncompressed::new(file, kind, store.make_room()?)?;
                    let size = io::copy(&mut layer, &mut unpacked)?;
                    let found = Digest::from(layer.finish()?);
                    if found != *diff_id {
                        let why = format!("unpacks to {found} instead of {diff_id}");
                        return Err(StoreError::Damaged { path: store.blob_path(&blob.digest), why }.into());
                    }
                    unpacked.rewind()?;
                    stream(tar, &name, size, unpacked)?;
                }
            }
        }
        layers.push(name);
    }
    let tags = names.iter().filter(|name| matches!(name.selector(), Selector::Tag(_))).map(Name::familiar);
    let list = json!([{"Config": config, "RepoTags": tags.collect::<Vec<_>>(), "Layers": layers}]);
    Ok(member(tar, "manifest.json", list.to_string().as_bytes())?)
}

fn member(tar: &mut Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    stream(tar, name, bytes.len() as u64, bytes)
}

/// `size` bytes; fewer are an error, as the tar would be wrong from there on.
fn stream(tar: &mut Builder<impl Write>, name: &str, size: u64, from: impl Read) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    let mut through = Digesting::new(from.take(size));
    tar.append_data(&mut header, name, &mut through)?;
    if through.size() == size { Ok(()) } else { Err(io::Error::other(format!("{name} became shorter meanwhile"))) }
}
