//! What is kept of a vsock: not its connections. Their other ends are processes of the host, which know nothing of a VM that
//! goes on elsewhere or later; so the guest is told that all are gone, by a transport reset (virtio 1.2, 5.10.6.7), which it
//! gets before anything else. Who listens in the guest goes on listening. Worker thread.

use serde::{Deserialize, Serialize};

use super::{EVENT, FIRST_PORT, Vsock};
use crate::state::{StateError, check};
use crate::virtio::io::{Broken, Io};

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: u32 = 0;

/// What is kept of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockState {
    /// The guest's address.
    pub guest_cid: u64,
    /// The host's port that was given out last, so that the next one is new to the guest.
    pub last_port: u32,
}

impl Vsock {
    pub(super) fn saved(&self) -> VsockState {
        VsockState { guest_cid: self.cid, last_port: self.last_port }
    }

    pub(super) fn become_saved(&mut self, state: &VsockState) -> Result<(), StateError> {
        let VsockState { guest_cid, last_port } = *state;
        check(guest_cid == self.cid, || format!("its guest_cid is {}, and was {guest_cid}", self.cid))?;
        check(last_port >= FIRST_PORT, || format!("the host's port {last_port} is none that it gives out"))?;
        self.last_port = last_port;
        self.reset_due = true;
        Ok(())
    }

    /// Tells the guest that its connections are gone, if that is due and it has a buffer for it. A driver without one gets
    /// it later: each buffer is a kick.
    pub(super) fn tell_reset(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        if !self.reset_due {
            return Ok(());
        }
        io.listen(EVENT, true)?;
        let Some(held) = io.take(EVENT, std::mem::take(&mut self.room))? else { return Ok(()) };
        let event = TRANSPORT_RESET.to_le_bytes();
        let written = u32::try_from(event.len()).unwrap_or(0);
        held.chain(io.memory()).write(0, &event).map_err(|_| Broken("an event's buffer is too short or not in RAM"))?;
        self.room = io.give(EVENT, held, written)?;
        self.reset_due = false;
        io.tell(EVENT)
    }
}
