//! virtio memory balloon (virtio 1.2, 5.5): memory that the guest does not use goes back to the host. Worker thread.
//!
//! What the guest hands over (inflating), or only reports as free, is taken out of its memory (`release.rs`).

mod config;
mod hinting;
mod release;
mod state;
mod tally;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

pub use self::config::{BalloonChange, BalloonConfig};
pub use self::hinting::Hint;
use self::hinting::Hinting;
use self::release::{PAGE, Run, release};
pub use self::state::{BalloonState, HintingState};
use self::tally::{Tally, counting};
use super::chain::{Chain, Segment};
use super::io::{Broken, Counters, Held, Io, count};
use super::state::DeviceState;
use super::{Change, Device, Facts, OpenError, Source, Stop, UpdateError};
use crate::state::StateError;

/// Device id (virtio 1.2, 5).
const VIRTIO_ID_BALLOON: u32 = 5;
const QUEUE_SIZE: u16 = 128;
/// Feature bits (5.5.3).
const STATS_VQ: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const HINTING: u64 = 1 << 3;
const REPORTING: u64 = 1 << 5;
/// Most page numbers of one request, bytes: Linux sends 256 of them.
const NUMBERS_MAX: u64 = 64 << 10;
/// Pages of one MiB.
const PAGES_PER_MIB: u32 = 256;
/// Bytes of one statistic: a 16-bit tag and a 64-bit value (5.5.6.3).
const STATISTIC: usize = 10;
/// Statistics that the specification and Linux know; more are not read.
const STATISTICS_MAX: usize = 32;
/// Where `actual` lies in the configuration space (5.5.4).
const ACTUAL: usize = 4;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;

/// Names of the statistics by their tags, from 0 (virtio 1.2, 5.5.6.3; linux/virtio_balloon.h).
const NAMES: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];

/// The device.
pub struct Balloon {
    config: BalloonConfig,
    /// Pages that the driver says are in the balloon.
    actual: u32,
    /// Fires when statistics are due.
    timer: Option<TimerFd>,
    /// The driver's buffer for the next statistics.
    waiting: Option<Held>,
    /// The statistics that came last, by their tags.
    statistics: [Option<u64>; NAMES.len()],
    /// Queues that exist only when their features are negotiated have no fixed places.
    stats: Option<usize>,
    reporting: Option<usize>,
    /// Reports wait in their queue, and the driver keeps their pages unused.
    reporting_paused: bool,
    hinting: Hinting,
    tally: Arc<Tally>,
}

impl Balloon {
    /// Makes the timer for statistics, if they are wanted.
    pub fn open(config: &BalloonConfig) -> Result<Self, OpenError> {
        let timer = match config.stats_polling_interval_s {
            0 => None,
            seconds => Some(
                timer(seconds)
                    .map_err(|error| OpenError::new(format!("make the balloon's statistics timer: {error}")))?,
            ),
        };
        Ok(Self {
            config: config.clone(),
            actual: 0,
            timer,
            waiting: None,
            statistics: [None; NAMES.len()],
            stats: None,
            reporting: None,
            reporting_paused: false,
            hinting: Hinting::default(),
            tally: Arc::default(),
        })
    }

    /// Takes the pages whose numbers are in `chain` out of guest memory.
    fn inflate(chain: &Chain<'_>, counters: &Counters) -> Result<u32, Broken> {
        const OUT: Broken = Broken("page numbers are not in RAM");
        let len = chain.readable_len();
        if len > NUMBERS_MAX {
            return Err(Broken("a request has too many page numbers"));
        }
        let mut run = Run::default();
        let mut numbers = [0_u8; 1024];
        let mut done = 0;
        while done < len {
            let now = usize::try_from(len.saturating_sub(done)).unwrap_or(usize::MAX).min(numbers.len());
            let part = numbers.get_mut(..now).ok_or(OUT)?;
            chain.read(done, part).map_err(|_| OUT)?;
            for number in part.chunks_exact(4) {
                let number = number.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                if let Some(whole) = run.add(u64::from(number)) {
                    release(chain.memory(), whole, counters);
                }
            }
            done = done.saturating_add(u64::try_from(now).unwrap_or(u64::MAX));
        }
        if let Some(rest) = run.take() {
            release(chain.memory(), rest, counters);
        }
        Ok(0)
    }

