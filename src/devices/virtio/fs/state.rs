//! What is kept of a shared directory: what virtiofsd knows of the guest's files, in virtiofsd's own form. Worker thread.

use serde::{Deserialize, Serialize};

use super::Fs;
use crate::state::{StateError, check};

/// What is kept of the device. There are no requests in it: a pause waits until all are answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsState {
    /// virtiofsd had ended: all requests are refused until the VM is restarted.
    pub is_lost: bool,
    /// What virtiofsd handed over; nothing where it had ended.
    pub back_end: Vec<u8>,
}

impl Fs {
    pub(super) fn saved(&mut self) -> Result<FsState, StateError> {
        if self.dead {
            return Ok(FsState { is_lost: true, back_end: Vec::new() });
        }
        check(self.back_end.can_move(), || {
            "a shared directory can not be saved by this virtiofsd, which keeps what the guest has open to itself; virtiofsd \
             1.11 and later (the one in Rust) hand it over"
                .to_owned()
        })?;
        let saved = self.back_end.save();
        let back_end = saved.map_err(|error| StateError::new(format!("save what virtiofsd knows: {error}")))?;
        Ok(FsState { is_lost: false, back_end })
    }

    pub(super) fn become_saved(&mut self, state: &FsState) -> Result<(), StateError> {
        if state.is_lost {
            check(state.back_end.is_empty(), || "a share that is lost has no state of virtiofsd's".to_owned())?;
            self.dead = true;
            self.daemon.kill();
            return Ok(());
        }
        check(self.back_end.can_move(), || {
            "this virtiofsd can not take over what another one knew; virtiofsd 1.11 and later can".to_owned()
        })?;
        let loaded = self.back_end.load(&state.back_end);
        loaded.map_err(|error| StateError::new(format!("give virtiofsd what another one knew: {error}")))
    }
}
