//! When each phase of a boot was reached: one atomic per mark, set once by whichever thread gets there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A moment of a VM's life, in the order in which it is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The program's `main` was entered.
    Main,
    /// The configuration was read and checked.
    Configured,
    /// Guest memory was mapped.
    Memory,
    /// Kernel, initrd and boot parameters are in guest memory.
    Loaded,
    /// KVM's VM exists.
    Vm,
    /// Devices are open and their workers wait.
    Devices,
    /// vCPUs exist and wait.
    Vcpus,
    /// The boot processor entered the guest.
    FirstRun,
    /// The guest came back to the monitor for the first time.
    FirstExit,
    /// The guest's first byte on the serial console.
    FirstSerialByte,
    /// A virtio driver said DRIVER_OK for the first time.
    FirstDriver,
    /// The guest's user space wrote a progress code (0x60 to 0x7f) to the debug port.
    Userspace,
    /// The VM ended.
    End,
}

/// All marks with the words that reports use.
pub const MARKS: [(Mark, &str); 13] = [
    (Mark::Main, "process started"),
    (Mark::Configured, "configuration checked"),
    (Mark::Memory, "guest memory mapped"),
    (Mark::Loaded, "kernel and initrd loaded"),
    (Mark::Vm, "VM created"),
    (Mark::Devices, "devices ready"),
    (Mark::Vcpus, "vCPUs ready"),
    (Mark::FirstRun, "guest entered"),
    (Mark::FirstExit, "first exit"),
    (Mark::FirstSerialByte, "first console byte"),
    (Mark::FirstDriver, "first virtio driver ready"),
    (Mark::Userspace, "guest user space"),
    (Mark::End, "VM ended"),
];

/// The marks of one VM, as nanoseconds since the process was executed.
#[derive(Debug)]
pub struct Timeline {
    main: Instant,
    /// From exec to `main`.
    before_main: Duration,
    /// Nanoseconds since exec plus one; 0: not reached.
    reached: [AtomicU64; MARKS.len()],
}

impl Timeline {
    /// Starts at `main`, which came `before_main` after the process was executed.
    pub fn new(main: Instant, before_main: Duration) -> Self {
        let timeline = Self { main, before_main, reached: Default::default() };
        timeline.set(Mark::Main, before_main);
        timeline
    }

    /// This mark is reached now. Only the first call counts.
    pub fn mark(&self, mark: Mark) {
        if self.reached[mark as usize].load(Ordering::Relaxed) == 0 {
            self.set(mark, self.before_main + self.main.elapsed());
        }
    }

    fn set(&self, mark: Mark, at: Duration) {
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX - 1) + 1;
        let _ = self.reached[mark as usize].compare_exchange(0, nanos, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// When a mark was reached, since the process was executed.
    pub fn at(&self, mark: Mark) -> Option<Duration> {
        self.reached[mark as usize].load(Ordering::Relaxed).checked_sub(1).map(Duration::from_nanos)
    }

    /// The marks that were reached, in order of time.
    pub fn reached(&self) -> Vec<(&'static str, Duration)> {
        let mut reached: Vec<_> = MARKS.iter().filter_map(|(mark, words)| Some((*words, self.at(*mark)?))).collect();
        reached.sort_by_key(|(_, at)| *at);
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_indexed_by_mark() {
        for (index, (mark, _)) in MARKS.iter().enumerate() {
            assert_eq!(*mark as usize, index);
        }
    }

    #[test]
    fn a_mark_is_set_once_and_reported_in_order() {
        let timeline = Timeline::new(Instant::now(), Duration::from_millis(2));
        timeline.mark(Mark::FirstRun);
        let first = timeline.reached();
        timeline.mark(Mark::FirstRun);
        assert_eq!(timeline.reached(), first);
        assert_eq!(first[0], ("process started", Duration::from_millis(2)));
        assert_eq!(first[1].0, "guest entered");
        assert!(first[1].1 >= first[0].1);
    }
}
