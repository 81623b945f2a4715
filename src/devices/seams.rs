//! What a device needs of the machine around it, and nothing more.
//!
//! Both events are plain eventfds: the machine binds an [`Interrupt`] to a GSI with irqfd and a [`Doorbell`] to a
//! register write with ioeventfd; a test reads and writes them itself. For its own threads the machine may give an
//! interrupt a shorter way than the eventfd.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How the machine raises one edge itself. Called by any thread, never by two at a time for one line.
pub type Raise = Box<dyn FnMut() + Send>;

/// An edge-triggered interrupt line towards the guest.
#[derive(Clone)]
pub struct Interrupt(Arc<Line>);

struct Line {
    event: EventFd,
    /// Without one, the event's other end raises the edge.
    raise: Mutex<Option<Raise>>,
}

impl Interrupt {
    /// A line that nothing is bound to yet.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Line { event, raise: Mutex::new(None) })))
    }

    /// Has [`Self::trigger`] call `raise`, or (without one) write to the event.
    ///
    /// Edges that are raised in both ways at a time may vanish in each other: once somebody else writes to the event,
    /// it has to be the only way.
    pub fn raise_by(&self, raise: Option<Raise>) {
        *self.0.raise.lock().unwrap_or_else(PoisonError::into_inner) = raise;
    }

    /// Raises one edge. An eventfd refuses a write only when its counter is full, that is, when an edge is pending.
    pub fn trigger(&self) {
        match self.0.raise.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(raise) => raise(),
            None => drop(self.0.event.write(1)),
        }
    }

    /// The event to bind (irqfd), or to read in a test.
    pub fn event(&self) -> &EventFd {
        &self.0.event
    }
}

/// A kick from the guest: one per virtqueue.
#[derive(Debug)]
pub struct Doorbell(EventFd);

impl Doorbell {
    /// A doorbell that nothing is bound to yet.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// Another handle of the same doorbell.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Rings it, as ioeventfd does.
    pub fn ring(&self) {
        let _ = self.0.write(1);
    }

    /// The event to bind (ioeventfd) or to wait for.
    pub fn event(&self) -> &EventFd {
        &self.0
    }
}

/// What a register device tells the machine about the whole VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEvent {
    /// ACPI S5: the guest powered itself off.
    PowerOff,
    /// The guest asked for a reset (ACPI reset register or the keyboard controller).
    Reset,
    /// pvpanic: the guest's kernel panicked and will do nothing more of use.
    Panicked,
    /// pvpanic: the guest's kernel panicked and its crash kernel takes over.
    CrashLoaded,
    /// A progress code written to the debug port (I/O port 0x80).
    Progress(u8),
    /// The first byte on the serial console.
    FirstSerialByte,
    /// The driver of the virtio device with this slot number said DRIVER_OK.
    DriverOk(usize),
}

/// Where register devices send [`GuestEvent`]s. It is called on a vCPU thread and must not block.
pub type Notify = Arc<dyn Fn(GuestEvent) + Send + Sync>;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn an_edge_goes_one_way_only() {
        let line = Interrupt::new().unwrap();
        let raised = Arc::new(AtomicU32::new(0));
        let counter = raised.clone();
        line.raise_by(Some(Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        })));
        line.clone().trigger();
        assert!(line.event().read().is_err());
        line.raise_by(None);
        line.trigger();
        assert_eq!((raised.load(Ordering::Relaxed), line.event().read().unwrap()), (1, 1));
    }
}
