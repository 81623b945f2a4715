//! An image in a registry, by the distribution protocol. Any thread; each request blocks its own.
//!
//! Source: OCI distribution specification 1.1 ("Pull"); RFC 9110 (ranges, Retry-After).

mod auth;
mod challenge;
mod http;
mod push;

use std::io::{self, Read};
use std::path::PathBuf;

use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::resolve::{self, Document};
use super::{Found, Source, SourceError};
use crate::digest::Digest;
use crate::document::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, OCI_INDEX, OCI_MANIFEST};
use crate::fetch::{Progressed, Stop, patiently};
use crate::progress::note;
use crate::reference::{Name, Selector};
use auth::Auth;
use http::{Answer, Client};

/// How to speak to registries.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Without TLS. Registries on loopback that have none need not be told so.
    pub plain_http: bool,
    /// Certificates of more authorities that are trusted, PEM.
    pub ca_file: Option<PathBuf>,
}

/// One image of a registry.
pub struct Registry {
    name: Name,
    client: Client,
    auth: Auth,
}

/// What may be done there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Pull,
    Push,
}

impl Registry {
    /// For pulling. On loopback, this finds out whether there is TLS.
    pub fn to_pull(name: &Name, options: &Options) -> Result<Self, SourceError> {
        Self::open(name, options, Access::Pull)
    }

    /// For pushing.
    pub fn to_push(name: &Name, options: &Options) -> Result<Self, SourceError> {
        Self::open(name, options, Access::Push)
    }

    fn open(name: &Name, options: &Options, access: Access) -> Result<Self, SourceError> {
        let client = Client::to(name.registry(), options)?;
        let auth = Auth::to(name, access, client.is_plain());
        Ok(Self { name: name.clone(), client, auth })
    }

    /// `/v2/REPOSITORY/…` at the registry.
    fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.client.base(), self.name.repository())
    }

    /// What it answers. If it wants to know who asks, it is told, and asked again.
    fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer, SourceError> {
        self.authorized(|authorization| self.client.get(url, headers, authorization))
    }

    fn authorized(&self, send: impl Fn(Option<&str>) -> Result<Answer, SourceError>) -> Result<Answer, SourceError> {
        let answer = send(self.auth.current().as_deref())?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenges = answer.headers().get_all(header::WWW_AUTHENTICATE).iter();
        let challenges: Vec<_> = challenges.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
        let authorization = self.auth.renew(&self.client, &challenges)?;
        send(Some(&authorization))
    }

    fn document(&self, reference: &str) -> Result<Document, SourceError> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let url = self.url(&format!("manifests/{reference}"));
        let once = || self.document_once(&url, &accept).map_err(|error| (error, Progressed::No));
        patiently(&Stop::default(), &note, once)
    }

    fn document_once(&self, url: &str, accept: &str) -> Result<Document, SourceError> {
        let answer = http::good(self.get(url, &[("accept", accept)])?, &format!("the image {}", self.name))?;
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let media_type = header("content-type").unwrap_or_default().split(';').next().unwrap_or_default();
        let media_type = media_type.trim().to_owned();
        let promised = header("docker-content-digest").and_then(|digest| digest.parse::<Digest>().ok());
        let bytes = resolve::read_document(answer.into_body().into_reader()).map_err(|error| broken(&error))??;
        let found = Digest::of(&bytes);
        match promised {
            Some(wanted) if wanted != found => Err(SourceError::Digest { what: "the manifest", wanted, found }),
            _ => Ok(Document { bytes, media_type }),
        }
    }
}

/// The connection did, within a document.
fn broken(error: &io::Error) -> SourceError {
    SourceError::Passing { why: format!("the connection broke: {error}"), after: None }
}

impl Source for Registry {
    fn manifest(&self) -> Result<Found, SourceError> {
        let first = match self.name.selector() {
            Selector::Tag(tag) => self.document(tag)?,
            Selector::Digest(wanted) => {
                let document = self.document(&wanted.to_string())?;
                let found = Digest::of(&document.bytes);
                if found != *wanted {
                    return Err(SourceError::Digest { what: "the manifest", wanted: *wanted, found });
                }
                document
            }
        };
        let document = resolve::manifest(first, |wanted| Ok(self.document(&wanted.digest.to_string())?.bytes))?;
        Ok(Found { bytes: document.bytes, media_type: document.media_type, names: vec![self.name.clone()] })
    }

    fn open(&self, blob: &Descriptor, from: u64) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let url = self.url(&format!("blobs/{}", blob.digest));
        let range = format!("bytes={from}-");
        let headers: &[_] = if from > 0 { &[("range", range.as_str())] } else { &[] };
        let answer = self.get(&url, headers)?;
        if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            let found = super::Count::Exactly(from);
            return Err(SourceError::Size { what: "blob", digest: blob.digest, wanted: blob.size, found });
        }
        let answer = http::good(answer, &format!("blob {}", blob.digest))?;
        let at = begins_at(&answer);
        let mut body = answer.into_body().into_reader();
        let skip =
            from.checked_sub(at).ok_or_else(|| SourceError::Refused(format!("it sent byte {at} instead of {from}")))?;
        io::copy(&mut body.by_ref().take(skip), &mut io::sink()).map_err(|error| broken(&error))?;
        Ok(Box::new(body))
    }

    fn may_break(&self) -> bool {
        true
    }
}

/// The first byte of a blob that an answer has. Not every registry knows ranges.
fn begins_at(answer: &Response<Body>) -> u64 {
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return 0;
    }
    let range = answer.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok());
    // Without a place, it can not be used: no blob begins there.
    first.unwrap_or(u64::MAX)
}
