//! A vCPU's registers as gdb names and orders them: the general ones, x87 and SSE, and those that only a kernel has.
//!
//! Pure but for [`read`] and [`write`], which run on the vCPU's thread. Sources: gdb, features/i386 (64bit-core, 64bit-sse,
//! 64bit-segments); Intel SDM vol. 1, 8.1.7 (the tag word) and 10.5.1 (the layout of FXSAVE).

use gdbstub::arch::{Arch, Registers};
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs};
use kvm_ioctls::VcpuFd;

/// MSR_KERNEL_GS_BASE, what SWAPGS exchanges.
const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// Bytes of the registers that `gdbstub_arch` knows, in gdb's order.
const CORE_LEN: usize = 0x218;

/// 64-bit x86, with the registers of its kernels.
pub enum X86Guest {}

impl Arch for X86Guest {
    type Usize = u64;
    type Registers = GuestRegisters;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("registers.xml"))
    }
}

/// All of them.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct GuestRegisters {
    /// RAX to GS, x87, SSE.
    pub core: X86_64CoreRegs,
    /// FS base, GS base, the other GS base; CR0, CR2, CR3, CR4, CR8, EFER.
    pub system: [u64; 9],
}

impl Registers for GuestRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.core.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.core.gdb_serialize(&mut write_byte);
        self.system.iter().flat_map(|register| register.to_le_bytes()).for_each(|byte| write_byte(Some(byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let (core, system) = bytes.split_at_checked(CORE_LEN).ok_or(())?;
        self.core.gdb_deserialize(core)?;
        let (words, _) = system.as_chunks::<8>();
        if words.len() < self.system.len() {
            return Err(());
        }
        self.system.iter_mut().zip(words).for_each(|(register, word)| *register = u64::from_le_bytes(*word));
        Ok(())
    }
}

/// Reads a vCPU's registers.
pub fn read(fd: &VcpuFd) -> Result<GuestRegisters, kvm_ioctls::Error> {
    let (general, system, fpu) = (fd.get_regs()?, fd.get_sregs()?, fd.get_fpu()?);
    let mut core = X86_64CoreRegs { regs: in_gdb_order(&general), rip: general.rip, ..Default::default() };
    core.eflags = general.rflags as u32; // the upper half is reserved
    let selector = |segment: kvm_bindings::kvm_segment| segment.selector.into();
    core.segments.cs = selector(system.cs);
    core.segments.ss = selector(system.ss);
    core.segments.ds = selector(system.ds);
    core.segments.es = selector(system.es);
    core.segments.fs = selector(system.fs);
    core.segments.gs = selector(system.gs);
    take_fpu(&mut core, &fpu);
    let system = [
        system.fs.base,
        system.gs.base,
        kernel_gs_base(fd)?,
        system.cr0,
        system.cr2,
        system.cr3,
        system.cr4,
        system.cr8,
        system.efer,
    ];
    Ok(GuestRegisters { core, system })
}

/// Writes those of a vCPU's registers that differ from what they are. Selectors cannot be written: what they select is
/// more than their number.
pub fn write(fd: &VcpuFd, wanted: &GuestRegisters) -> Result<(), kvm_ioctls::Error> {
    let now = read(fd)?;
    if wanted.core.segments != now.core.segments {
        return Err(kvm_ioctls::Error::new(libc::EINVAL));
    }
    let general = |registers: &X86_64CoreRegs| (registers.regs, registers.rip, registers.eflags);
    if general(&wanted.core) != general(&now.core) {
        let mut registers = from_gdb_order(&wanted.core.regs);
        (registers.rip, registers.rflags) = (wanted.core.rip, wanted.core.eflags.into());
        fd.set_regs(&registers)?;
    }
    let float = |registers: &X86_64CoreRegs| {
        let mut fpu = kvm_fpu::default();
        give_fpu(&mut fpu, registers);
        fpu
    };
    if float(&wanted.core) != float(&now.core) {
        let mut fpu = fd.get_fpu()?;
        give_fpu(&mut fpu, &wanted.core);
        fd.set_fpu(&fpu)?;
    }
    if wanted.system != now.system {
        let mut system = fd.get_sregs()?;
        let other_gs;
        [
            system.fs.base,
            system.gs.base,
            other_gs,
            system.cr0,
            system.cr2,
            system.cr3,
            system.cr4,
            system.cr8,
            system.efer,
        ] = wanted.system;
        fd.set_sregs(&system)?;
        set_kernel_gs_base(fd, other_gs)?;
    }
    Ok(())
}

fn in_gdb_order(r: &kvm_regs) -> [u64; 16] {
    [r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15]
}

fn from_gdb_order(order: &[u64; 16]) -> kvm_regs {
    let [rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15] = *order;
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, ..Default::default() }
}

