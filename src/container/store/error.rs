//! What can go wrong with a store: the host's files, and what is asked of it.

use std::io;
use std::path::{Path, PathBuf};

use super::part::PATIENCE;
use crate::digest::Digest;
use crate::document::DocumentError;
use crate::reference::NameError;

/// Why the store can not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or a directory.
    #[error("can not {doing} {}: {error}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the host says.
        error: io::Error,
    },
    /// Neither root nor a home directory.
    #[error("there is no place for a store: set VMM_STORE, XDG_DATA_HOME or HOME")]
    NoPlace,
    /// `$VMM_STORE_LIMIT`.
    #[error("VMM_STORE_LIMIT is `{0}`; it must be a number of bytes, as `500M` or `20G`")]
    Limit(String),
    /// More than it may have.
    #[error("the store {} has room for {room} bytes more, not for {size} (`vmm image prune` makes room; VMM_STORE_LIMIT is the limit)", store.display())]
    Full {
        /// Its directory.
        store: PathBuf,
        /// What would come in, bytes.
        size: u64,
        /// What may, bytes.
        room: u64,
    },
    /// A file is not what it was when it was verified.
    #[error("{} {why}; remove the image and add it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it has.
        why: String,
    },
    /// A document in it is not understood.
    #[error("{}: {fault}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: DocumentError,
    },
    /// Another process has a lock, and does nothing.
    #[error("{}: another process has held it for {} s without making progress", .0.display(), PATIENCE.as_secs())]
    Stuck(PathBuf),
    /// No such image.
    #[error("no image `{0}` in the store (`vmm image ls` lists them)")]
    Unknown(String),
    /// Several such images.
    #[error("`{text}` is the beginning of {} digests; write more of it", found.len())]
    Ambiguous {
        /// What was typed.
        text: String,
        /// What it may mean.
        found: Vec<Digest>,
    },
    /// What was typed is no name.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl StoreError {
    /// With what was tried.
    pub(crate) fn io(doing: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), error }
    }
}
