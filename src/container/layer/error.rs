//! What can be wrong with a layer, in one sentence that names the entry.

use std::fmt;
use std::io;

use crate::erofs;

/// A layer that cannot be converted.
#[derive(Debug)]
pub struct LayerError {
    /// The entry's name as the layer has it, bytes that are no text escaped; none if it is about the whole layer.
    pub entry: Option<String>,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a layer or one of its entries.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It ends early, or its compression is wrong, or the input failed.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// The tar's structure.
    #[error("is no tar: {0}")]
    Tar(String),
    /// One of [`Limits`](super::Limits).
    #[error("is too much: it has more than {limit} {what}")]
    TooMuch {
        /// What there is a limit for.
        what: &'static str,
        /// As the caller gave it.
        limit: u64,
    },
    /// `..` beyond the root directory.
    #[error("its path leads out of the layer")]
    Escapes,
    /// What a path goes through is a file.
    #[error("its path goes through '{0}', which is not a directory")]
    NotADirectory(String),
    /// Symbolic links that lead to each other.
    #[error("its path goes through more than 40 symbolic links")]
    Loop,
    /// The root directory is to be something else.
    #[error("the root can only be a directory")]
    Root,
    /// A hard link to what is not there.
    #[error("is a hard link to '{0}', which is not in the layer")]
    NoTarget(String),
    /// A hard link to a directory.
    #[error("is a hard link to '{0}', which is a directory")]
    DirectoryTarget(String),
    /// `.wh.` without a name, or with one that no file has.
    #[error("is a whiteout of nothing")]
    Whiteout,
    /// A type of entry that is none of a file.
    #[error("has the unknown type '{0}'")]
    Type(char),
    /// A field of its header.
    #[error("has a bad {0}")]
    Field(&'static str),
    /// A sparse file's map.
    #[error("is a sparse file whose map does not fit its contents")]
    SparseMap,
    /// What an EROFS image cannot hold, or the output failed.
    #[error("{0}")]
    Image(#[from] erofs::Error),
}

impl LayerError {
    /// About the whole layer.
    pub(super) fn read(error: io::Error) -> Self {
        Self { entry: None, fault: Fault::of_read(error) }
    }

    /// About an entry.
    pub(super) fn at(entry: &[u8], fault: Fault) -> Self {
        Self { entry: Some(text(entry)), fault }
    }
}

impl Fault {
    /// The stream's own faults travel as errors of reading.
    pub(super) fn of_read(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(fault) => fault,
            Err(error) => Self::Read(error),
        }
    }
}

impl From<Fault> for LayerError {
    fn from(fault: Fault) -> Self {
        Self { entry: None, fault }
    }
}

impl From<erofs::Error> for LayerError {
    fn from(error: erofs::Error) -> Self {
        Fault::Image(error).into()
    }
}

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.entry, &self.fault) {
            (Some(entry), fault) => write!(f, "layer entry '{entry}': {fault}"),
            (None, Fault::Image(error)) => write!(f, "{error}"),
            (None, fault) => write!(f, "the layer {fault}"),
        }
    }
}

impl std::error::Error for LayerError {} // its sentence has all of the chain

/// A path for people: long ones cut, what is no text escaped.
pub(super) fn text(path: &[u8]) -> String {
    const SHOWN: usize = 256;
    let shown = String::from_utf8_lossy(path.get(..SHOWN).unwrap_or(path)).escape_debug().to_string();
    if path.len() > SHOWN { shown + "…" } else { shown }
}
