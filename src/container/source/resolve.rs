//! From an index to the manifest for this machine. Indexes may list indexes, to a depth that has an end.

use std::io::Read;

use super::SourceError;
use crate::digest::Digest;
use crate::document::{DOCUMENT_MAX, Descriptor, DocumentError, Index, OCI_INDEX, OCI_MANIFEST};

/// Deepest nesting of indexes.
const DEPTH_MAX: usize = 4;

/// A document, and what it is.
pub(super) struct Document {
    pub bytes: Vec<u8>,
    pub media_type: String,
}

/// Follows indexes from `first` on. `read` fetches what a descriptor names; it is verified here.
pub(super) fn manifest(
    first: Document,
    read: impl Fn(&Descriptor) -> Result<Vec<u8>, SourceError>,
) -> Result<Document, SourceError> {
    let mut document = first;
    for _ in 0..=DEPTH_MAX {
        let media_type = media_type(&document);
        let descriptor = Descriptor { media_type, ..nobody() };
        if !descriptor.is_index() {
            return Ok(Document { media_type: descriptor.media_type, ..document });
        }
        let index = Index::read(&document.bytes)?;
        let chosen = index.for_this_machine()?;
        document = Document { bytes: verified(chosen, read(chosen)?)?, media_type: chosen.media_type.clone() };
    }
    Err(SourceError::Refused(format!("its indexes list indexes, more than {DEPTH_MAX} deep")))
}

fn nobody() -> Descriptor {
    Descriptor { media_type: String::new(), digest: Digest::of(b""), size: 0, platform: None, annotations: None }
}

/// What a document says of itself; else what others say of it; else what it looks like.
fn media_type(document: &Document) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Look {
        media_type: Option<String>,
        manifests: Option<serde_json::Value>,
    }
    let look: Option<Look> = serde_json::from_slice(&document.bytes).ok();
    match look {
        Some(Look { media_type: Some(own), .. }) if !own.is_empty() => own,
        _ if !document.media_type.is_empty() => document.media_type.clone(),
        Some(Look { manifests: Some(_), .. }) => OCI_INDEX.to_owned(),
        _ => OCI_MANIFEST.to_owned(),
    }
}

/// The bytes, if they are those that are named.
pub(super) fn verified(wanted: &Descriptor, bytes: Vec<u8>) -> Result<Vec<u8>, SourceError> {
    let found = Digest::of(&bytes);
    if bytes.len() as u64 != wanted.size {
        let found = super::Count::Exactly(bytes.len() as u64);
        return Err(SourceError::Size { what: "the manifest", digest: wanted.digest, wanted: wanted.size, found });
    }
    if found != wanted.digest {
        return Err(SourceError::Digest { what: "the manifest", wanted: wanted.digest, found });
    }
    Ok(bytes)
}

/// Reads a document to its end, which must come soon.
pub(super) fn read_document(from: impl Read) -> std::io::Result<Result<Vec<u8>, DocumentError>> {
    let mut bytes = Vec::new();
    from.take(DOCUMENT_MAX + 1).read_to_end(&mut bytes)?;
    Ok(if bytes.len() as u64 > DOCUMENT_MAX { Err(DocumentError::TooLong) } else { Ok(bytes) })
}