    /// Takes the free ranges that `chain` consists of out of guest memory (5.5.6.5).
    fn report(chain: &Chain<'_>, counters: &Counters) -> Result<u32, Broken> {
        for Segment { addr, len } in chain.writable_part(0..chain.writable_len()) {
            let Some(end) = addr.0.checked_add(u64::from(len)) else { continue };
            let (first, last) = (addr.0.div_ceil(PAGE), end / PAGE);
            if first < last {
                release(chain.memory(), (first, last.saturating_sub(first)), counters);
            }
        }
        Ok(0)
    }

    /// The driver's answer to the last request for statistics, and the buffer for the next one.
    fn read_statistics(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        loop {
            if io.is_wanted() {
                io.ring(queue);
                return Ok(());
            }
            let Some(held) = io.take(queue, Default::default())? else { break };
            // A driver that sends a second buffer gets the first one back.
            if let Some(old) = self.waiting.take() {
                io.give(queue, old, 0)?;
                io.tell(queue)?;
            }
            let chain = held.chain(io.memory());
            let known = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX) / STATISTIC;
            let mut bytes = [0; STATISTIC * STATISTICS_MAX];
            let bytes = bytes.get_mut(..known.min(STATISTICS_MAX).saturating_mul(STATISTIC)).unwrap_or_default();
            chain.read(0, bytes).map_err(|_| Broken("statistics are not in RAM"))?;
            for statistic in bytes.chunks_exact(STATISTIC) {
                let (tag, value) = statistic.split_at_checked(2).unwrap_or_default();
                let tag = tag.first_chunk().map_or(0, |tag| u16::from_le_bytes(*tag));
                let value = value.first_chunk().map_or(0, |value| u64::from_le_bytes(*value));
                if let Some(known) = self.statistics.get_mut(usize::from(tag)) {
                    *known = Some(value);
                }
            }
            self.waiting = Some(held);
            count(&self.tally.stats_updates_count, 1);
        }
        io.listen(queue, true)?;
        Ok(())
    }
}

impl Balloon {
    /// What is known of the guest's memory.
    fn statistics(&self) -> serde_json::Value {
        let target = self.config.amount_mib;
        let mut told = serde_json::json!({
            "target_pages": target.saturating_mul(PAGES_PER_MIB),
            "actual_pages": self.actual,
            "target_mib": target,
            "actual_mib": self.actual / PAGES_PER_MIB,
        });
        if let Some(told) = told.as_object_mut() {
            let known = NAMES.iter().zip(&self.statistics);
            told.extend(known.filter_map(|(name, value)| Some(((*name).to_owned(), (*value)?.into()))));
        }
        told
    }
}

impl Device for Balloon {
    fn facts(&self) -> Facts {
        let stats = self.timer.is_some();
        let features = if stats { STATS_VQ } else { 0 }
            | if self.config.deflate_on_oom { DEFLATE_ON_OOM } else { 0 }
            | if self.config.free_page_hinting { HINTING } else { 0 }
            | if self.config.free_page_reporting { REPORTING } else { 0 };
        let more = [stats, self.config.free_page_hinting, self.config.free_page_reporting];
        let queues = more.into_iter().fold(2_usize, |queues, more| queues.saturating_add(more.into()));
        let mut config = Vec::with_capacity(12);
        config.extend(self.config.amount_mib.saturating_mul(PAGES_PER_MIB).to_le_bytes()); // num_pages
        config.extend(self.actual.to_le_bytes());
        if self.config.free_page_hinting {
            config.extend(self.hinting.command().to_le_bytes()); // free_page_hint_cmd_id
        }
        Facts {
            virtio_id: VIRTIO_ID_BALLOON,
            features,
            queue_sizes: vec![QUEUE_SIZE; queues],
            config,
            config_writable: ACTUAL..ACTUAL.saturating_add(4),
            sources: self.timer.iter().map(|timer| Source { token: 0, fd: timer.as_raw_fd() }).collect(),
            tally: Some(self.tally.clone()),
            ..Facts::default()
        }
    }

