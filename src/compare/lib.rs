//! One workload as a plain process, as a container, as a microVM of its own and as a container in a microVM: on one
//! host, by one clock, in turn.
//!
//! The image gets one more layer, with the subject (`derive.rs`); each world starts that same image (`process.rs`,
//! `runc.rs`, `alone.rs`, `engine.rs`); `measure.rs` goes round and round; `statistics.rs` says what is noise, `report.rs`
//! and `claims.rs` what came of it, `page.rs` draws it. One thread.

mod alone;
pub mod claims;
mod derive;
mod engine;
pub mod environment;
mod ground;
pub mod host;
mod instance;
pub mod measure;
mod memory;
pub mod page;
mod process;
pub mod report;
mod runc;
pub mod statistics;
pub mod world;

use std::io;
use std::path::Path;

use container::parts::PartsError;
use container::source::SourceError;
use container::spec::SpecError;
use container::store::StoreError;
use thiserror::Error;

/// Why something cannot be measured.
#[derive(Debug, Error)]
pub enum Fault {
    /// The host refuses something.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// A sentence.
    #[error("{0}")]
    Said(String),
    /// The store of images.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image with the subject cannot be made.
    #[error("add the subject to the image: {0}")]
    Source(#[from] SourceError),
    /// The image has no such container.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// What comes with this program is not there.
    #[error(transparent)]
    Parts(#[from] PartsError),
}

/// What was tried, before what came of it.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| Fault::Io(what(), error.into()))
    }
}

/// A path, for messages.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
