//! An image from a source into the store, layers side by side. Its name is written last, so it is there as a whole or not
//! at all; what has come stays for the next try.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Mutex;
use std::thread;

use crate::digest::Digest;
use crate::document::{Config, Descriptor, Manifest};
use crate::fetch::{Stop, fetch};
use crate::layer::{self, Compression, Fault, LayerError, Limits};
use crate::progress::{Bar, Progress};
use crate::reference::Name;
use crate::source::{Found, Source, SourceError};
use crate::store::{Claim, Image, Lease, Part, Store};

/// Most layers that come at the same time.
const AT_ONCE: usize = 4;

/// What adding came to.
#[derive(Debug)]
pub struct Added {
    /// In the store.
    pub image: Image,
    /// Those that it was given now.
    pub names: Vec<Name>,
    /// Whether its first name meant it before.
    pub was_there: bool,
    /// Keeps it from being removed.
    pub lease: Lease,
}

/// Adds an image by these names; without one, by the source's own.
pub fn add(store: &Store, source: &dyn Source, names: &[Name], progress: &Progress) -> Result<Added, SourceError> {
    let found = source.manifest()?;
    let names = if names.is_empty() { found.names.clone() } else { names.to_vec() };
    let first = names.first().ok_or(SourceError::NoName)?;
    let descriptor = descriptor(&found);
    let was_there = store.find_digest(&first.to_string()).is_ok_and(|digest| digest == descriptor.digest);
    let manifest = Manifest::read(&found.bytes)?;
    let lease = store.lease()?;
    let blobs = manifest.layers.iter().map(|layer| layer.digest);
    lease.add(blobs.chain([descriptor.digest, manifest.config.digest]))?;
    let config = config(store, source, &manifest)?;
    lease.add(config.rootfs.diff_ids.iter().copied())?;
    layers(store, source, &manifest, &config, progress)?;
    store.add_document(&found.bytes)?;
    for name in &names {
        store.set_name(name, &descriptor)?;
    }
    Ok(Added { image: store.image(&descriptor.digest)?, names, was_there, lease })
}

fn descriptor(found: &Found) -> Descriptor {
    Descriptor {
        media_type: found.media_type.clone(),
        digest: Digest::of(&found.bytes),
        size: found.bytes.len() as u64,
        platform: None,
        annotations: None,
    }
}

fn config(store: &Store, source: &dyn Source, manifest: &Manifest) -> Result<Config, SourceError> {
    fetch(store, source, &manifest.config, &Progress::silent().bar(String::new(), 0), &Stop::default())?;
    Ok(manifest.config(&store.read_document(&manifest.config.digest)?)?)
}

/// All layers, the largest first, so that none of them is begun when all others are done.
fn layers(
    store: &Store,
    source: &dyn Source,
    manifest: &Manifest,
    config: &Config,
    progress: &Progress,
) -> Result<(), SourceError> {
    let mut seen = BTreeSet::new();
    let pairs = manifest.layers.iter().zip(&config.rootfs.diff_ids);
    let mut waiting: Vec<_> = pairs.filter(|(blob, diff_id)| seen.insert((blob.digest, **diff_id))).collect();
    waiting.sort_by_key(|(blob, _)| blob.size);
    let threads = waiting.len().min(AT_ONCE);
    let (waiting, stop, failed) = (Mutex::new(waiting), Stop::default(), Mutex::new(None));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let next = || waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop();
                while let Some((blob, diff_id)) = next() {
                    if let Err(error) = add_layer(store, source, blob, diff_id, progress, &stop) {
                        stop.now();
                        // The first is the reason for the others.
                        failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(error);
                        return;
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).map_or(Ok(()), Err)
}

/// One layer: its blob, and its file-system image.
fn add_layer(
    store: &Store,
    source: &dyn Source,
    blob: &Descriptor,
    diff_id: &Digest,
    progress: &Progress,
    stop: &Stop,
) -> Result<(), SourceError> {
    let bar = progress.bar(blob.digest.short(), blob.size);
    fetch(store, source, blob, &bar, stop)?;
    if let Claim::Part(part) = store.claim_layer(diff_id, &|| bar.say("waiting"))? {
        bar.say("converting");
        if let Err(error) = convert(store, blob, diff_id, &part, &bar, stop) {
            part.discard();
            return Err(error);
        }
        part.finish()?;
    }
    bar.done("complete");
    Ok(())
}

/// Makes a layer's file-system image of its blob.
fn convert(
    store: &Store,
    blob: &Descriptor,
    diff_id: &Digest,
    part: &Part,
    bar: &Bar,
    stop: &Stop,
) -> Result<(), SourceError> {
    // What a dead process had left is not gone on with.
    part.reset()?;
    let standard = Limits::default();
    let room = store.make_room()?;
    let limits = Limits { bytes: room.min(standard.bytes), ..standard };
    // A manifest that was read has only layers whose compression is known.
    let kind = blob.compression().unwrap_or(Compression::None);
    let input = Watched { file: store.open_blob(blob)?, read: 0, bar, stop };
    let fault = |fault: LayerError| match fault.fault {
        Fault::TooMuch { limit, .. } if limit == room => {
            SourceError::Room { blob: blob.digest, store: store.path().to_owned(), room }
        }
        _ => SourceError::Layer { blob: blob.digest, fault },
    };
    let converted = layer::convert(input, kind, part.file(), &limits).map_err(fault)?;
    let found = Digest::from(converted.diff_id);
    if found != *diff_id {
        return Err(SourceError::Digest { what: "an unpacked layer", wanted: *diff_id, found });
    }
    Ok(())
}

/// A blob that is read, and seen to be.
struct Watched<'a> {
    file: File,
    read: u64,
    bar: &'a Bar,
    stop: &'a Stop,
}

impl Read for Watched<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stop.check().map_err(io::Error::other)?;
        let count = self.file.read(into)?;
        self.read += count as u64;
        self.bar.at(self.read);
        Ok(count)
    }
}
