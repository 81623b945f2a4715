//! gdb's protocol against a guest of a few instructions on /dev/kvm.
//!
//! Not every KVM has all that a debugger needs: one in software may miss breakpoints (docs/gdb.md). What it has is looked
//! for first, by the bare ioctls; the debugger is then asked for exactly that, and the rest by an exit that is made up.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use devices::memory::{Bytes, GuestAddress};
use kvm_bindings as kvm;
use kvm_ioctls::VcpuExit;

use super::{Asked, Gdb, Guest, Listener};
use crate::events::{Event, Events};
use crate::memory::Ram;
use crate::tiny::{CODE, POINT, START, Tiny};
use crate::vcpu;

/// Whether a vCPU that is debugged like this stops for the debugger before it comes to the port.
fn stops(control: u32, dr7: u64, breakpoint: u8) -> bool {
    let Some((tiny, mut fd)) = Tiny::new() else { return false };
    tiny.ram.guest().write_slice(&[breakpoint], GuestAddress(POINT)).unwrap();
    let mut debug = kvm::kvm_guest_debug { control: control | kvm::KVM_GUESTDBG_ENABLE, ..Default::default() };
    debug.arch.debugreg = [POINT, 0, 0, 0, 0, 0, 0, dr7];
    fd.set_guest_debug(&debug).unwrap();
    matches!(fd.run(), Ok(VcpuExit::Debug(_)))
}

/// The test's end of the socket, and the debugger.
struct Talk<'a> {
    gdb: Gdb<'a>,
    events: Arc<Events>,
    client: UnixStream,
}

impl Talk<'_> {
    /// Sends a packet; the answer, if it comes before anything else happens.
    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.answer().unwrap_or_else(|| panic!("no answer to {packet}"))
    }

    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        self.client.write_all(format!("+${packet}#{sum:02x}").as_bytes()).unwrap();
        assert_eq!(self.gdb.serve(), Asked::Nothing);
    }

    fn answer(&mut self) -> Option<String> {
        let mut raw = Vec::new();
        let _ = self.client.read_to_end(&mut raw); // until it would block
        let text = String::from_utf8(raw).unwrap();
        let packet = text.split_once('$')?.1.split_once('#')?.0;
        // A character, an asterisk, and how often it comes again.
        let mut plain: Vec<u8> = Vec::new();
        let mut bytes = packet.bytes();
        while let Some(byte) = bytes.next() {
            match (byte, plain.last()) {
                (b'*', Some(last)) => plain.extend(vec![*last; usize::from(bytes.next()? - 29)]),
                _ => plain.push(byte),
            }
        }
        String::from_utf8(plain).ok()
    }

    /// Lets events reach the debugger until it has something to say.
    fn stop(&mut self) -> String {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            for event in self.events.take() {
                match event {
                    Event::Debug(vcpu, exit) => _ = self.gdb.stopped(vcpu, &exit),
                    other => panic!("{other:?}"),
                }
            }
            if let Some(answer) = self.answer() {
                return answer;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("the guest did not stop");
    }

    fn register(&mut self, offset: usize) -> u64 {
        let all = self.ask("g");
        let digits = &all[offset * 2..offset * 2 + 16];
        u64::from_str_radix(digits, 16).unwrap().swap_bytes()
    }

    fn rip(&mut self) -> u64 {
        self.register(0x80)
    }
}

