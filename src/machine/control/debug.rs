//! What the control thread does for a debugger: it waits for its bytes, and for vCPUs that stop.

use std::os::fd::AsRawFd;

use kvm_bindings::kvm_debug_exit_arch;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::{Control, DEBUGGER, End};
use crate::gdb::Asked;

impl Control<'_> {
    /// A gdb comes.
    pub(super) fn gdb_comes(&mut self) -> Option<End> {
        if let Some(gdb) = &mut self.gdb {
            gdb.accept();
        }
        self.poll_gdb(false);
        None
    }

    /// gdb says something, or reads what it is told.
    pub(super) fn gdb_speaks(&mut self) -> Option<End> {
        // A vCPU that has stopped did so under the breakpoints that are, not under those that gdb may ask for now.
        if let Some(end) = self.events() {
            return Some(end);
        }
        let asked = self.gdb.as_mut()?.serve();
        self.gdb_asked(asked)
    }

    /// A vCPU has stopped for gdb.
    pub(super) fn gdb_stops(&mut self, vcpu: u32, exit: &kvm_debug_exit_arch) -> Option<End> {
        let asked = self.gdb.as_mut()?.stopped(vcpu, exit);
        self.gdb_asked(asked)
    }

    /// Sends gdb away: the guest goes on by itself.
    pub(super) fn end_gdb(&mut self) {
        if let Some(gdb) = &mut self.gdb {
            gdb.end();
            self.poll_gdb(true);
        }
    }

    fn gdb_asked(&mut self, asked: Asked) -> Option<End> {
        self.poll_gdb(asked != Asked::Nothing);
        (asked == Asked::Kill).then_some(End::Stopped)
    }

    /// Waits for the gdb that is here, to read or to write. `closed`: the descriptor that was waited for is closed, and so no
    /// longer waited for.
    fn poll_gdb(&mut self, closed: bool) {
        if closed {
            self.gdb_polled = None;
        }
        let Some(gdb) = &self.gdb else { return };
        let Some((fd, writes)) = gdb.client().filter(|client| self.gdb_polled != Some(*client)) else { return };
        let operation = if self.gdb_polled.is_some() { ControlOperation::Modify } else { ControlOperation::Add };
        let wanted = if writes { EventSet::OUT } else { EventSet::IN };
        match self.epoll.ctl(operation, fd.as_raw_fd(), EpollEvent::new(wanted, DEBUGGER)) {
            Ok(()) => self.gdb_polled = Some((fd, writes)),
            Err(error) => {
                tracing::warn!(%error, "gdb can not be waited for");
                self.end_gdb();
            }
        }
    }
}
