//! What a device needs of the machine around it, and nothing more.
//!
//! Both events are plain eventfds: the machine binds an [`Interrupt`] to a GSI with irqfd and a [`Doorbell`] to a
//! register write with ioeventfd; a test reads and writes them itself.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An edge-triggered interrupt line towards the guest.
#[derive(Debug)]
pub struct Interrupt(EventFd);

impl Interrupt {
    /// A line that nothing is bound to yet.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// Another handle of the same line.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Raises one edge. An eventfd refuses a write only when its counter is full, that is, when an edge is pending.
    pub fn trigger(&self) {
        let _ = self.0.write(1);
    }

    /// The event to bind (irqfd), or to read in a test.
    pub fn event(&self) -> &EventFd {
        &self.0
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
