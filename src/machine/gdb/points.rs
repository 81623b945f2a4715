//! Breakpoints and watchpoints: which there are, and what the debug registers must be for them. Pure.
//!
//! Source: Intel SDM vol. 3B, 18.2 (debug registers).

use std::collections::BTreeMap;

use gdbstub::target::ext::breakpoints::WatchKind;
use kvm_bindings::kvm_debug_exit_arch;

/// The instruction that a software breakpoint is.
pub const INT3: u8 = 0xcc;
/// Exception vectors.
const DEBUG: u32 = 1;
const BREAKPOINT: u32 = 3;
/// DR6: the instruction was stepped over.
const DR6_BS: u64 = 1 << 14;
/// DR7: bit 10 is always set; bit 9 (GE) makes data breakpoints exact on old processors.
const DR7_BASE: u64 = 0x600;

/// An instruction that was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// Where it is in guest memory.
    pub gpa: u64,
    /// The byte that was there.
    pub byte: u8,
}

/// What one debug register watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// Linear address.
    pub addr: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub len: u64,
    /// Nothing for an instruction.
    pub kind: Option<WatchKind>,
}

/// Everything that a vCPU is to stop at.
#[derive(Debug, Default)]
pub struct Points {
    /// Software breakpoints, by their virtual addresses.
    pub software: BTreeMap<u64, Replaced>,
    hardware: [Option<Watched>; 4],
}

/// Why a vCPU is where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A software breakpoint.
    Software,
    /// A hardware breakpoint.
    Hardware,
    /// A watchpoint.
    Watch(WatchKind, u64),
    /// It was stepped.
    Step,
    /// An INT3 of the guest's own.
    GuestBreakpoint,
    /// A debug exception of the guest's own.
    GuestDebug,
}

impl Points {
    /// Takes a debug register; `false` where all are taken.
    pub fn watch(&mut self, wanted: Watched) -> bool {
        let free = self.hardware.iter_mut().find(|slot| slot.is_none());
        free.map(|slot| *slot = Some(wanted)).is_some()
    }

    /// Gives one back; `false` where there is none such.
    pub fn unwatch(&mut self, known: Watched) -> bool {
        let found = self.hardware.iter_mut().find(|slot| **slot == Some(known));
        found.map(|slot| *slot = None).is_some()
    }

    /// Forgets the hardware's.
    pub fn clear_hardware(&mut self) {
        self.hardware = [None; 4];
    }

    /// Whether debug registers are needed.
    pub fn uses_hardware(&self) -> bool {
        self.hardware.iter().any(Option::is_some)
    }

    /// DR0 to DR7.
    pub fn debug_registers(&self) -> [u64; 8] {
        let mut registers = [0; 8];
        let mut dr7 = DR7_BASE;
        for (place, (slot, register)) in self.hardware.iter().zip(&mut registers).enumerate() {
            let Some(watched) = slot else { continue };
            *register = watched.addr;
            let condition = match watched.kind {
                None => 0b00,
                Some(WatchKind::Write) => 0b01,
                // There is no condition for reads alone.
                Some(WatchKind::Read | WatchKind::ReadWrite) => 0b11,
            };
            let len: u64 = match watched.len {
                _ if watched.kind.is_none() => 0b00,
                2 => 0b01,
                4 => 0b11,
                8 => 0b10,
                _ => 0b00,
            };
            dr7 |= 0b10 << (2 * place) | condition << (16 + 4 * place) | len << (18 + 4 * place);
        }
        registers[7] = dr7;
        registers
    }

    /// What an exit for the debugger (KVM_EXIT_DEBUG) means; `stepping` is whether the vCPU was to take one step.
    pub fn why(&self, exit: &kvm_debug_exit_arch, stepping: bool) -> Why {
        match exit.exception {
            BREAKPOINT if self.software.contains_key(&exit.pc) => Why::Software,
            BREAKPOINT => Why::GuestBreakpoint,
            DEBUG => self.why_debug(exit, stepping),
            _ => Why::Step,
        }
    }

    fn why_debug(&self, exit: &kvm_debug_exit_arch, stepping: bool) -> Why {
        let hit = self.hardware.iter().enumerate().find(|(place, _)| exit.dr6 >> place & 1 != 0);
        match hit.and_then(|(_, slot)| *slot) {
            Some(Watched { kind: None, .. }) => Why::Hardware,
            Some(Watched { kind: Some(kind), addr, .. }) => Why::Watch(kind, addr),
            None if stepping && exit.dr6 & DR6_BS != 0 => Why::Step,
            // KVM leaves the cause out on some processors.
            None if stepping && exit.dr6 & 0xf == 0 => Why::Step,
            None => Why::GuestDebug,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(exception: u32, pc: u64, dr6: u64) -> kvm_debug_exit_arch {
        kvm_debug_exit_arch { exception, pc, dr6, ..Default::default() }
    }

    #[test]
    fn debug_registers_are_the_manual_s() {
        let mut points = Points::default();
        assert!(!points.uses_hardware());
        assert!(points.watch(Watched { addr: 0x1000, len: 1, kind: None }));
        assert!(points.watch(Watched { addr: 0x2000, len: 8, kind: Some(WatchKind::Write) }));
        assert!(points.watch(Watched { addr: 0x3000, len: 4, kind: Some(WatchKind::Read) }));
        let dr = points.debug_registers();
        assert_eq!(dr[..4], [0x1000, 0x2000, 0x3000, 0]);
        // G0, G1, G2; slot 1: write, 8 bytes; slot 2: read or write, 4 bytes.
        assert_eq!(dr[7], 0x600 | 0b10_1010 | 0b1001 << 20 | 0b1111 << 24);
        assert!(points.watch(Watched { addr: 1, len: 1, kind: None }));
        assert!(!points.watch(Watched { addr: 2, len: 1, kind: None }), "there are four");
        assert!(points.unwatch(Watched { addr: 0x1000, len: 1, kind: None }));
        assert!(!points.unwatch(Watched { addr: 0x1000, len: 1, kind: None }));
        assert_eq!(points.debug_registers()[0], 0);
        points.clear_hardware();
        assert_eq!(points.debug_registers()[7], 0x600);
    }

    #[test]
    fn an_exit_is_ours_or_the_guest_s() {
        let mut points = Points::default();
        points.software.insert(0x10, Replaced { gpa: 0x10, byte: 0x90 });
        points.watch(Watched { addr: 0x20, len: 1, kind: None });
        points.watch(Watched { addr: 0x30, len: 2, kind: Some(WatchKind::Write) });
        assert_eq!(points.why(&exit(3, 0x10, 0), false), Why::Software);
        assert_eq!(points.why(&exit(3, 0x11, 0), false), Why::GuestBreakpoint);
        assert_eq!(points.why(&exit(1, 0x20, 1), false), Why::Hardware);
        assert_eq!(points.why(&exit(1, 0x99, 2), true), Why::Watch(WatchKind::Write, 0x30));
        assert_eq!(points.why(&exit(1, 0x99, 1 << 14), true), Why::Step);
        assert_eq!(points.why(&exit(1, 0x99, 1 << 14), false), Why::GuestDebug);
        assert_eq!(points.why(&exit(1, 0x99, 8), true), Why::GuestDebug, "a register that is not ours");
    }
}
