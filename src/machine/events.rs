//! What happens to the VM, on its way to the control thread: bounded, whatever the guest does.
//!
//! vCPU threads and register devices write; the control thread waits on one eventfd and takes.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use devices::seams::GuestEvent;
use kvm_bindings::kvm_debug_exit_arch;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::timeline::{Mark, Timeline};
use crate::vcpu::VcpuStop;

const POWER_OFF: u32 = 1;
const RESET: u32 = 2;
const PANICKED: u32 = 4;
const CRASH_LOADED: u32 = 8;
const USERSPACE: u32 = 16;

/// The meeting point of the threads of one VM.
pub struct Events {
    wake: EventFd,
    guest: AtomicU32,
    /// The guest's user space was heard of.
    userspace: AtomicBool,
    /// The first vCPU that stopped for good, and why. Later ones follow from it.
    stopped: Mutex<Option<(u32, VcpuStop)>>,
    /// vCPUs that stopped for the debugger: each is parked then, so it is here once at most.
    debug: Mutex<Vec<(u32, kvm_debug_exit_arch)>>,
    timeline: Arc<Timeline>,
}

/// What was taken.
#[derive(Debug)]
pub enum Event {
    /// A register device speaks for the guest.
    Guest(GuestEvent),
    /// A vCPU stopped for good.
    Vcpu(u32, VcpuStop),
    /// A vCPU stopped for the debugger.
    Debug(u32, kvm_debug_exit_arch),
}

impl Events {
    /// Nothing has happened yet.
    pub fn new(timeline: Arc<Timeline>) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self {
            wake,
            guest: AtomicU32::new(0),
            userspace: AtomicBool::new(false),
            stopped: Mutex::new(None),
            debug: Mutex::default(),
            timeline,
        })
    }

    /// What to wait on.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// The VM's timeline.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Takes a device's event. Progress goes to the timeline; what ends the VM wakes the control thread.
    pub fn guest(&self, event: GuestEvent) {
        let bit = match event {
            GuestEvent::PowerOff => POWER_OFF,
            GuestEvent::Reset => RESET,
            GuestEvent::Panicked => PANICKED,
            GuestEvent::CrashLoaded => CRASH_LOADED,
            GuestEvent::Progress(0x60..=0x7f) => {
                self.timeline.mark(Mark::Userspace);
                if self.userspace.swap(true, Ordering::Relaxed) {
                    return; // once: a guest must not be able to keep the control thread busy by it
                }
                USERSPACE
            }
            GuestEvent::Progress(_) => return,
            GuestEvent::FirstSerialByte => return self.timeline.mark(Mark::FirstSerialByte),
            GuestEvent::DriverOk(_) => return self.timeline.mark(Mark::FirstDriver),
        };
        self.guest.fetch_or(bit, Ordering::AcqRel);
        self.ring();
    }

    /// A vCPU will not run again.
    pub fn vcpu_stopped(&self, id: u32, stop: VcpuStop) {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((id, stop));
        self.ring();
    }

    /// A vCPU stopped for the debugger.
    pub fn vcpu_debug(&self, id: u32, exit: kvm_debug_exit_arch) {
        self.debug.lock().unwrap_or_else(PoisonError::into_inner).push((id, exit));
        self.ring();
    }

    /// What has happened since the last call, the guest's own words first: a guest that powered itself off and then
    /// ran into a fault has powered itself off.
    pub fn take(&self) -> Vec<Event> {
        let _ = self.wake.read();
        let bits = self.guest.swap(0, Ordering::AcqRel);
        let named = [
            (USERSPACE, GuestEvent::Progress(0x60)),
            (PANICKED, GuestEvent::Panicked),
            (CRASH_LOADED, GuestEvent::CrashLoaded),
            (POWER_OFF, GuestEvent::PowerOff),
            (RESET, GuestEvent::Reset),
        ];
        let mut events: Vec<_> =
            named.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, event)| Event::Guest(event)).collect();
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner).take();
        events.extend(stopped.map(|(id, stop)| Event::Vcpu(id, stop)));
        let debug = std::mem::take(&mut *self.debug.lock().unwrap_or_else(PoisonError::into_inner));
        events.extend(debug.into_iter().map(|(id, exit)| Event::Debug(id, exit)));
        events
    }

    fn ring(&self) {
        let _ = self.wake.write(1);
    }
}
