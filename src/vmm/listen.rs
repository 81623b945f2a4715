//! The API's socket, its thread, and the mailbox through which it speaks to the control thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::routes::Api;
use api::server::{self, Serving};
use machine::control::Mailbox;
use machine::error::{Doing, HostError};
use machine::journal::Journal;
use machine::listener::Listener;
use machine::metadata::Store;
use machine::metrics::Metrics;

/// The API that is asked for.
#[derive(Debug, Clone)]
pub struct ApiOptions {
    /// Its socket; without it, it is where the VM is found by its name.
    pub socket: Option<PathBuf>,
    /// Longest body of a request, bytes.
    pub body_max: usize,
}

/// The API at work. It is dropped in this order: whoever waits for an answer is told that the VM has ended, and hears it.
pub struct Listening {
    /// Where its requests come to.
    pub mailbox: Mailbox,
    _serving: Serving,
}

/// Starts the API at `path`; the longest body of a request has `body_max` bytes. It answers from now on as soon as the
/// control thread looks into the mailbox.
pub fn listen(
    path: &Path,
    body_max: usize,
    id: Option<&str>,
    metadata: &Arc<Store>,
    metrics: &Arc<Metrics>,
    journal: &Journal,
) -> Result<Listening, HostError> {
    let (mailbox, remote) = Mailbox::new()?;
    let listener = Listener::bind(path).doing(|| format!("start the API: --api-sock {}", path.display()))?;
    let id = id.unwrap_or("anonymous-instance").to_owned();
    let api = Api::new(remote, metadata.clone(), metrics.clone(), id, env!("CARGO_PKG_VERSION"));
    let serve = move |request: &_, client: &_| api.serve(request, client);
    let serving = server::serve(listener, body_max, journal.clone(), serve).doing(|| "start the API's thread")?;
    Ok(Listening { mailbox, _serving: serving })
}
