//! Address to register device: one bus for I/O ports, one for MMIO.
//!
//! Built once, before the vCPUs run, and only read afterwards; a device is locked for one access. vCPU threads call it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A device made of registers. There is no error: a bad read returns ones, a bad write does nothing, and both are
/// counted by the device.
pub trait BusDevice: Send {
    /// Reads `data.len()` bytes at `offset` from the device's base.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset` from the device's base.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as the bus shares it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

struct Range {
    len: u64,
    device: SharedDevice,
}

/// Two ranges overlap.
#[derive(Debug, thiserror::Error)]
#[error("register range {base:#x}+{len:#x} overlaps another device")]
pub struct Overlap {
    base: u64,
    len: u64,
}

/// Address ranges and the devices behind them.
#[derive(Default)]
pub struct Bus {
    ranges: BTreeMap<u64, Range>,
}

impl Bus {
    /// Puts `device` at `base..base + len`.
    pub fn insert(&mut self, base: u64, len: u64, device: SharedDevice) -> Result<(), Overlap> {
        let overlaps = len == 0
            || base.checked_add(len).is_none()
            || self.find(base).is_some()
            || self.ranges.range(base..base.saturating_add(len)).next().is_some();
        if overlaps {
            return Err(Overlap { base, len });
        }
        self.ranges.insert(base, Range { len, device });
        Ok(())
    }

    /// Reads from whatever is at `addr`; ones, and false, where nothing is.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        match self.find(addr) {
            Some((offset, device)) => device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data),
            None => {
                data.fill(0xff);
                return false;
            }
        }
        true
    }

    /// Writes to whatever is at `addr`; dropped, and false, where nothing is.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        match self.find(addr) {
            Some((offset, device)) => device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data),
            None => {
                return false;
            }
        }
        true
    }

    fn find(&self, addr: u64) -> Option<(u64, &SharedDevice)> {
        let (base, range) = self.ranges.range(..=addr).next_back()?;
        let offset = addr.checked_sub(*base)?;
        (offset < range.len).then_some((offset, &range.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Last(Vec<(u64, Vec<u8>)>);
    impl BusDevice for Last {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset.to_le_bytes()[0]);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    #[test]
    fn routes_by_address_and_reads_ones_elsewhere() {
        let device = Arc::new(Mutex::new(Last(Vec::new())));
        let mut bus = Bus::default();
        bus.insert(0x100, 0x10, device.clone()).unwrap();
        let mut byte = [0];
        assert!(bus.read(0x10f, &mut byte));
        assert_eq!(byte, [0xf]);
        assert!(!bus.read(0x110, &mut byte));
        assert_eq!(byte, [0xff]);
        assert!(!bus.write(0xff, &[1]));
        assert!(bus.write(0x104, &[7, 8]));
        assert_eq!(device.lock().unwrap().0, [(4, vec![7, 8])]);
    }

    #[test]
    fn refuses_overlaps() {
        let device = || Arc::new(Mutex::new(Last(Vec::new())));
        let mut bus = Bus::default();
        bus.insert(0x100, 0x10, device()).unwrap();
        for (base, len) in [(0x100, 1), (0x10f, 1), (0xf8, 0x10), (0xf0, 0x100), (0x200, 0), (u64::MAX, 2)] {
            assert!(bus.insert(base, len, device()).is_err(), "{base:#x}+{len:#x}");
        }
        bus.insert(0x110, 0x10, device()).unwrap();
    }
}
