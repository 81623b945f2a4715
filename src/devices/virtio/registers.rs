//! The live registers of one virtio device: a page laid out as virtio-mmio's register map (virtio 1.2, 4.2.2).
//!
//! Every register that a driver can read has its current value here, and only here, so that the page itself can be
//! shown to the guest read-only. vCPU threads write it under the transport's lock; the device's worker raises
//! interrupt bits, DEVICE_NEEDS_RESET and new configuration. All of it is atomics; nothing blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of the register window.
pub const WINDOW: u64 = 0x1000;

/// Offsets in the register map (virtio 1.2, 4.2.2, table 4.1).
pub mod offset {
    #![allow(missing_docs)] // the names are the specification's
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_SEL: u64 = 0x0ac;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// The page. Its alignment and size are a host page's, so that nothing else shares it.
#[repr(C, align(4096))]
pub struct Registers {
    words: [AtomicU32; 1024],
}

impl Registers {
    /// All registers zero.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { words: [const { AtomicU32::new(0) }; 1024] })
    }

    /// The 32-bit register at `offset`; 0 outside the page.
    pub fn load(&self, offset: u64) -> u32 {
        self.word(offset).map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// Sets the 32-bit register at `offset`.
    pub fn store(&self, offset: u64, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::SeqCst);
        }
    }

    /// Sets bits of the register at `offset`.
    pub fn set_bits(&self, offset: u64, bits: u32) {
        if let Some(word) = self.word(offset) {
            word.fetch_or(bits, Ordering::SeqCst);
        }
    }

    /// Clears bits of the register at `offset`.
    pub fn clear_bits(&self, offset: u64, bits: u32) {
        if let Some(word) = self.word(offset) {
            word.fetch_and(!bits, Ordering::SeqCst);
        }
    }

    /// Reads bytes of any width at any offset; ones outside the page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data.iter_mut()) {
            let shift = usize::try_from(at % 4).unwrap_or(0);
            *byte = self
                .word(at)
                .and_then(|word| word.load(Ordering::SeqCst).to_le_bytes().get(shift).copied())
                .unwrap_or(0xff);
        }
    }

    /// Replaces the configuration space. The generation changes before and after, so that a driver that reads while
    /// this writes sees two generations and reads again (virtio 1.2, 2.5.2).
    pub fn set_config(&self, config: &[u8]) {
        let generation = self.load(offset::CONFIG_GENERATION);
        self.store(offset::CONFIG_GENERATION, generation.wrapping_add(1));
        for (at, chunk) in (offset::CONFIG..WINDOW).step_by(4).zip(config.chunks(4)) {
            let mut bytes = [0; 4];
            for (to, from) in bytes.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.store(at, u32::from_le_bytes(bytes));
        }
        self.store(offset::CONFIG_GENERATION, generation.wrapping_add(2));
    }

    /// Where the page lies in this process, for a machine that maps it read-only into the guest. It stays there as
    /// long as the `Registers` do.
    pub fn as_ptr(&self) -> *const u8 {
        self.words.as_ptr().cast()
    }

    fn word(&self, offset: u64) -> Option<&AtomicU32> {
        self.words.get(usize::try_from(offset / 4).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_page_and_reads_at_any_width() {
        assert_eq!((size_of::<Registers>(), align_of::<Registers>()), (4096, 4096));
        let registers = Registers::new();
        registers.store(0x10, 0x4433_2211);
        let mut bytes = [0; 6];
        registers.read(0xf, &mut bytes);
        assert_eq!(bytes, [0, 0x11, 0x22, 0x33, 0x44, 0]);
        registers.read(WINDOW - 1, &mut bytes);
        assert_eq!(bytes, [0, 0xff, 0xff, 0xff, 0xff, 0xff]);
        registers.read(u64::MAX - 7, &mut bytes);
        assert_eq!(bytes, [0xff; 6]);
    }

    #[test]
    fn new_config_is_a_new_generation() {
        let registers = Registers::new();
        registers.set_config(&[1, 2, 3, 4, 5]);
        let mut bytes = [0; 8];
        registers.read(offset::CONFIG, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4, 5, 0, 0, 0]);
        assert_eq!(registers.load(offset::CONFIG_GENERATION), 2);
        registers.set_config(&vec![7; 100_000]);
        registers.read(WINDOW - 4, &mut bytes);
        assert_eq!(bytes, [7, 7, 7, 7, 0xff, 0xff, 0xff, 0xff]);
    }
}
