//! Where images come from: directories, archives, registries. All of them give a manifest for this machine and the blobs
//! that it names; whoever takes these verifies them (fetch.rs).

pub mod archive;
mod docker;
mod layout;
pub mod registry;
mod resolve;
mod tarball;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::digest::Digest;
use crate::document::{Descriptor, DocumentError};
use crate::layer::LayerError;
use crate::reference::{Name, Reference};
use crate::store::{Store, StoreError};
pub use docker::DockerArchive;
pub use layout::Layout;
pub use registry::{Options, Registry};

/// One image, somewhere.
pub trait Source: Sync {
    /// The manifest for this machine, as bytes; verified against whatever names it by digest.
    fn manifest(&self) -> Result<Found, SourceError>;
    /// A blob from byte `from` on. It may be shorter or longer than it should be, or another.
    fn open(&self, blob: &Descriptor, from: u64) -> Result<Box<dyn Read + Send + '_>, SourceError>;
    /// Whether a blob that ends early may be whole the next time.
    fn may_break(&self) -> bool {
        false
    }
}

/// The image that is meant, wherever it is.
pub fn open(store: &Store, reference: &Reference, options: &Options) -> Result<Box<dyn Source>, SourceError> {
    Ok(match reference {
        Reference::Registry(name) => Box::new(Registry::to_pull(name, options)?),
        Reference::Layout(place) => Box::new(Layout::directory(place)?),
        Reference::OciArchive(place) => Box::new(archive::oci(store, place)?),
        Reference::DockerArchive(place) => Box::new(archive::docker(store, place)?),
        Reference::Stdin => archive::stdin(store)?,
    })
}

/// A manifest, and what it says of itself.
#[derive(Debug, Clone)]
pub struct Found {
    /// As it is signed for by its digest.
    pub bytes: Vec<u8>,
    /// What it is.
    pub media_type: String,
    /// The names that the source has for it, complete.
    pub names: Vec<Name>,
}

/// Why an image can not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file or a directory of this host.
    #[error("can not {doing} {}: {error}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the host says.
        error: io::Error,
    },
    /// It is not what it ought to be.
    #[error("{}: {why}", path.display())]
    Form {
        /// Directory or archive.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The document of an image.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A document or a blob is not the one that was asked for.
    #[error("{what} has the digest {found} instead of {wanted}")]
    Digest {
        /// What it is.
        what: &'static str,
        /// As it was named.
        wanted: Digest,
        /// What it is.
        found: Digest,
    },
    /// It is longer or shorter than was said.
    #[error("{what} {digest} has {found} bytes instead of {wanted}")]
    Size {
        /// What it is.
        what: &'static str,
        /// As it was named.
        digest: Digest,
        /// As its descriptor has it.
        wanted: u64,
        /// Bytes that came; `more than …` if it did not end there.
        found: Count,
    },
    /// What came is wrong for now: it may be better next time.
    #[error("{why}")]
    Passing {
        /// What happened.
        why: String,
        /// When the other end wants to be asked again.
        after: Option<Duration>,
    },
    /// The other end will not.
    #[error("{0}")]
    Refused(String),
    /// It can not be made a file-system image.
    #[error("layer {}: {fault}", blob.short())]
    Layer {
        /// The layer's blob.
        blob: Digest,
        /// What is wrong with it.
        fault: LayerError,
    },
    /// A layer unpacks to more than may come in.
    #[error(
        "layer {} unpacks to more than the {room} bytes for which the store {} has room (`vmm image prune` makes room; VMM_STORE_LIMIT is the limit)",
        blob.short(),
        store.display()
    )]
    Room {
        /// The layer's blob.
        blob: Digest,
        /// The store's directory.
        store: PathBuf,
        /// Bytes that may come in.
        room: u64,
    },
    /// It has no name of its own, and was given none.
    #[error("the image has no name: give it one")]
    NoName,
    /// Another part of the work has failed.
    #[error("stopped")]
    Stopped,
    /// Where it would be put.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How many bytes came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// These.
    Exactly(u64),
    /// It was not read to its end.
    MoreThan(u64),
}

impl std::fmt::Display for Count {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exactly(count) => write!(to, "{count}"),
            Self::MoreThan(count) => write!(to, "more than {count}"),
        }
    }
}

impl SourceError {
    fn io(doing: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), error }
    }

    fn form(path: &Path, why: impl Into<String>) -> Self {
        Self::Form { path: path.to_owned(), why: why.into() }
    }
}

#[cfg(test)]
mod tests;
