//! Free page hinting (virtio 1.2, 5.5.6): on demand, the guest hands over all pages that are free, and waits with their use
//! until it is told that this is over. Worker thread.
//!
//! The host's commands are numbers in the configuration space, the guest's come by the queue between its pages.

use super::{Balloon, Chain};
use crate::virtio::UpdateError;
use crate::virtio::io::{Broken, Counters};

/// Commands (5.5.4, free_page_hint_cmd_id): nothing is wanted; the guest may use its pages again. All other numbers start
/// a run.
const STOP: u32 = 0;
const DONE: u32 = 1;
pub(super) const FIRST: u32 = 2;

/// What is to become of hinting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// A run begins.
    Start {
        /// Once the guest has handed over all, it may use the pages at once.
        acknowledge_on_stop: bool,
    },
    /// The guest may use its pages again.
    Stop,
}

/// Where both sides are.
#[derive(Debug, Default)]
pub struct Hinting {
    /// The queue's number, where the driver took the feature.
    pub queue: Option<usize>,
    pub(super) host: u32,
    pub(super) guest: Option<u32>,
    /// The number of the last run.
    pub(super) last: u32,
    pub(super) acknowledge: bool,
}

impl Hinting {
    /// free_page_hint_cmd_id.
    pub fn command(&self) -> u32 {
        self.host
    }

    /// Gives the guest a command.
    pub fn begin(&mut self, hint: Hint) -> Result<(), UpdateError> {
        if self.queue.is_none() {
            return Err(UpdateError::new("the guest's driver has not taken free page hinting (free_page_hinting)"));
        }
        self.host = match hint {
            Hint::Start { acknowledge_on_stop } => {
                self.last = self.last.wrapping_add(1).max(FIRST);
                self.acknowledge = acknowledge_on_stop;
                self.last
            }
            Hint::Stop => DONE,
        };
        Ok(())
    }

    /// A request of the driver: a command, or pages.
    pub fn serve(&mut self, chain: &Chain<'_>, counters: &Counters) -> Result<u32, Broken> {
        if chain.readable_len() >= 4 {
            let mut command = [0; 4];
            chain.read(0, &mut command).map_err(|_| Broken("a hinting command is not in RAM"))?;
            let command = u32::from_le_bytes(command);
            self.guest = Some(command);
            if command == STOP && self.host >= FIRST && self.acknowledge {
                self.host = DONE;
            }
        }
        // Pages of a run that is over may be in use again.
        match self.host >= FIRST && self.guest == Some(self.host) {
            true => Balloon::report(chain, counters),
            false => Ok(0),
        }
    }

    /// Firecracker's HintingStatus.
    pub fn status(&self) -> serde_json::Value {
        serde_json::json!({ "host_cmd": self.host, "guest_cmd": self.guest })
    }
}
