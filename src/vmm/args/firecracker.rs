//! Flags of Firecracker's that a launcher may pass and that say nothing about a VM: what they mean here, or why they mean
//! nothing. docs/api.md has all of its flags.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use devices::tally;
use devices::tally::{Gauge, micros};
use machine::metrics::{Metrics, Process};
use rustix::time::{ClockId, clock_gettime};

use super::Failure;

/// Flags that are there for programs that start Firecracker.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Firecracker's")]
pub struct FirecrackerArgs {
    /// When the launcher was started, CLOCK_MONOTONIC: for metrics
    #[arg(long, value_name = "MICROSECONDS", hide_short_help = true)]
    start_time_us: Option<u64>,
    /// This process's CPU time when the launcher was started: for metrics
    #[arg(long, value_name = "MICROSECONDS", hide_short_help = true)]
    start_time_cpu_us: Option<u64>,
    /// CPU time of the launcher's parent: for metrics
    #[arg(long, value_name = "MICROSECONDS", hide_short_help = true)]
    parent_cpu_time_us: Option<u64>,
    /// Without effect: there is no seccomp filter
    #[arg(long, hide_short_help = true)]
    no_seccomp: bool,
    /// Without effect: there is no PCI, and guests find the same devices as virtio-mmio
    #[arg(long, hide_short_help = true)]
    enable_pci: bool,
    #[arg(long, value_name = "FILE", hide = true)]
    seccomp_filter: Option<PathBuf>,
    #[arg(long, hide = true)]
    boot_timer: bool,
    #[arg(long, hide = true)]
    snapshot_version: bool,
    #[arg(long, value_name = "FILE", hide = true)]
    describe_snapshot: Option<PathBuf>,
}

tally! {
    /// How long it took to start the process, as Firecracker names it.
    pub struct Startup {
        /// Time from the launcher's start, microseconds.
        process_startup_time_us: Gauge,
        /// CPU time since the launcher's start and that of its parent, microseconds.
        process_startup_time_cpu_us: Gauge,
    }
}

impl FirecrackerArgs {
    /// What is asked for can not be given, and the launcher must know.
    pub fn refuse(&self) -> Result<(), Failure> {
        let refused = [
            (
                self.seccomp_filter.is_some(),
                "--seccomp-filter: Firecracker's filters do not fit this monitor's threads; leave it out",
            ),
            (
                self.boot_timer,
                "--boot-timer: there is no such device; leave it out: --timings prints when each phase of the boot was reached",
            ),
            (self.snapshot_version, "--snapshot-version: the first line of a snapshot says its version"),
            (self.describe_snapshot.is_some(), "--describe-snapshot: the first line of a snapshot says what it is"),
        ];
        let faults: Vec<_> = refused.iter().filter(|(given, _)| *given).map(|(_, why)| *why).collect();
        if faults.is_empty() { Ok(()) } else { Err(Failure::Args(faults.join("\n"))) }
    }

    /// Says what is not as the launcher may think.
    pub fn warn(&self) {
        if self.enable_pci {
            eprintln!("vmm: --enable-pci: there is no PCI; the guest finds its devices as virtio-mmio");
        }
    }

    /// Notes how long the start has taken until now, if the launcher said when it began.
    pub fn note(&self, metrics: &Metrics) {
        if self.start_time_us.is_none() && self.start_time_cpu_us.is_none() {
            return;
        }
        let now = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0));
        metrics.watch("api_server", Arc::new(self.startup(micros(now), micros(Process::cpu_time()))));
    }

    fn startup(&self, now: u64, cpu: u64) -> Startup {
        let startup = Startup::default();
        if let Some(start) = self.start_time_us {
            startup.process_startup_time_us.0.store(now.saturating_sub(start), Ordering::Relaxed);
        }
        if let Some(start) = self.start_time_cpu_us {
            let taken = cpu.saturating_sub(start).saturating_add(self.parent_cpu_time_us.unwrap_or(0));
            startup.process_startup_time_cpu_us.0.store(taken, Ordering::Relaxed);
        }
        startup
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::args::{Order, read};
    use crate::personality::Personality;

    fn run(line: &str) -> crate::args::RunArgs {
        let words = std::iter::once("vmm").chain(line.split(' ')).map(OsString::from);
        match read(words, Personality::Own) {
            Ok(Order::Run(_, run)) => run,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// Every flag of Firecracker's, as its jailer and its clients write them.
    #[test]
    fn every_flag_of_firecracker_s_is_taken_or_refused_by_name() {
        let taken = [
            "--api-sock /run/a.sock",
            "--api-sock=/run/a.sock",
            "--id a-1",
            "--config-file vm.json",
            "--config-file vm.json --no-api",
            "--metadata m.json",
            "--http-api-max-payload-size 51200",
            "--mmds-size-limit 51200",
            "--log-path l",
            "--level Info",
            "--show-level --show-log-origin --module api",
            "--metrics-path m",
            "--no-seccomp",
            "--enable-pci",
            "--id a --start-time-us 1 --start-time-cpu-us 2 --parent-cpu-time-us 3 --api-sock /run/a.sock",
        ];
        for line in taken {
            assert!(run(line).firecracker.refuse().is_ok(), "{line}");
        }
        for (line, words) in [
            ("--seccomp-filter f", "--seccomp-filter: Firecracker's filters do not fit"),
            ("--boot-timer", "--boot-timer: there is no such device"),
            ("--snapshot-version", "--snapshot-version: the first line"),
            ("--describe-snapshot s", "--describe-snapshot: the first line"),
        ] {
            let refused = run(&format!("--api-sock a {line}")).firecracker.refuse().unwrap_err();
            assert!(refused.to_string().starts_with(words), "{refused}");
        }
    }

    #[test]
    fn the_start_is_counted_from_the_launcher_s() {
        let args = run("--start-time-us 1000 --start-time-cpu-us 10 --parent-cpu-time-us 7").firecracker;
        let startup = args.startup(1500, 30);
        assert_eq!(startup.process_startup_time_us.0.load(Ordering::Relaxed), 500);
        assert_eq!(startup.process_startup_time_cpu_us.0.load(Ordering::Relaxed), 27);
        // A launcher whose clock is wrong.
        assert_eq!(args.startup(0, 0).process_startup_time_us.0.load(Ordering::Relaxed), 0);
        let (metrics, silent) = (Metrics::new(), Metrics::new());
        args.note(&metrics);
        run("--id a").firecracker.note(&silent);
        assert!(metrics.exposition().contains("vmm_api_server_process_startup_time_us "));
        assert!(!silent.exposition().contains("vmm_api_server"));
    }
}
