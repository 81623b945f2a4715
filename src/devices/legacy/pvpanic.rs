//! pvpanic: one port through which a guest's kernel says that it panicked (QEMU, docs/specs/pvpanic.rst; Linux,
//! include/uapi/misc/pvpanic.h). ACPI announces it as QEMU0001. vCPU threads.

use crate::bus::BusDevice;
use crate::seams::{GuestEvent, Notify};

/// Bit 0: the kernel panicked and will do nothing more.
const PANICKED: u8 = 1 << 0;
/// Bit 1: the kernel panicked and its crash kernel takes over.
const CRASH_LOADED: u8 = 1 << 1;

/// The device.
pub struct Pvpanic {
    notify: Notify,
}

impl Pvpanic {
    /// Panics are told to `notify`.
    pub fn new(notify: Notify) -> Self {
        Self { notify }
    }
}

impl BusDevice for Pvpanic {
    /// The events that the device knows.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (0, Some(events)) = (offset, data.first_mut()) {
            *events = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(events) = data.first().filter(|_| offset == 0) else { return };
        if events & CRASH_LOADED != 0 {
            (self.notify)(GuestEvent::CrashLoaded);
        }
        if events & PANICKED != 0 {
            (self.notify)(GuestEvent::Panicked);
        }
    }
}
