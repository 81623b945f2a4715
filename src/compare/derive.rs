//! The image and one more layer, with the subject and a file that it reads: so every world gets them the same way. In
//! the store it has a name of its own for as long as it is needed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};

use container::add::add;
use container::digest::Digest;
use container::document::{Descriptor, OCI_LAYER};
use container::parts;
use container::progress::Progress;
use container::reference::Name;
use container::source::{Found, Source, SourceError};
use container::store::{Image, Lease, Store};
use serde_json::{Value, json};
use subject::{DATA, DATA_BYTES, PLACE};

use crate::{Doing, Fault, shown};

/// The subject's program.
pub const PROGRAM: &str = "vmm-subject";
/// Docker's media type of a layer that is not compressed.
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// The image with the subject. Its name goes when this does.
#[derive(Debug)]
pub struct Derived<'a> {
    store: &'a Store,
    /// As it is in the store.
    pub image: Image,
    /// How it is called there.
    pub name: Name,
    _lease: Lease,
}

impl<'a> Derived<'a> {
    /// Adds it to the store.
    pub fn of(store: &'a Store, image: &Image) -> Result<Self, Fault> {
        let new = New::of(store, image)?;
        let digest = Digest::of(&new.manifest);
        let name = format!("localhost/vmm-compare:{}", digest.short());
        let name: Name = name.parse().map_err(|error| Fault::Said(format!("{name}: {error}")))?;
        let added = add(store, &new, std::slice::from_ref(&name), &Progress::silent())?;
        Ok(Self { store, image: added.image, name, _lease: added.lease })
    }
}

impl Drop for Derived<'_> {
    fn drop(&mut self) {
        let _ = self.store.remove_names(std::slice::from_ref(&self.name), &self.image.descriptor.digest);
        let _ = self.store.sweep();
    }
}

/// The documents and the layer that the store has not yet.
struct New<'a> {
    store: &'a Store,
    media_type: String,
    manifest: Vec<u8>,
    blobs: BTreeMap<Digest, Vec<u8>>,
}

impl<'a> New<'a> {
    fn of(store: &'a Store, image: &Image) -> Result<Self, Fault> {
        let layer = layer()?;
        let document = |digest: &Digest| -> Result<Value, Fault> {
            let bytes = store.read_document(digest)?;
            serde_json::from_slice(&bytes).map_err(|error| Fault::Said(format!("{digest}: {error}")))
        };
        let mut config = document(&image.manifest.config.digest)?;
        let mut manifest = document(&image.descriptor.digest)?;
        push(&mut config["rootfs"]["diff_ids"], json!(Digest::of(&layer)));
        if config["history"].is_array() {
            push(&mut config["history"], json!({"created_by": "vmm compare"}));
        }
        let config = config.to_string().into_bytes();
        manifest["config"]["digest"] = json!(Digest::of(&config));
        manifest["config"]["size"] = json!(config.len());
        let media_type = if image.descriptor.media_type.contains("docker") { DOCKER_LAYER } else { OCI_LAYER };
        let descriptor = json!({"mediaType": media_type, "digest": Digest::of(&layer), "size": layer.len()});
        push(&mut manifest["layers"], descriptor);
        let blobs = [config, layer].map(|bytes| (Digest::of(&bytes), bytes)).into();
        let media_type = image.descriptor.media_type.clone();
        Ok(Self { store, media_type, manifest: manifest.to_string().into_bytes(), blobs })
    }
}

impl Source for New<'_> {
    fn manifest(&self) -> Result<Found, SourceError> {
        Ok(Found { bytes: self.manifest.clone(), media_type: self.media_type.clone(), names: Vec::new() })
    }

    fn open(&self, blob: &Descriptor, from: u64) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        match self.blobs.get(&blob.digest) {
            Some(bytes) => Ok(Box::new(Cursor::new(bytes.get(from..).unwrap_or_default()))),
            None => Ok(Box::new(self.store.open_blob(blob)?)), // it is there, so nobody asks
        }
    }
}

fn push(list: &mut Value, value: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(value),
        None => *list = json!([value]),
    }
}

/// The layer as a tar. The same program makes the same bytes.
fn layer() -> Result<Vec<u8>, Fault> {
    let program = parts::program(PROGRAM)?;
    let bytes = fs::read(&program).doing(|| format!("read {} (it comes with vmm)", shown(&program)))?;
    let mut archive = tar::Builder::new(Vec::new());
    let mut file = |path: &str, mode: u32, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        archive.append_data(&mut header, path.trim_start_matches('/'), bytes)
    };
    let written = file(PLACE, 0o755, &bytes).and_then(|()| file(DATA, 0o644, &noise()));
    written.and_then(|()| archive.into_inner()).doing(|| "make the subject's layer".to_owned())
}

/// Bytes without a hole and without a pattern (xorshift64).
fn noise() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(DATA_BYTES);
    while bytes.len() < DATA_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}