    /// The driver counts queues without those whose features it did not take, as Linux does.
    fn started(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let mut next = DEFLATE;
        let mut place = |feature| {
            (io.features() & feature != 0).then(|| {
                next = next.saturating_add(1);
                next
            })
        };
        self.stats = place(STATS_VQ);
        self.hinting.queue = place(HINTING);
        self.reporting = place(REPORTING);
        Ok(())
    }

    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        let (counters, tally) = (io.counters(), self.tally.clone());
        match queue {
            INFLATE => io.drain(queue, |chain| {
                count(&tally.inflate_count, 1);
                Self::inflate(chain, counters)
            }),
            // The pages come back as they are touched.
            DEFLATE => io.drain(queue, |_| {
                count(&tally.deflate_count, 1);
                Ok(0)
            }),
            _ if Some(queue) == self.stats => self.read_statistics(queue, io),
            _ if Some(queue) == self.hinting.queue => {
                let before = self.hinting.command();
                io.drain(queue, |chain| {
                    count(&tally.free_page_hint_count, 1);
                    let what = (&tally.free_page_hint_freed, &tally.free_page_hint_fails);
                    counting(what, counters, || self.hinting.serve(chain, counters))
                })?;
                if self.hinting.command() != before {
                    io.set_config(&self.facts().config);
                }
                Ok(())
            }
            _ if self.reporting_paused => Ok(()),
            _ if Some(queue) == self.reporting => io.drain(queue, |chain| {
                count(&tally.free_page_report_count, 1);
                let what = (&tally.free_page_report_freed, &tally.free_page_report_fails);
                counting(what, counters, || Self::report(chain, counters))
            }),
            _ => Ok(()),
        }
    }

    /// Statistics are due.
    fn ready(&mut self, _token: u16, io: &mut Io<'_>) -> Result<(), Broken> {
        if let Some(timer) = &mut self.timer {
            let _ = timer.wait(); // it has fired: this says how often, and starts it again
        }
        if let (Some(queue), Some(held)) = (self.stats, self.waiting.take()) {
            io.give(queue, held, 0)?;
            io.tell(queue)?;
        }
        Ok(())
    }

    /// The statistics buffer is the driver's again.
    fn finish(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        if let (Some(queue), Some(held)) = (self.stats, self.waiting.take()) {
            io.put_back(queue, held);
        }
        Ok(())
    }

    fn stopping(&mut self, why: Stop) {
        self.waiting = None;
        if why == Stop::Reset {
            (self.stats, self.reporting) = (None, None);
            self.hinting = Hinting::default();
            self.statistics = [None; NAMES.len()];
        }
    }

    fn update(&mut self, change: Change) -> Result<(), UpdateError> {
        let Change::Balloon(change) = change else { return Err(UpdateError::new("it is no balloon")) };
        if let Some(hint) = change.hint {
            return self.hinting.begin(hint);
        }
        if let Some(paused) = change.pause_reporting {
            if !self.config.free_page_reporting {
                return Err(UpdateError::new("free page reporting is off (free_page_reporting)"));
            }
            self.reporting_paused = paused; // the worker looks at every queue after this
            return Ok(());
        }
        if let Some(seconds) = change.stats_polling_interval_s {
            let fresh = match (&self.timer, seconds) {
                (Some(_), 1..) => Some(timer(seconds).map_err(|error| UpdateError::new(format!("a timer: {error}")))?),
                (None, 0) => None,
                _ => {
                    let text =
                        "statistics can not be switched on or off while the VM exists (stats_polling_interval_s)";
                    return Err(UpdateError::new(text));
                }
            };
            self.timer = fresh;
            self.config.stats_polling_interval_s = seconds;
        }
        self.config.amount_mib = change.amount_mib.unwrap_or(self.config.amount_mib);
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, StateError> {
        Ok(DeviceState::Balloon(self.saved()))
    }

    fn load(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Balloon(state) = state else { return Err(StateError::other_kind()) };
        self.become_saved(state)
    }

    /// Firecracker's BalloonStatistics and HintingStatus, by the names `statistics` and `hinting`, and `reporting`; null where
    /// they are off.
    fn inspect(&self) -> serde_json::Value {
        let hinting = self.config.free_page_hinting.then(|| self.hinting.status());
        let statistics = self.timer.is_some().then(|| self.statistics());
        let reporting = self.config.free_page_reporting.then(|| serde_json::json!({ "paused": self.reporting_paused }));
        serde_json::json!({ "statistics": statistics, "hinting": hinting, "reporting": reporting })
    }

    fn wrote_config(&mut self, offset: usize, data: &[u8]) {
        let mut actual = self.actual.to_le_bytes();
        let at = offset.saturating_sub(ACTUAL);
        for (to, from) in actual.iter_mut().skip(at).zip(data) {
            *to = *from;
        }
        self.actual = u32::from_le_bytes(actual);
    }
}

/// A timer that fires every so many seconds.
fn timer(seconds: u16) -> io::Result<TimerFd> {
    let every = Duration::from_secs(seconds.into());
    let mut timer = TimerFd::new()?;
    timer.reset(every, Some(every))?;
    Ok(timer)
}

#[cfg(test)]
mod tests;
