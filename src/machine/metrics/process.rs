//! What this process takes of the host. Any thread may ask.
#![allow(unsafe_code)] // clock_gettime(2)

use std::time::Duration;

use devices::tally::{Metric, Tally, Value, micros};

/// This process.
pub struct Process;

impl Process {
    /// CPU time of all its threads so far, the guest's among it.
    pub fn cpu_time() -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the out-pointer is to a local.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) } != 0;
        if failed { Duration::ZERO } else { Duration::new(time.tv_sec as u64, time.tv_nsec as u32) }
    }

    /// A line of /proc/self/status that is in kB, as `VmRSS` or `VmHWM`; bytes.
    pub fn memory(name: &str) -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
    }
}

impl Tally for Process {
    fn each(&self, show: &mut dyn FnMut(Metric<'_>)) {
        let cpu = micros(Self::cpu_time());
        let help = "CPU time of all threads, the vCPUs among them, microseconds.";
        show(Metric { name: "cpu_us", help, value: Value::Counter(cpu) });
        let help = "Memory of the process, the guest's touched pages among it, bytes.";
        show(Metric { name: "resident_bytes", help, value: Value::Gauge(Self::memory("VmRSS").unwrap_or(0)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_takes_something() {
        assert!(Process::cpu_time() > Duration::ZERO);
        assert!(Process::memory("VmRSS").unwrap() > 1 << 20);
        assert!(Process::memory("VmHWM").unwrap() >= Process::memory("VmRSS").unwrap() / 2);
        assert_eq!(Process::memory("VmNothing"), None);
    }
}
