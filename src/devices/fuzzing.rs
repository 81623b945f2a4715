//! A driver that does what arbitrary bytes say, for fuzzing: anything at all, with a proper handshake now and then.
//!
//! Test threads only. It fails when the device's worker panics, hangs, or does not serve a proper driver afterwards.

use vm_memory::{Bytes, GuestAddress};

use crate::bus::BusDevice;
use crate::testing::{Buffer, RAM, Rig};
use crate::virtio::registers::offset;
use crate::virtio::transport::RING_FEATURES;

/// Registers worth more visits than chance gives them.
const REGISTERS: [u64; 16] = [
    offset::STATUS,
    offset::QUEUE_SEL,
    offset::QUEUE_NUM,
    offset::QUEUE_READY,
    offset::QUEUE_NOTIFY,
    offset::QUEUE_DESC_LOW,
    offset::QUEUE_DRIVER_LOW,
    offset::QUEUE_DEVICE_LOW,
    offset::DEVICE_FEATURES_SEL,
    offset::DRIVER_FEATURES,
    offset::DRIVER_FEATURES_SEL,
    offset::INTERRUPT_ACK,
    offset::CONFIG,
    offset::CONFIG + 8,
    offset::CONFIG_GENERATION,
    offset::SHM_SEL,
];

/// Most steps of one run: bounds its time.
const STEPS: usize = 256;
/// Where buffers and indirect tables lie.
const ARENA: u64 = 0x40000;

/// The bytes, taken from the front; zeros after their end.
struct Bytewise<'a>(&'a [u8]);

impl Bytewise<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at_checked(len).unwrap_or((self.0, &[]));
        self.0 = rest;
        taken.to_vec()
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn word(&mut self) -> u32 {
        u32::from(self.half()) | u32::from(self.half()) << 16
    }

    /// An address: mostly of a buffer, sometimes at the end of RAM, sometimes anything.
    fn address(&mut self) -> u64 {
        match self.byte() % 8 {
            0 => u64::from(self.word()) << 32 | u64::from(self.word()),
            1 => RAM.saturating_sub(32).saturating_add(u64::from(self.byte())),
            2 => u64::from(self.half()),
            _ => ARENA.saturating_add(u64::from(self.half())),
        }
    }

    fn length(&mut self) -> u32 {
        match self.byte() % 4 {
            0 => self.word(),
            1 => u32::from(self.half()),
            _ => u32::from(self.byte()),
        }
    }
}

/// Lets a driver made of `data` loose on the device of `rig`, then has a proper one take over.
pub fn drive(mut rig: Rig, data: &[u8]) {
    let mut bytes = Bytewise(data);
    let mut queues = 0_u32; // those that a proper handshake has set up
    for _ in 0..STEPS {
        if bytes.0.is_empty() {
            break;
        }
        step(&mut rig, &mut bytes, &mut queues);
    }
    rig.settle();
    let offered = rig.offered();
    rig.drive(offered);
    rig.settle();
}

/// Chains of one queue that are in flight at most: fewer descriptors than any queue has.
const IN_FLIGHT: usize = 16;

/// Has a driver whose rings are right send requests made of `data` to the device of `rig`, while `host` does at the
/// device's other end, or as its user, what some of the bytes say; then has a proper driver take over.
pub fn converse(mut rig: Rig, data: &[u8], mut host: impl FnMut(&mut Rig, &[u8])) {
    let mut bytes = Bytewise(data);
    let offered = rig.offered();
    rig.drive(offered);
    let mut in_flight = vec![0_usize; usize::try_from(count(&mut rig)).unwrap_or(0)];
    for _ in 0..STEPS {
        if bytes.0.is_empty() {
            break;
        }
        match bytes.byte() % 16 {
            0 => {
                let without = u64::from(bytes.word()) << 32 | u64::from(bytes.word());
                rig.drive(offered & !(without & !RING_FEATURES));
                in_flight.fill(0);
            }
            1..=4 => {
                let len = usize::from(bytes.byte());
                host(&mut rig, &bytes.take(len));
            }
            5..=7 => rig.settle(),
            kind => request(&mut rig, &mut bytes, &mut in_flight, kind),
        }
        if rig.needs_reset() {
            rig.drive(offered);
            in_flight.fill(0);
        }
    }
    rig.settle();
    rig.drive(offered);
    rig.settle();
    assert!(!rig.needs_reset(), "a driver that sent nothing is refused");
}

