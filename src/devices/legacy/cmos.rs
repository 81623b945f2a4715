//! The real-time clock and CMOS RAM (Motorola MC146818A, with the PC's century byte). vCPU threads.
//!
//! The time is always the host's, in UTC; a guest that sets it is not believed. Alarms are stored and never ring. The
//! formats of status register B (12 or 24 hours, BCD or binary) are honoured, and update-in-progress is shown during
//! the last 244 microseconds of a second as the data sheet promises, so that a guest never sees half a change.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::state::{StateError, check};

/// Ports of the device: index, data.
pub const PORTS: u64 = 2;

/// Status A: an update begins within 244 microseconds.
const UIP: u8 = 1 << 7;
/// Status A at power-on: 32.768 kHz time base, 1024 Hz rate.
const STATUS_A: u8 = 0x26;
/// Status B: updates are stopped, while the guest sets the time.
const SET: u8 = 1 << 7;
/// Status B: binary, not BCD.
const DM: u8 = 1 << 2;
/// Status B: 24 hours.
const HOURS_24: u8 = 1 << 1;
/// Status D: battery and RAM are good.
const VALID: u8 = 1 << 7;
/// Hours register, 12-hour format: afternoon.
const PM: u8 = 1 << 7;

const MICROS_BEFORE_UPDATE: u32 = 244;

/// What is kept of the device. The time is not: it is the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CmosState {
    /// The register that the data port means.
    pub index: u8,
    /// What was written to the registers.
    pub ram: Vec<u8>,
}

/// The device.
pub struct Cmos {
    /// Time since the epoch, UTC.
    clock: fn() -> Duration,
    index: u8,
    ram: [u8; 128],
}

