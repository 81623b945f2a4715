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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn says_what_it_knows_and_tells_what_happened() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = heard.clone();
        let mut port = Pvpanic::new(Arc::new(move |event| ear.lock().unwrap().push(event)));
        let mut events = [0; 2];
        port.read(0, &mut events);
        assert_eq!(events, [3, 0xff]);
        for written in [0, 4, PANICKED, CRASH_LOADED] {
            port.write(0, &[written]);
        }
        assert_eq!(*heard.lock().unwrap(), [GuestEvent::Panicked, GuestEvent::CrashLoaded]);
    }
}
