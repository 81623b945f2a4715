//! The debug port (I/O port 0x80): firmware and kernels write progress codes to it. vCPU threads.

use crate::bus::BusDevice;
use crate::seams::{GuestEvent, Notify};

/// One port: every byte written becomes a [`GuestEvent::Progress`]; reads return the last one.
pub struct DebugPort {
    notify: Notify,
    last: u8,
}

impl DebugPort {
    /// Nothing was written yet.
    pub fn new(notify: Notify) -> Self {
        Self { notify, last: 0xff }
    }
}

impl BusDevice for DebugPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.last);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, Some(code)) = (offset, data.first()) {
            self.last = *code;
            (self.notify)(GuestEvent::Progress(*code));
        }
    }
}