/// A gdb that has come to the tiny guest.
fn with_gdb(test: impl FnOnce(&mut Talk<'_>, &Ram)) {
    let Some((tiny, fd)) = Tiny::new() else { return };
    assert!(tiny.vm.can_debug());
    vcpu::install_kick().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gdb.sock");
    let events = tiny.events.clone();
    let vcpus = [tiny.start(fd)];
    let guest = Guest::new(&vcpus, tiny.ram.guest());
    let mut gdb = Gdb::new(Listener::bind(&path).unwrap(), guest, tiny.vm.steps_without_interrupts());
    assert!(gdb.is_busy(), "the guest waits");
    let client = UnixStream::connect(&path).unwrap();
    client.set_nonblocking(true).unwrap();
    gdb.accept();
    let mut talk = Talk { gdb, events, client };
    let hello = talk.ask("qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+;xmlRegisters=i386");
    assert!(hello.contains("PacketSize=4000"), "{hello}");
    test(&mut talk, &tiny.ram);
    drop(talk);
    drop(vcpus);
}

#[test]
fn the_guest_waits_and_shows_itself() {
    with_gdb(|talk, _| {
        assert!(talk.ask("?").starts_with("T05") || talk.ask("?").starts_with("S05"));
        assert_eq!(talk.rip(), START);
        let code: String = CODE.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(talk.ask(&format!("m{START:x},{:x}", CODE.len())), code);
        assert!(talk.ask("mf0000000,4").starts_with('E'), "no RAM");
        assert_eq!(talk.ask("qfThreadInfo"), "mp01.01");
        assert!(talk.ask("qXfer:features:read:target.xml:0,fff").contains("k_gs_base"));
        // CR0: protected mode, no paging.
        assert_eq!(talk.register(0x218 + 3 * 8) & 0x8000_0001, 1);
    });
}

#[test]
fn registers_and_memory_are_written() {
    with_gdb(|talk, ram| {
        let mut all = talk.ask("g");
        all.replace_range(0..16, "8877665544332211");
        assert_eq!(talk.ask(&format!("G{all}")), "OK");
        assert_eq!(talk.register(0), 0x1122_3344_5566_7788);
        assert_eq!(talk.rip(), START);
        // FS base, the first behind the general ones.
        let at = 0x218 * 2;
        all.replace_range(at..at + 16, "0010000000000000");
        assert_eq!(talk.ask(&format!("G{all}")), "OK");
        assert_eq!(talk.register(0x218), 0x1000);
        assert_eq!(talk.ask(&format!("M{:x},2:beef", START + 0x3ffff)), "OK", "over the end of a page");
        let mut bytes = [0; 2];
        ram.guest().read_slice(&mut bytes, GuestAddress(START + 0x3ffff)).unwrap();
        assert_eq!(bytes, [0xbe, 0xef]);
    });
}

#[test]
fn it_steps_by_instructions() {
    with_gdb(|talk, _| {
        for (rip, eax) in [(START + 1, 0), (START + 2, 1), (START + 3, 2), (POINT, 2), (POINT + 1, 2)] {
            talk.send("vCont;s:p1.1;c");
            let stop = talk.stop();
            assert!(stop.starts_with("T05") && stop.contains("thread:p01.01"), "{stop}");
            assert_eq!((talk.rip(), talk.register(0)), (rip, eax));
        }
    });
}

#[test]
fn control_c_stops_it_and_a_detach_lets_it_go() {
    with_gdb(|talk, ram| {
        talk.send("vCont;c");
        assert_eq!(talk.answer(), None);
        talk.client.write_all(&[3]).unwrap();
        assert_eq!(talk.gdb.serve(), Asked::Nothing);
        let stop = talk.stop();
        assert!(stop.starts_with("T02"), "{stop}");
        let counted = |ram: &Ram| ram.guest().read_obj::<u32>(GuestAddress(START + 0x2000)).unwrap();
        // The breakpoint that gdb leaves behind is taken out.
        assert_eq!(talk.ask(&format!("Z0,{POINT:x},1")), "OK");
        let at = |ram: &Ram| ram.guest().read_obj::<u8>(GuestAddress(POINT)).unwrap();
        assert_eq!(at(ram), 0xcc);
        let before = counted(ram);
        talk.client.write_all(b"$D;1#b0").unwrap();
        assert_eq!(talk.gdb.serve(), Asked::Over);
        assert_eq!(talk.answer().as_deref(), Some("OK"));
        assert_eq!(at(ram), 0x90);
        assert!(!talk.gdb.is_busy());
        // A stop that was on its way at the end of the session: no exception for the guest, which would not survive it.
        let exit = kvm::kvm_debug_exit_arch { exception: 3, pc: POINT, ..Default::default() };
        assert_eq!(talk.gdb.stopped(0, &exit), Asked::Nothing);
        let until = Instant::now() + Duration::from_secs(60);
        while counted(ram) == before {
            assert!(Instant::now() < until, "the guest does not go on");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(talk.events.take().is_empty());
    });
}

#[test]
fn a_gdb_that_vanishes_leaves_a_guest_that_runs() {
    with_gdb(|talk, ram| {
        assert_eq!(talk.ask(&format!("Z0,{POINT:x},1")), "OK");
        let (mine, other) = UnixStream::pair().unwrap();
        drop(other);
        drop(std::mem::replace(&mut talk.client, mine));
        assert_eq!(talk.gdb.serve(), Asked::Over);
        assert_eq!(talk.gdb.client(), None);
        assert_eq!(ram.guest().read_obj::<u8>(GuestAddress(POINT)).unwrap(), 0x90);
    });
}

#[test]
fn breakpoints_of_the_hardware_stop_it() {
    let has = stops(kvm::KVM_GUESTDBG_USE_HW_BP, 0x602, 0x90);
    with_gdb(|talk, _| {
        assert_eq!(talk.ask(&format!("Z1,{POINT:x},1")), "OK");
        talk.send("vCont;c");
        if !has {
            // This KVM misses them: what it would have said is made up.
            let exit = kvm::kvm_debug_exit_arch { exception: 1, pc: POINT, dr6: 1, ..Default::default() };
            talk.gdb.stopped(0, &exit);
        }
        let stop = talk.stop();
        assert!(stop.contains("hwbreak"), "{stop}");
        assert!(!has || talk.rip() == POINT);
        assert_eq!(talk.ask(&format!("z1,{POINT:x},1")), "OK");
        assert!(talk.ask(&format!("Z2,{:x},3", START + 0x2000)).starts_with('E'), "three bytes can not be watched");
        assert_eq!(talk.ask(&format!("Z2,{:x},4", START + 0x2000)), "OK");
    });
}

#[test]
fn breakpoints_in_memory_stop_it_and_other_int3s_are_the_guest_s() {
    let has = stops(kvm::KVM_GUESTDBG_USE_SW_BP, 0, 0xcc);
    with_gdb(|talk, ram| {
        let at = |ram: &Ram| ram.guest().read_obj::<u8>(GuestAddress(POINT)).unwrap();
        let exit = |pc| kvm::kvm_debug_exit_arch { exception: 3, pc, ..Default::default() };
        assert_eq!(talk.ask(&format!("Z0,{POINT:x},1")), "OK");
        assert_eq!(at(ram), 0xcc);
        if !has {
            // This KVM does not tell of INT3: without it there the guest goes on, and what KVM would have said is made up.
            ram.guest().write_slice(&[0x90], GuestAddress(POINT)).unwrap();
        }
        talk.send("vCont;c");
        if !has {
            talk.gdb.stopped(0, &exit(POINT));
        }
        let stop = talk.stop();
        assert!(stop.contains("swbreak"), "{stop}");
        assert!(!has || talk.rip() == POINT);
        assert_eq!(talk.ask(&format!("z0,{POINT:x},1")), "OK");
        assert_eq!(at(ram), 0x90);
    });
}