impl Cmos {
    /// A clock that shows the host's time.
    pub fn new() -> Self {
        Self::with_clock(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    fn with_clock(clock: fn() -> Duration) -> Self {
        let mut cmos = Self { clock, index: 0, ram: [0; 128] };
        cmos.set(0x0a, STATUS_A);
        cmos.set(0x0b, HOURS_24);
        cmos
    }

    /// What is to be kept.
    pub fn save(&self) -> CmosState {
        CmosState { index: self.index, ram: self.ram.to_vec() }
    }

    /// Becomes what was saved.
    pub fn load(&mut self, state: &CmosState) -> Result<(), StateError> {
        let (index, len) = (state.index, state.ram.len());
        check(usize::from(index) < self.ram.len(), || format!("the clock has no register {index}"))?;
        let ram = state.ram.as_slice().try_into();
        self.ram =
            ram.map_err(|_| StateError::new(format!("the clock has {} registers, not {len}", self.ram.len())))?;
        self.index = index;
        Ok(())
    }

    fn get(&self, index: u8) -> u8 {
        self.ram.get(usize::from(index)).copied().unwrap_or(0xff)
    }

    fn set(&mut self, index: u8, value: u8) {
        if let Some(cell) = self.ram.get_mut(usize::from(index)) {
            *cell = value;
        }
    }

    fn register(&self, index: u8) -> u8 {
        let now = (self.clock)();
        let date = Date::of(now.as_secs());
        match index {
            0x00 => self.format(date.second),
            0x02 => self.format(date.minute),
            0x04 => self.hour(date.hour),
            0x06 => self.format(date.weekday),
            0x07 => self.format(date.day),
            0x08 => self.format(date.month),
            0x09 => self.format(date.year),
            0x32 => self.format(date.century),
            0x0a => {
                let updating = 1_000_000_u32.saturating_sub(now.subsec_micros()) <= MICROS_BEFORE_UPDATE;
                let uip = if updating && self.get(0x0b) & SET == 0 { UIP } else { 0 };
                self.get(0x0a) | uip
            }
            0x0c => 0, // no interrupt is ever pending
            0x0d => VALID,
            _ => self.get(index),
        }
    }

    fn write_register(&mut self, index: u8, value: u8) {
        match index {
            0x00 | 0x02 | 0x04 | 0x06..=0x09 | 0x0c | 0x0d | 0x32 => {} // the host's time stands
            0x0a => self.set(index, value & !UIP),
            _ => self.set(index, value),
        }
    }

    fn format(&self, value: u8) -> u8 {
        if self.get(0x0b) & DM != 0 { value } else { (value / 10) << 4 | (value % 10) }
    }

    fn hour(&self, hour: u8) -> u8 {
        if self.get(0x0b) & HOURS_24 != 0 {
            return self.format(hour);
        }
        let twelve = match hour % 12 {
            0 => 12,
            hour => hour,
        };
        self.format(twelve) | if hour >= 12 { PM } else { 0 }
    }
}

impl Default for Cmos {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            *byte = if offset == 1 { self.register(self.index) } else { 0xff };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (offset, byte) in (offset..).zip(data) {
            match offset {
                0 => self.index = byte & 0x7f, // bit 7 masks NMIs, of which there are none
                1 => self.write_register(self.index, *byte),
                _ => {}
            }
        }
    }
}

/// A moment in UTC, in the clock's registers' units. `weekday` is 1 on Sundays.
#[derive(Debug, PartialEq, Eq)]
struct Date {
    second: u8,
    minute: u8,
    hour: u8,
    weekday: u8,
    day: u8,
    month: u8,
    year: u8,
    century: u8,
}

impl Date {
    /// The date `secs` seconds after the epoch, by the proleptic Gregorian calendar.
    fn of(secs: u64) -> Self {
        let byte = |value: u64| u8::try_from(value).unwrap_or(0);
        let (days, second) = (secs / 86_400, secs % 86_400);
        // Years that begin in March, eras of 400 years: leap days are then always last.
        let shifted = days.saturating_add(719_468);
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let leap_days = (day_of_era / 1_460).saturating_add(day_of_era / 146_096);
        let year_of_era = day_of_era.saturating_add(day_of_era / 36_524).saturating_sub(leap_days) / 365;
        let before = year_of_era.saturating_mul(365).saturating_add(year_of_era / 4).saturating_sub(year_of_era / 100);
        let day_of_year = day_of_era.saturating_sub(before);
        let march_month = day_of_year.saturating_mul(5).saturating_add(2) / 153;
        let day = day_of_year.saturating_sub(march_month.saturating_mul(153).saturating_add(2) / 5).saturating_add(1);
        let month = if march_month < 10 { march_month.saturating_add(3) } else { march_month.saturating_sub(9) };
        let year = era.saturating_mul(400).saturating_add(year_of_era).saturating_add(u64::from(month <= 2));
        Self {
            second: byte(second % 60),
            minute: byte(second / 60 % 60),
            hour: byte(second / 3600),
            weekday: byte(days.saturating_add(4) % 7).saturating_add(1), // 1 January 1970 was a Thursday
            day: byte(day),
            month: byte(month),
            year: byte(year % 100),
            century: byte(year / 100 % 100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_kept_and_checked() {
        let mut first = Cmos::new();
        put(&mut first, 0x40, 0x77);
        put(&mut first, 0x0b, HOURS_24 | DM);
        let state = first.save();
        let mut second = Cmos::new();
        second.load(&state).unwrap();
        assert_eq!((second.save(), get(&mut second, 0x40)), (state.clone(), 0x77));
        let short = CmosState { ram: vec![0; 64], ..state.clone() };
        assert_eq!(second.load(&short).unwrap_err().to_string(), "the clock has 128 registers, not 64");
        let lie = CmosState { index: 128, ..state };
        assert_eq!(second.load(&lie).unwrap_err().to_string(), "the clock has no register 128");
    }

    fn get(cmos: &mut Cmos, index: u8) -> u8 {
        let mut byte = [0];
        cmos.write(0, &[index | 0x80]);
        cmos.read(1, &mut byte);
        byte[0]
    }

    fn put(cmos: &mut Cmos, index: u8, value: u8) {
        cmos.write(0, &[index]);
        cmos.write(1, &[value]);
    }

    fn all(cmos: &mut Cmos) -> [u8; 8] {
        [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32].map(|index| get(cmos, index))
    }

    // 2024-02-29 23:59:58 UTC, a Thursday
    fn leap_day() -> Duration {
        Duration::from_secs(1_709_251_198)
    }

    #[test]
    fn shows_the_time_in_each_format() {
        let mut cmos = Cmos::with_clock(leap_day);
        assert_eq!(all(&mut cmos), [0x58, 0x59, 0x23, 5, 0x29, 2, 0x24, 0x20]);
        put(&mut cmos, 0x0b, HOURS_24 | DM);
        assert_eq!(all(&mut cmos), [58, 59, 23, 5, 29, 2, 24, 20]);
        put(&mut cmos, 0x0b, 0);
        assert_eq!(get(&mut cmos, 0x04), 0x11 | PM);
        let mut midnight = Cmos::with_clock(|| Duration::from_secs(86_400));
        put(&mut midnight, 0x0b, 0);
        assert_eq!(get(&mut midnight, 0x04), 0x12);
    }

    #[test]
    fn dates_are_right_across_months_and_centuries() {
        let date = |secs| {
            let date = Date::of(secs);
            (u32::from(date.century) * 100 + u32::from(date.year), date.month, date.day, date.weekday)
        };
        assert_eq!(date(0), (1970, 1, 1, 5));
        assert_eq!(date(951_782_400), (2000, 2, 29, 3));
        assert_eq!(date(951_868_800), (2000, 3, 1, 4));
        assert_eq!(date(1_735_689_599), (2024, 12, 31, 3));
        assert_eq!(date(4_107_542_400), (2100, 3, 1, 2));
        Date::of(u64::MAX);
    }

    #[test]
    fn warns_of_an_update_and_keeps_what_is_not_time() {
        let mut late = Cmos::with_clock(|| Duration::new(5, 999_800_000));
        assert_eq!(get(&mut late, 0x0a), STATUS_A | UIP);
        put(&mut late, 0x0b, SET | HOURS_24);
        assert_eq!(get(&mut late, 0x0a), STATUS_A);
        let mut cmos = Cmos::with_clock(leap_day);
        assert_eq!(get(&mut cmos, 0x0a), STATUS_A);
        put(&mut cmos, 0x00, 0x11);
        assert_eq!(get(&mut cmos, 0x00), 0x58);
        put(&mut cmos, 0x05, 0x12);
        put(&mut cmos, 0x7f, 0x34);
        assert_eq!((get(&mut cmos, 0x05), get(&mut cmos, 0x7f)), (0x12, 0x34));
        assert_eq!((get(&mut cmos, 0x0c), get(&mut cmos, 0x0d)), (0, VALID));
    }
}