fn take_fpu(core: &mut X86_64CoreRegs, fpu: &kvm_fpu) {
    for (st, from) in core.st.iter_mut().zip(&fpu.fpr) {
        let (value, _) = from.split_at(10);
        st.copy_from_slice(value);
    }
    for (xmm, from) in core.xmm.iter_mut().zip(&fpu.xmm) {
        *xmm = u128::from_le_bytes(*from);
    }
    core.mxcsr = fpu.mxcsr;
    core.fpu.fctrl = fpu.fcw.into();
    core.fpu.fstat = fpu.fsw.into();
    core.fpu.ftag = fpu.ftwx.into();
    core.fpu.fop = fpu.last_opcode.into();
    // Halves of 64-bit addresses, as FXSAVE64 has them.
    (core.fpu.fioff, core.fpu.fiseg) = (fpu.last_ip as u32, (fpu.last_ip >> 32) as u32);
    (core.fpu.fooff, core.fpu.foseg) = (fpu.last_dp as u32, (fpu.last_dp >> 32) as u32);
}

fn give_fpu(fpu: &mut kvm_fpu, core: &X86_64CoreRegs) {
    for (to, st) in fpu.fpr.iter_mut().zip(&core.st) {
        let (value, _) = to.split_at_mut(10);
        value.copy_from_slice(st);
    }
    for (to, xmm) in fpu.xmm.iter_mut().zip(&core.xmm) {
        *to = xmm.to_le_bytes();
    }
    fpu.mxcsr = core.mxcsr;
    // Each of these has as many bits as KVM keeps of it.
    (fpu.fcw, fpu.fsw, fpu.ftwx) = (core.fpu.fctrl as u16, core.fpu.fstat as u16, core.fpu.ftag as u8);
    fpu.last_opcode = core.fpu.fop as u16;
    fpu.last_ip = u64::from(core.fpu.fioff) | u64::from(core.fpu.fiseg) << 32;
    fpu.last_dp = u64::from(core.fpu.fooff) | u64::from(core.fpu.foseg) << 32;
}

fn kernel_gs_base(fd: &VcpuFd) -> Result<u64, kvm_ioctls::Error> {
    let mut msrs = one_msr(0)?;
    fd.get_msrs(&mut msrs)?;
    Ok(msrs.as_slice().first().map_or(0, |entry| entry.data))
}

fn set_kernel_gs_base(fd: &VcpuFd, value: u64) -> Result<(), kvm_ioctls::Error> {
    fd.set_msrs(&one_msr(value)?).map(|_| ())
}

fn one_msr(data: u64) -> Result<Msrs, kvm_ioctls::Error> {
    let entry = kvm_msr_entry { index: KERNEL_GS_BASE, data, ..Default::default() };
    Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> GuestRegisters {
        let mut core = X86_64CoreRegs { eflags: 0x202, rip: 0xffff_ffff_8100_0000, ..Default::default() };
        (0..16).for_each(|place| core.regs[place] = place as u64 + 1);
        (0..16).for_each(|place| core.xmm[place] = place as u128 + 100);
        (0..8).for_each(|place| core.st[place] = [place as u8; 10]);
        core.fpu.fctrl = 0x37f;
        core.mxcsr = 0x1f80;
        GuestRegisters { core, system: [1, 2, 3, 4, 5, 6, 7, 8, 9] }
    }

    #[test]
    fn bytes_come_back_as_they_went() {
        let mut bytes = Vec::new();
        sample().gdb_serialize(|byte| bytes.push(byte.unwrap()));
        let mut back = GuestRegisters::default();
        back.gdb_deserialize(&bytes).unwrap();
        assert_eq!(back, sample());
        for len in [0, CORE_LEN - 1, CORE_LEN, bytes.len() - 1] {
            assert!(back.gdb_deserialize(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn the_description_has_as_many_bytes_as_are_sent() {
        let bits = include_str!("registers.xml").split("bitsize=\"").skip(1);
        let bits = bits.map(|rest| rest.split('"').next().unwrap().parse::<usize>().unwrap());
        let mut sent = 0;
        sample().gdb_serialize(|_| sent += 1);
        assert_eq!(bits.sum::<usize>(), sent * 8);
    }

    #[test]
    fn kvm_s_order_and_gdb_s_are_one_s_inverse() {
        let order = sample().core.regs;
        assert_eq!(in_gdb_order(&from_gdb_order(&order)), order);
        let registers = from_gdb_order(&order);
        assert_eq!((registers.rbx, registers.rcx, registers.rsp, registers.rbp), (2, 3, 8, 7));
        let mut fpu = kvm_fpu::default();
        give_fpu(&mut fpu, &sample().core);
        let mut core = X86_64CoreRegs { regs: order, eflags: 0x202, rip: sample().core.rip, ..Default::default() };
        take_fpu(&mut core, &fpu);
        assert_eq!(core, sample().core);
    }
}