/// One chain of what the device reads, in two parts, and of what it writes. From kind 12 on it has a buffer of whole
/// sectors, and a byte for a status.
fn request(rig: &mut Rig, bytes: &mut Bytewise<'_>, in_flight: &mut [usize], kind: u8) {
    let queue = pick(bytes, u32::try_from(in_flight.len()).unwrap_or(0));
    let Some(busy) = usize::try_from(queue).ok().and_then(|queue| in_flight.get_mut(queue)) else { return };
    while rig.take_used(queue).is_some() {
        *busy = busy.saturating_sub(1);
    }
    if *busy >= IN_FLIGHT {
        return;
    }
    rig.free_all(); // a driver may well write to what is in flight
    let mut chain = Vec::new();
    if kind.is_multiple_of(2) {
        let len = usize::from(bytes.byte());
        let data = bytes.take(len);
        let (first, rest) = data.split_at_checked(usize::from(bytes.byte())).unwrap_or((&data, &[]));
        chain.extend([rig.readable(first), rig.readable(rest)]);
    }
    let room = u32::from(bytes.byte());
    if kind >= 12 {
        let sectors = rig.writable(room.saturating_mul(512));
        chain.push(Buffer { writable: kind > 12, ..sectors });
        chain.push(rig.writable(1));
    } else if room > 0 || chain.is_empty() {
        chain.push(rig.writable(room.saturating_mul(16)));
    }
    rig.post(queue, &chain);
    *busy = busy.saturating_add(1);
    rig.kick(queue);
}

fn step(rig: &mut Rig, bytes: &mut Bytewise<'_>, queues: &mut u32) {
    match bytes.byte() % 10 {
        0 => {
            let at = REGISTERS.get(usize::from(bytes.byte() % 16)).copied().unwrap_or_default();
            rig.write(at, bytes.word());
        }
        1 => {
            let data: Vec<u8> = (0..bytes.byte() % 17).map(|_| bytes.byte()).collect();
            rig.transport().write(u64::from(bytes.half()), &data);
        }
        2 => {
            let mut data = vec![0; usize::from(bytes.byte() % 17)];
            rig.transport().read(u64::from(bytes.half()), &mut data);
        }
        3 | 4 => {
            let without = u64::from(bytes.word()) << 32 | u64::from(bytes.word());
            let features = rig.offered() & !(without & !RING_FEATURES);
            rig.drive(features);
            *queues = count(rig);
        }
        5 | 6 => {
            let table = if bytes.byte().is_multiple_of(4) { ARENA } else { rig.table(pick(bytes, *queues)) };
            let (addr, len, flags) = (bytes.address(), bytes.length(), u16::from(bytes.byte() % 8));
            rig.write_desc(table, u16::from(bytes.byte() % 16), addr, len, flags, u16::from(bytes.byte() % 16));
        }
        7 if *queues > 0 => {
            let queue = pick(bytes, *queues);
            rig.make_available(queue, u16::from(bytes.byte() % 16));
            rig.kick(queue);
        }
        8 => {
            let at = GuestAddress(bytes.address());
            let word = u64::from(bytes.word()) | u64::from(bytes.word()) << 32;
            let _ = rig.memory().write_obj(word, at);
        }
        _ if *queues > 0 => {
            rig.kick(pick(bytes, *queues));
            rig.settle();
        }
        _ => rig.settle(),
    }
}

fn pick(bytes: &mut Bytewise<'_>, queues: u32) -> u32 {
    u32::from(bytes.byte()).checked_rem(queues).unwrap_or(0)
}

/// How many queues the device has.
fn count(rig: &mut Rig) -> u32 {
    (0_u32..)
        .take_while(|queue| {
            rig.write(offset::QUEUE_SEL, *queue);
            rig.read(offset::QUEUE_NUM_MAX) > 0
        })
        .fold(0, |count, _| count.saturating_add(1))
}
