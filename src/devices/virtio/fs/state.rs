//! What is kept of a shared directory: what virtiofsd knows of the guest's files, in virtiofsd's own form. Worker thread.

use serde::{Deserialize, Serialize};

use super::Fs;
use crate::state::{StateError, check};

/// What is kept of the device. There are no requests in it: a pause waits until all are answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsState {
    /// Who served it.
    pub back_end: BackEndState,
}

/// A share's virtiofsd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum BackEndState {
    /// There was none: the share had no directory.
    Absent,
    /// It had ended: all requests are refused until there is another one.
    Lost,
    /// It served.
    Present {
        /// What it handed over.
        state: Vec<u8>,
        /// It came while the VM ran, and the guest has not mounted it yet: what the guest may have mounted was another one.
        awaits_mount: bool,
    },
}

impl Fs {
    pub(super) fn saved(&mut self) -> Result<FsState, StateError> {
        let awaits_mount = self.awaits_mount;
        let Some(server) = &mut self.server else { return Ok(FsState { back_end: BackEndState::Absent }) };
        if server.dead {
            return Ok(FsState { back_end: BackEndState::Lost });
        }
        check(server.back_end.can_move(), || {
            "a shared directory can not be saved by this virtiofsd, which keeps what the guest has open to itself; virtiofsd \
             1.11 and later (the one in Rust) hand it over"
                .to_owned()
        })?;
        let saved = server.back_end.save();
        let state = saved.map_err(|error| StateError::new(format!("save what virtiofsd knows: {error}")))?;
        Ok(FsState { back_end: BackEndState::Present { state, awaits_mount } })
    }

    pub(super) fn become_saved(&mut self, state: &FsState) -> Result<(), StateError> {
        let had_directory = state.back_end != BackEndState::Absent;
        let Some(server) = &mut self.server else {
            return check(!had_directory, || "it had a directory, and has none".to_owned());
        };
        let BackEndState::Present { state, awaits_mount } = &state.back_end else {
            check(had_directory, || "it had no directory, and has one".to_owned())?;
            server.end(&self.tag);
            return Ok(());
        };
        check(server.back_end.can_move(), || {
            "this virtiofsd can not take over what another one knew; virtiofsd 1.11 and later can".to_owned()
        })?;
        let loaded = server.back_end.load(state);
        loaded.map_err(|error| StateError::new(format!("give virtiofsd what another one knew: {error}")))?;
        self.awaits_mount = *awaits_mount;
        Ok(())
    }
}
