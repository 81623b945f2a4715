//! virtiofsd and the connection to it. The control thread starts it; the device's worker has it from then on.

use std::time::Duration;

use super::config::ShareConfig;
use super::{QUEUES, daemon};
use crate::child::Helper;
use crate::virtio::vhost_user::BackEnd;
use crate::virtio::{OpenError, UpdateError};

/// Longest that virtiofsd may take for an answer, and that a pause, a reset or a change waits for requests that are out.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who serves a directory. Dropped, it ends, and then forgets the requests that it had.
pub struct Server {
    pub(super) daemon: Helper,
    pub(super) back_end: BackEnd,
    /// It is gone or not to be trusted.
    pub(super) dead: bool,
    /// Longest wait for requests that are out.
    pub(super) patience: Duration,
}

impl Server {
    /// Starts virtiofsd for the directory of `config`, where it names one, and greets it.
    pub fn open(config: &ShareConfig) -> Result<Option<Self>, OpenError> {
        let Some(dir) = config.directory() else { return Ok(None) };
        let what = |error: &dyn std::fmt::Display| {
            OpenError::new(format!("share {} as '{}': {error}", dir.display(), config.tag))
        };
        let (mut daemon, stream) = daemon::start(config, dir).map_err(|error| what(&error))?;
        let back_end = BackEnd::connect(stream, QUEUES, PATIENCE)
            .map_err(|error| what(&format!("virtiofsd: {error}; its last words: {}", daemon.last_words())))?;
        Ok(Some(Self::new(daemon, back_end, PATIENCE)))
    }

    pub(super) fn new(daemon: Helper, back_end: BackEnd, patience: Duration) -> Self {
        Self { daemon, back_end, dead: false, patience }
    }

    /// Ends it. True the first time.
    pub(super) fn end(&mut self, tag: &str) -> bool {
        let lived = !std::mem::replace(&mut self.dead, true);
        if lived {
            self.daemon.pass_on(tag);
            self.daemon.kill();
        }
        lived
    }
}

/// What becomes of a share while the VM exists.
pub enum FsChange {
    /// Nothing.
    Nothing,
    /// Another directory takes the place of the one that was there; or none does.
    Another(Option<Box<Server>>),
}

impl FsChange {
    /// Starts virtiofsd for what `config` says, if that is new. The same directory is a new one as well: who served it may
    /// have died.
    pub fn open(config: &ShareConfig, is_new: bool) -> Result<Self, UpdateError> {
        if !is_new {
            return Ok(Self::Nothing);
        }
        let server = Server::open(config).map_err(|error| UpdateError::new(error.to_string()))?;
        Ok(Self::Another(server.map(Box::new)))
    }
}
