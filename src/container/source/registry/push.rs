//! An image of the store into a registry: blobs that it lacks, then the manifest.
//!
//! Source: OCI distribution specification 1.1 ("Push").

use std::fs::File;
use std::io::Read;

use ureq::SendBody;
use ureq::http::{StatusCode, header};

use super::http::{self, Answer};
use super::{Registry, Selector, SourceError};
use crate::document::Descriptor;
use crate::fetch::{Progressed, Stop, patiently};
use crate::progress::{Bar, Progress, note};
use crate::store::{Image, Store};

impl Registry {
    /// Pushes an image that is held (`Store::hold`).
    pub fn push(&self, store: &Store, image: &Image, progress: &Progress) -> Result<(), SourceError> {
        let mut pushed = Vec::new();
        for blob in image.manifest.layers.iter().chain([&image.manifest.config]) {
            if pushed.contains(&blob.digest) {
                continue;
            }
            pushed.push(blob.digest);
            let bar = progress.bar(blob.digest.short(), blob.size);
            let new = again(&|why| bar.note(why), || self.push_blob(store, blob, &bar))?;
            bar.done(if new { "pushed" } else { "was there" });
        }
        let bytes = store.read_document(&image.descriptor.digest)?;
        let reference = match self.name.selector() {
            Selector::Tag(tag) => tag.clone(),
            Selector::Digest(digest) => digest.to_string(),
        };
        let url = self.url(&format!("manifests/{reference}"));
        again(&note, || {
            let answer = self.authorized(|authorization| {
                let request = self.client.agent().put(&url).header("content-type", &image.descriptor.media_type);
                let sent = authorized(request, authorization).send(&bytes[..]);
                sent.map_err(|error| self.client.fault(error))
            })?;
            http::good(answer, &format!("pushing {}", self.name)).map(drop)
        })
    }

    /// Whether the registry did not have it.
    fn push_blob(&self, store: &Store, blob: &Descriptor, bar: &Bar) -> Result<bool, SourceError> {
        let url = self.url(&format!("blobs/{}", blob.digest));
        let there = self.authorized(|authorization| {
            authorized(self.client.agent().head(&url), authorization).call().map_err(|error| self.client.fault(error))
        })?;
        if there.status().is_success() {
            return Ok(false);
        }
        if there.status() != StatusCode::NOT_FOUND {
            http::good(there, &format!("pushing {}", self.name))?;
        }
        bar.say("pushing");
        let url = self.url("blobs/uploads/");
        let begun = self.authorized(|authorization| {
            let sent = authorized(self.client.agent().post(&url), authorization).send_empty();
            sent.map_err(|error| self.client.fault(error))
        })?;
        let begun = http::good(begun, &format!("pushing {}", self.name))?;
        let place = self.upload(&begun, blob)?;
        let sent = self.authorized(|authorization| {
            let mut body = Counted { file: store.open_blob(blob)?, read: 0, bar };
            let request = self.client.agent().put(&place);
            let request =
                request.header("content-type", "application/octet-stream").header("content-length", blob.size);
            let request = authorized(request, authorization);
            request.send(SendBody::from_reader(&mut body)).map_err(|error| self.client.fault(error))
        })?;
        http::good(sent, &format!("pushing blob {}", blob.digest))?;
        Ok(true)
    }

    /// Where a blob is to be sent: at this registry, and nowhere else.
    fn upload(&self, begun: &Answer, blob: &Descriptor) -> Result<String, SourceError> {
        let odd = || SourceError::Refused("the registry does not say where to push".into());
        let place = begun.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(odd)?;
        let base = self.client.base();
        let place = match place {
            path if path.starts_with('/') => format!("{base}{path}"),
            whole if whole.strip_prefix(base).is_some_and(|rest| rest.starts_with('/')) => whole.to_owned(),
            other => {
                let other: String = other.chars().take(100).collect();
                return Err(SourceError::Refused(format!("the registry wants blobs to be pushed elsewhere: {other}")));
            }
        };
        let joint = if place.contains('?') { '&' } else { '?' };
        Ok(format!("{place}{joint}digest={}", blob.digest))
    }
}

fn authorized<B>(request: ureq::RequestBuilder<B>, authorization: Option<&str>) -> ureq::RequestBuilder<B> {
    match authorization {
        Some(value) => request.header("authorization", value),
        None => request,
    }
}

fn again<T>(say: &dyn Fn(&str), mut step: impl FnMut() -> Result<T, SourceError>) -> Result<T, SourceError> {
    patiently(&Stop::default(), say, || step().map_err(|error| (error, Progressed::No)))
}

/// A blob that is read, and seen to be.
struct Counted<'a> {
    file: File,
    read: u64,
    bar: &'a Bar,
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(into)?;
        self.read += count as u64;
        self.bar.at(self.read);
        Ok(count)
    }
}
