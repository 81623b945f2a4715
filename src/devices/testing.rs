//! [`Rig`]: a fake guest driver, for tests, benches and fuzzing.
//!
//! It owns guest RAM, speaks to a virtio device through the MMIO registers as a real driver does, and builds real
//! rings, right ones or wrong ones. Every wait has a time limit that panics: a test never hangs. Test threads only.
#![allow(clippy::expect_used, clippy::panic, clippy::missing_panics_doc)] // it is for tests: failing is its job
#![allow(clippy::arithmetic_side_effects)] // as above

mod rings;
mod succession;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestRegionMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::bus::BusDevice;
use crate::memory::{GuestRam, SharedRam};
use crate::seams::{GuestEvent, Notify};
use crate::tally::{Value, micros};
use crate::virtio::mmio::MmioTransport;
use crate::virtio::registers::offset;
use crate::virtio::worker::Worker;
use crate::virtio::{Device, DeviceConfig, UpdateError};

/// Bytes of guest RAM: two adjacent regions of half of it each, so that buffers can straddle them.
pub const RAM: u64 = 2 << 20;
/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Bit of a descriptor's flags: the device writes (virtio 1.2, 2.7.5).
pub const WRITE: u16 = 2;

/// Where the rings of a queue are: this much for each queue, from this address on.
const RINGS: u64 = 0x1000;
const RINGS_STRIDE: u64 = 0x8000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x5000;
/// Where a device's window would be, if the rig had memory there.
pub const WINDOWS: u64 = 1 << 32;
/// Where buffers are allocated.
const ARENA: u64 = 0x40000;

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

#[derive(Default)]
struct DriverQueue {
    size: u16,
    avail_idx: u16,
    last_used: u16,
    free: Vec<u16>,
    busy: HashMap<u16, Vec<u16>>,
}

/// A guest with one virtio device, and its driver.
pub struct Rig {
    memory: SharedRam,
    transport: MmioTransport,
    epoll: Epoll,
    events: Arc<Mutex<Vec<GuestEvent>>>,
    queues: HashMap<u32, DriverQueue>,
    features: u64,
    arena: u64,
}

/// Guest RAM as the rig has it; with a dirty bitmap.
pub fn ram() -> SharedRam {
    ram_of(None)
}

