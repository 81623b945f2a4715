//! What is kept of a memory balloon. Which pages are in it is the driver's knowledge alone; that they are gone shows in guest
//! memory. Worker thread.

use serde::{Deserialize, Serialize};

use super::hinting::{FIRST, Hinting};
use super::{Balloon, NAMES, PAGES_PER_MIB, timer};
use crate::state::{StateError, check};

/// What is kept of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonState {
    /// Its target, MiB.
    pub amount_mib: u32,
    /// Pages that the driver says are in it.
    pub actual: u32,
    /// Seconds between two looks at the statistics; 0: none.
    pub stats_polling_interval_s: u16,
    /// The statistics that came last, by their tags (virtio 1.2, 5.5.6.3).
    pub statistics: Vec<Option<u64>>,
    /// Where free page hinting is.
    pub hinting: HintingState,
    /// Reports of free pages wait.
    pub reporting_paused: bool,
}

/// Commands of free page hinting (virtio 1.2, 5.5.6).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HintingState {
    /// The host's last command.
    pub host: u32,
    /// The guest's, where there was one.
    pub guest: Option<u32>,
    /// The number of the last run; 0 before the first.
    pub last: u32,
    /// The guest may use its pages as soon as it has handed all over.
    pub acknowledge: bool,
}

impl Balloon {
    pub(super) fn saved(&self) -> BalloonState {
        BalloonState {
            amount_mib: self.config.amount_mib,
            actual: self.actual,
            stats_polling_interval_s: self.config.stats_polling_interval_s,
            statistics: self.statistics.to_vec(),
            hinting: self.hinting.save(),
            reporting_paused: self.reporting_paused,
        }
    }

    pub(super) fn become_saved(&mut self, state: &BalloonState) -> Result<(), StateError> {
        let target = state.amount_mib;
        check(target.checked_mul(PAGES_PER_MIB).is_some(), || format!("its target can not be {target} MiB"))?;
        let seconds = state.stats_polling_interval_s;
        check((seconds > 0) == self.timer.is_some(), || {
            format!("its statistics are on or off from the start (stats_polling_interval_s), and were {seconds} s")
        })?;
        let (known, saved) = (NAMES.len(), state.statistics.len());
        let statistics = state.statistics.as_slice().try_into();
        self.statistics = statistics.map_err(|_| StateError::new(format!("it has {known} statistics, not {saved}")))?;
        check(self.config.free_page_reporting || !state.reporting_paused, || {
            "free page reporting was paused, and is off (free_page_reporting)".to_owned()
        })?;
        self.hinting.load(&state.hinting)?;
        if seconds > 0 {
            let made =
                timer(seconds).map_err(|error| StateError::new(format!("make its statistics timer: {error}")))?;
            self.timer = Some(made);
        }
        (self.config.amount_mib, self.config.stats_polling_interval_s) = (target, seconds);
        (self.actual, self.reporting_paused) = (state.actual, state.reporting_paused);
        Ok(())
    }
}

impl Hinting {
    fn save(&self) -> HintingState {
        HintingState { host: self.host, guest: self.guest, last: self.last, acknowledge: self.acknowledge }
    }

    fn load(&mut self, state: &HintingState) -> Result<(), StateError> {
        let HintingState { host, guest, last, acknowledge } = *state;
        check(host < FIRST || host == last, || format!("hinting is at command {host}, and run {last} was its last"))?;
        check(host == 0 || self.queue.is_some(), || "hinting runs without a driver that knows it".to_owned())?;
        (self.host, self.guest, self.last, self.acknowledge) = (host, guest, last, acknowledge);
        Ok(())
    }
}
