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

    /// What is to be kept: the code that was written last.
    pub fn save(&self) -> u8 {
        self.last
    }

    /// Becomes what was saved.
    pub fn load(&mut self, last: u8) {
        self.last = last;
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn tells_every_code_and_remembers_the_last() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = heard.clone();
        let mut port = DebugPort::new(Arc::new(move |event| ear.lock().unwrap().push(event)));
        port.write(0, &[0x41]);
        port.write(0, &[0x42, 0x43]); // a 16-bit write: the second byte belongs to port 0x81
        port.write(0, &[]);
        port.write(1, &[0x44]);
        assert_eq!(*heard.lock().unwrap(), [GuestEvent::Progress(0x41), GuestEvent::Progress(0x42)]);
        let mut last = [0];
        port.read(0, &mut last);
        assert_eq!(last, [0x42]);
    }
}