/// The same, such that another process can map it.
pub fn shared_ram() -> SharedRam {
    let file = std::fs::File::from(memfd_create("rig", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.set_len(RAM).expect("a file of any size");
    ram_of(Some(&Arc::new(file)))
}

/// A device behind its transport, and what waits for its interrupt.
fn wire(
    mut device: Box<dyn Device>,
    memory: &SharedRam,
    events: &Arc<Mutex<Vec<GuestEvent>>>,
) -> (MmioTransport, Epoll) {
    for number in 0..device.facts().windows.len() {
        device.placed(number, WINDOWS);
    }
    let heard = Arc::clone(events);
    let notify: Notify = Arc::new(move |event| heard.lock().unwrap_or_else(PoisonError::into_inner).push(event));
    let worker = Worker::spawn("rig", 7, device, Arc::clone(memory)).expect("spawn a worker");
    let transport = MmioTransport::new(7, worker, Arc::clone(memory), notify).expect("make a transport");
    let epoll = Epoll::new().expect("make an epoll");
    let edge = EpollEvent::new(EventSet::IN, 0);
    let line = std::os::fd::AsRawFd::as_raw_fd(transport.interrupt().event());
    epoll.ctl(ControlOperation::Add, line, edge).expect("watch the interrupt");
    (transport, epoll)
}

fn ram_of(file: Option<&Arc<std::fs::File>>) -> SharedRam {
    let half = usize::try_from(RAM / 2).expect("half of RAM fits");
    let backing = if file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
    let region = |start: u64| {
        let mut builder = MmapRegionBuilder::new_with_bitmap(half, Some(AtomicBitmap::with_len(half)))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(backing | libc::MAP_NORESERVE);
        if let Some(file) = file {
            builder = builder.with_file_offset(FileOffset::from_arc(Arc::clone(file), start));
        }
        let mapped = builder.build().expect("map guest RAM");
        GuestRegionMmap::new(mapped, GuestAddress(start)).expect("a region below 4 GiB")
    };
    Arc::new(GuestRam::from_regions(vec![region(0), region(RAM / 2)]).expect("two regions side by side"))
}

impl Rig {
    /// Power-on: the device is there and no driver has touched it.
    pub fn new(device: Box<dyn Device>) -> Self {
        Self::with(device, ram())
    }

    /// As [`Self::new`], with memory of the caller's.
    pub fn with(device: Box<dyn Device>, memory: SharedRam) -> Self {
        let events = Arc::new(Mutex::new(Vec::new()));
        let (transport, epoll) = wire(device, &memory, &events);
        Self { memory, transport, epoll, events, queues: HashMap::new(), features: 0, arena: ARENA }
    }

    /// Guest RAM.
    pub fn memory(&self) -> &SharedRam {
        &self.memory
    }

    /// The transport, for accesses that no driver would make.
    pub fn transport(&mut self) -> &mut MmioTransport {
        &mut self.transport
    }

    /// The machine pauses.
    pub fn pause(&mut self) {
        self.transport.transport().pause();
    }

    /// The machine goes on.
    pub fn resume(&mut self) {
        self.transport.transport().resume();
    }

    /// The user changes `keys` of the device to what `config` says.
    pub fn update(&mut self, config: &DeviceConfig, keys: &[&str]) -> Result<(), UpdateError> {
        self.transport.transport().update(config.change(keys)?)
    }

    /// What the machine was told.
    pub fn events(&self) -> Vec<GuestEvent> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads a 32-bit register.
    pub fn read(&mut self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a 32-bit register.
    pub fn write(&mut self, at: u64, value: u32) {
        self.transport.write(at, &value.to_le_bytes());
    }

    /// Device status.
    pub fn status(&mut self) -> u32 {
        self.read(offset::STATUS)
    }

    /// True when the device asks for a reset.
    pub fn needs_reset(&mut self) -> bool {
        self.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// What the device has counted under this name; of times, how many there were.
    pub fn counted(&self, name: &str) -> u64 {
        let mut found = None;
        self.transport.worker().tally().each(&mut |metric| {
            if metric.name == name {
                found = Some(match metric.value {
                    Value::Counter(value) | Value::Gauge(value) => value,
                    Value::Times(times) => times.ranges().iter().sum(),
                    Value::Span(span) => span.get().map(micros).iter().sum(),
                });
            }
        });
        found.unwrap_or_else(|| panic!("nothing is counted as {name}"))
    }

    /// Bytes of the configuration space.
    pub fn config(&mut self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.transport.read(offset::CONFIG.saturating_add(at), &mut bytes);
        bytes
    }

    /// The features that the device offers.
    pub fn offered(&mut self) -> u64 {
        self.write(offset::DEVICE_FEATURES_SEL, 1);
        let high = u64::from(self.read(offset::DEVICE_FEATURES));
        self.write(offset::DEVICE_FEATURES_SEL, 0);
        high << 32 | u64::from(self.read(offset::DEVICE_FEATURES))
    }

    /// Resets the device, then ACKNOWLEDGE and DRIVER.
    pub fn begin(&mut self) {
        self.write(offset::STATUS, 0);
        assert_eq!(self.status(), 0, "a reset is done when it was written");
        self.queues.clear();
        self.take_interrupt(); // of the driver before
        self.write(offset::STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.write(offset::STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    }

    /// Asks for `features`; true when the device agrees (FEATURES_OK).
    pub fn negotiate(&mut self, features: u64) -> bool {
        for (sel, shift) in [(0, 0), (1, 32)] {
            self.write(offset::DRIVER_FEATURES_SEL, sel);
            let bits = u32::try_from(features >> shift & u64::from(u32::MAX)).unwrap_or(0);
            self.write(offset::DRIVER_FEATURES, bits);
        }
        self.features = features;
        let status = self.status();
        self.write(offset::STATUS, status | VIRTIO_CONFIG_S_FEATURES_OK);
        self.status() & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    /// Writes the registers of a queue with any values, and QueueReady; true when the device took it.
    pub fn set_up_raw(&mut self, queue: u32, size: u32, desc: u64, avail: u64, used: u64) -> bool {
        self.write(offset::QUEUE_SEL, queue);
        self.write(offset::QUEUE_NUM, size);
        let rings =
            [(offset::QUEUE_DESC_LOW, desc), (offset::QUEUE_DRIVER_LOW, avail), (offset::QUEUE_DEVICE_LOW, used)];
        for (at, addr) in rings {
            self.write(at, u32::try_from(addr & u64::from(u32::MAX)).unwrap_or(0));
            self.write(at.saturating_add(4), u32::try_from(addr >> 32).unwrap_or(0));
        }
        self.write(offset::QUEUE_READY, 1);
        self.read(offset::QUEUE_READY) == 1
    }

    /// Sets up a queue of `size` entries with empty rings; true when the device took it.
    pub fn set_up_queue(&mut self, queue: u32, size: u16) -> bool {
        let base = rings::rings(queue);
        for at in (0..RINGS_STRIDE).step_by(8) {
            self.memory.write_obj(0_u64, GuestAddress(base.saturating_add(at))).expect("rings are in RAM");
        }
        let free = (0..size).rev().collect();
        self.queues.insert(queue, DriverQueue { size, free, ..DriverQueue::default() });
        let (avail, used) = (base.saturating_add(AVAIL), base.saturating_add(USED));
        self.set_up_raw(queue, u32::from(size), base, avail, used)
    }

    /// DRIVER_OK.
    pub fn finish(&mut self) {
        let status = self.status();
        self.write(offset::STATUS, status | VIRTIO_CONFIG_S_DRIVER_OK);
    }

    /// The whole handshake, as a driver that wants `features` (and no others) and every queue does it.
    pub fn drive(&mut self, features: u64) {
        self.begin();
        assert!(self.negotiate(features), "the device refuses {features:#x}");
        for queue in 0.. {
            self.write(offset::QUEUE_SEL, queue);
            let max = self.read(offset::QUEUE_NUM_MAX);
            if max == 0 {
                break;
            }
            let size = u16::try_from(max.min(1024)).unwrap_or(1024);
            assert!(self.set_up_queue(queue, size), "the device refuses queue {queue}");
        }
        self.finish();
        assert!(self.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0, "the device refuses DRIVER_OK");
    }

    /// Allocates `len` bytes of RAM.
    pub fn alloc(&mut self, len: u64) -> u64 {
        let addr = self.arena;
        let next = addr.saturating_add(len).saturating_add(15) & !15;
        assert!(next <= RAM, "the rig's RAM is used up");
        self.arena = next;
        addr
    }

    /// Gives all allocated RAM back.
    pub fn free_all(&mut self) {
        self.arena = ARENA;
    }

    /// A buffer that the device reads, holding `bytes`.
    pub fn readable(&mut self, bytes: &[u8]) -> Buffer {
        let len = u32::try_from(bytes.len()).expect("a small buffer");
        let addr = self.alloc(u64::from(len));
        self.memory.write_slice(bytes, GuestAddress(addr)).expect("buffers are in RAM");
        Buffer { addr, len, writable: false }
    }

    /// A buffer of `len` bytes that the device writes, full of 0xa5.
    pub fn writable(&mut self, len: u32) -> Buffer {
        let addr = self.alloc(u64::from(len));
        let bytes = vec![0xa5; usize::try_from(len).expect("a small buffer")];
        self.memory.write_slice(&bytes, GuestAddress(addr)).expect("buffers are in RAM");
        Buffer { addr, len, writable: true }
    }

    /// What is in a buffer.
    pub fn bytes(&self, buffer: Buffer) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(buffer.len).expect("a small buffer")];
        self.memory.read_slice(&mut bytes, GuestAddress(buffer.addr)).expect("buffers are in RAM");
        bytes
    }

    /// Waits for an interrupt, acknowledges it and returns InterruptStatus.
    pub fn wait_interrupt(&mut self) -> u32 {
        let mut events = [EpollEvent::default()];
        let patience = i32::try_from(PATIENCE.as_millis()).unwrap_or(i32::MAX);
        // A device with an io_uring has the thread that made it interrupted.
        let ready = loop {
            match self.epoll.wait(patience, &mut events) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                ready => break ready.expect("wait for an interrupt"),
            }
        };
        assert!(ready == 1, "no interrupt came; status {:#x}", self.status());
        self.take_interrupt().expect("the interrupt is pending")
    }

    /// Acknowledges an interrupt if one is pending, and returns InterruptStatus.
    pub fn take_interrupt(&mut self) -> Option<u32> {
        self.transport.interrupt().event().read().ok()?;
        let bits = self.read(offset::INTERRUPT_STATUS);
        self.write(offset::INTERRUPT_ACK, bits);
        Some(bits)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.transport.worker().quit();
    }
}
