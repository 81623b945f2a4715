//! Finds a VM whose vCPUs can never wake. Control thread.

use std::time::{Duration, Instant};

use crate::machine::Machine;

/// How often an idle VM is looked at.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// Looks for a VM that sleeps for ever. `halt` leaves every CPU halted with interrupts off, and KVM says nothing.
pub(super) struct Watch {
    /// When the VM is to be looked at.
    pub(super) next: Instant,
    /// CPU time of all vCPUs when last looked at.
    busy: Duration,
    /// The vCPUs were asked since they last did anything.
    asked: bool,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { next: Instant::now() + PERIOD, busy: Duration::MAX, asked: false }
    }

    pub(super) fn is_dead(&mut self, machine: &Machine) -> bool {
        let busy = machine.vcpu_time();
        if busy != self.busy {
            (self.busy, self.asked) = (busy, false);
            return false;
        }
        if std::mem::replace(&mut self.asked, true) {
            return false; // the answer has not changed: nothing ran
        }
        let dead = machine.is_halted();
        // Asking cost the vCPUs time; that was not the guest.
        self.busy = machine.vcpu_time();
        dead
    }
}
