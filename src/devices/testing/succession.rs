//! A device goes on in another one's place: the driver and its memory stay, all else is new.

use super::{Rig, wire};
use crate::state::StateError;
use crate::virtio::state::VirtioState;
use crate::virtio::{Broken, Device, Facts, Io};

impl Rig {
    /// What is to be kept of the device; the machine pauses meanwhile.
    pub fn save(&mut self) -> Result<VirtioState, StateError> {
        self.transport.save()
    }

    /// The device ends, and all that it had open is closed. What `open` makes then becomes what was saved, and is paused. On
    /// an error it is as at power-on.
    pub fn succeed(&mut self, open: impl FnOnce() -> Box<dyn Device>, state: &VirtioState) -> Result<(), StateError> {
        let (memory, events) = (self.memory.clone(), self.events.clone());
        let (transport, _) = wire(Box::new(Nobody), &memory, &events);
        std::mem::replace(&mut self.transport, transport).worker().quit();
        (self.transport, self.epoll) = wire(open(), &memory, &events);
        self.transport.load(state)
    }
}

/// Holds the place while neither device is there.
struct Nobody;

impl Device for Nobody {
    fn facts(&self) -> Facts {
        Facts::default()
    }

    fn kicked(&mut self, _queue: usize, _io: &mut Io<'_>) -> Result<(), Broken> {
        Ok(())
    }
}
