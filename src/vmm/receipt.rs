//! One line at a VM's end: how long it was there, what it took of the host, what it moved.

use std::fmt;
use std::time::Duration;

use machine::control::End;
use machine::machine::Machine;
use machine::metrics::{Metrics, Process};
use machine::timeline::{MARKS, Mark, Timeline};

/// What a VM took. Of a VM that was restarted it is about the last one, but for the times and the memory of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// From the process's start to the VM's end.
    up: Duration,
    /// The phases of its boot that were reached, and when.
    boot: Vec<(&'static str, Duration)>,
    /// CPU time of the process, and that of the vCPUs in it.
    cpu: Duration,
    vcpus: Duration,
    /// Bytes: the most that the process had, and what the guest's memory has at the end.
    peak: u64,
    guest: u64,
    /// Bytes read from and written to disks; received and sent by network interfaces.
    disks: (u64, u64),
    network: (u64, u64),
    /// Bytes that the guest received and sent by its vsock; that it read from and wrote to shared directories, with what
    /// describes them.
    vsock: (u64, u64),
    shares: (u64, u64),
    /// How often files as memory were made safe. What the guest does to them passes nobody who could count it.
    pmem: u64,
    end: String,
    status: u8,
}

impl Receipt {
    /// What `machine` took, whose threads are still there.
    pub fn of(machine: &Machine, metrics: &Metrics, timeline: &Timeline, end: &End) -> Self {
        let total = |group, name| metrics.total(group, name);
        let peak = Process::memory("VmHWM").unwrap_or(0);
        Self {
            up: timeline.at(Mark::End).unwrap_or_default(),
            boot: boot(timeline),
            cpu: Process::cpu_time(),
            vcpus: machine.vcpu_time(),
            peak,
            // What lies in the host's pool of huge pages is not among the process's memory.
            guest: machine.resident().filter(|guest| *guest <= peak).unwrap_or(0),
            disks: (total("block", "bytes_in"), total("block", "bytes_out")),
            network: (total("net", "bytes_in"), total("net", "bytes_out")),
            vsock: (total("vsock", "bytes_in"), total("vsock", "bytes_out")),
            shares: (total("fs", "bytes_in"), total("fs", "bytes_out")),
            pmem: total("pmem", "flushes"),
            end: end.to_string(),
            status: end.exit_code(),
        }
    }
}

/// What lies between the process's start and the VM's end.
fn boot(timeline: &Timeline) -> Vec<(&'static str, Duration)> {
    let phases = MARKS.iter().filter(|(mark, _)| !matches!(mark, Mark::Main | Mark::End));
    let mut reached: Vec<_> = phases.filter_map(|(mark, words)| Some((*words, timeline.at(*mark)?))).collect();
    reached.sort_by_key(|(_, at)| *at);
    reached
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(f, "up {:.3} s", self.up.as_secs_f64())?;
        for (place, (words, at)) in self.boot.iter().enumerate() {
            let before = if place == 0 { " (" } else { ", " };
            write!(f, "{before}{words} {:.3}", at.as_secs_f64())?;
        }
        f.write_str(if self.boot.is_empty() { ", " } else { "), " })?;
        write!(f, "CPU {:.3} s (vCPUs {:.3} s), ", self.cpu.as_secs_f64(), self.vcpus.as_secs_f64())?;
        let beside = self.peak.saturating_sub(self.guest);
        write!(f, "memory {:.1} MiB of the guest and at most {:.1} MiB beside it, ", mib(self.guest), mib(beside))?;
        write!(f, "disks {} bytes read, {} written, ", self.disks.0, self.disks.1)?;
        write!(f, "network {} bytes received, {} sent, ", self.network.0, self.network.1)?;
        for (name, (received, sent)) in [("vsock", self.vsock), ("shares", self.shares)] {
            if received + sent > 0 {
                write!(f, "{name} {received} bytes received, {sent} sent, ")?;
            }
        }
        if self.pmem > 0 {
            write!(f, "pmem {} flushes, ", self.pmem)?;
        }
        write!(f, "exit {}: {}", self.status, self.end)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn is_one_line() {
        let receipt = Receipt {
            up: Duration::from_millis(4120),
            boot: vec![
                ("configuration checked", Duration::from_millis(1)),
                ("guest user space", Duration::from_millis(71)),
            ],
            cpu: Duration::from_millis(1200),
            vcpus: Duration::from_millis(1100),
            peak: 45 << 20,
            guest: 41 << 20,
            disks: (512, 0),
            network: (0, 7),
            vsock: (3, 4),
            shares: (0, 0),
            pmem: 2,
            end: End::PowerOff.to_string(),
            status: 0,
        };
        let text = "up 4.120 s (configuration checked 0.001, guest user space 0.071), CPU 1.200 s (vCPUs 1.100 s), memory \
                    41.0 MiB of the guest and at most 4.0 MiB beside it, disks 512 bytes read, 0 written, network 0 bytes \
                    received, 7 sent, vsock 3 bytes received, 4 sent, pmem 2 flushes, exit 0: the guest powered off";
        assert_eq!(receipt.to_string(), text);
        let silent = Receipt { boot: Vec::new(), vsock: (0, 0), pmem: 0, ..receipt };
        assert!(silent.to_string().starts_with("up 4.120 s, CPU"));
        assert!(silent.to_string().ends_with("7 sent, exit 0: the guest powered off"));
    }

    #[test]
    fn has_the_phases_between_start_and_end() {
        let timeline = Timeline::new(Instant::now(), Duration::ZERO);
        for mark in [Mark::FirstRun, Mark::FirstSerialByte, Mark::End] {
            timeline.mark(mark);
        }
        let words: Vec<_> = boot(&timeline).iter().map(|(words, _)| *words).collect();
        assert_eq!(words, ["guest entered", "first console byte"]);
    }
}
