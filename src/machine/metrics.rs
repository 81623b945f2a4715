//! What everything counts, in one place: written as JSON lines (`line.rs`) and shown as Prometheus' text (`prometheus.rs`).
//!
//! Who counts does so in atomics of its own ([`devices::tally`]) and never comes here. Any thread reads; the control thread
//! alone writes lines.

mod firecracker;
mod line;
mod output;
mod process;
mod prometheus;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::tally;
use devices::tally::{Gauge, Tally, Times};
use serde_json::{Map, Value, json};

pub use process::Process;

use line::Line;
use output::{Output, Written};

/// How often a line is written (Firecracker's WRITE_METRICS_PERIOD_MS).
pub const PERIOD: Duration = Duration::from_secs(60);

/// Something that counts, and its name.
pub struct Source {
    /// What it belongs to, as `block` or `vcpu`: small letters and `_`. All of one group count the same things.
    pub group: &'static str,
    /// Which one of the group it is, where there may be several.
    pub member: Option<String>,
    /// It is not shown as long as it has counted nothing.
    pub is_shy: bool,
    /// What it has counted.
    pub tally: Arc<dyn Tally>,
}

impl Source {
    /// The only one of its group.
    pub fn only(group: &'static str, tally: Arc<dyn Tally>) -> Self {
        Self { group, member: None, is_shy: false, tally }
    }

    /// One of a group.
    pub fn member(group: &'static str, member: impl Into<String>, tally: Arc<dyn Tally>) -> Self {
        Self { group, member: Some(member.into()), is_shy: false, tally }
    }
}

tally! {
    /// How long what was asked of the VM took, the last time; named as Firecracker's.
    #[allow(missing_docs)]
    pub struct Latencies {
        /// Time from the request until the VM was paused, microseconds.
        pub pause_vm: Gauge,
        /// Time from the request until the VM ran again, microseconds.
        pub resume_vm: Gauge,
    }
}

tally! {
    /// What became of the monitor's own reports; named as Firecracker's.
    pub struct Reports {
        /// Lines of metrics that were lost, as nobody took them.
        pub missed_metrics_count: AtomicU64,
        /// Lines of metrics that could not be written.
        pub metrics_fails: AtomicU64,
        /// Lines of the log that were lost or could not be written.
        pub missed_log_count: AtomicU64,
    }
}

tally! {
    /// What became of the requests to an endpoint of the API.
    pub struct Endpoint {
        /// Requests to the endpoint.
        requests: AtomicU64,
        /// Of these, requests that were refused.
        failed: AtomicU64,
        /// Time from when a request was there until its answer was.
        request_time: Times,
    }
}

impl Endpoint {
    /// A request came, and was carried out or not, in so much time. One thread calls this.
    pub fn asked(&self, done: bool, took: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(u64::from(!done), Ordering::Relaxed);
        self.request_time.record(took);
    }
}

tally! {
    /// What was asked in words that have a better one by now; named as Firecracker's.
    pub struct Deprecated {
        /// Requests with a key that has no meaning any more.
        pub deprecated_http_api_calls: AtomicU64,
    }
}

tally! {
    /// Signals that ask this process to end; named as Firecracker's.
    pub struct Asked {
        /// SIGHUP has come.
        pub sighup: Gauge,
    }
}

/// All that is counted in this process. There is one for all VMs that a process has, one after the other.
pub struct Metrics {
    /// Those of the process, and those of the VM at hand.
    sources: Mutex<Sources>,
    output: Mutex<Option<Writer>>,
    /// How long requests took.
    pub latencies: Arc<Latencies>,
    /// What became of log lines and metrics.
    pub reports: Arc<Reports>,
    /// Requests in old words.
    pub deprecated: Arc<Deprecated>,
    /// Signals.
    pub asked: Arc<Asked>,
}

#[derive(Default)]
struct Sources {
    process: Vec<Source>,
    vm: Vec<Source>,
    line: Line,
}

struct Writer {
    output: Output,
    /// What stands in every line.
    head: Map<String, Value>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Counts the process itself.
    pub fn new() -> Self {
        let (latencies, reports) = (Arc::<Latencies>::default(), Arc::<Reports>::default());
        let (deprecated, asked) = (Arc::<Deprecated>::default(), Arc::<Asked>::default());
        let own = vec![
            Source::only("latencies_us", latencies.clone()),
            Source::only("logger", reports.clone()),
            Source::only("process", Arc::new(Process)),
            Source::only("deprecated_api", deprecated.clone()),
            Source::only("signals", asked.clone()),
        ];
        let sources = Mutex::new(Sources { process: own, ..Sources::default() });
        Self { sources, output: Mutex::default(), latencies, reports, deprecated, asked }
    }

    /// Counts the requests to an endpoint, a method and a path. Before there is a VM.
    pub fn endpoint(&self, name: &str) -> Arc<Endpoint> {
        let endpoint = Arc::<Endpoint>::default();
        let source = Source { is_shy: true, ..Source::member("api", name, endpoint.clone()) };
        self.sources().process.push(source);
        endpoint
    }

    /// Counts what belongs to no VM in particular, and shows it on the page once there is something. Before there is a VM.
    pub fn watch(&self, group: &'static str, tally: Arc<dyn Tally>) {
        let source = Source { is_shy: true, ..Source::only(group, tally) };
        self.sources().process.push(source);
    }

    /// From now on these are what the VM counts; what an earlier VM counted is forgotten.
    pub fn set_vm(&self, sources: Vec<Source>) {
        let mut all = self.sources();
        let Sources { process, vm, line } = &mut *all;
        line.forget(process.len());
        *vm = sources;
    }

    /// Writes lines to `file`, which must not block. Each has `properties` in it, and the VM's name where it is given.
    pub fn write_to(&self, file: File, id: Option<&str>, properties: &BTreeMap<String, String>) {
        let mut head = Map::new();
        head.extend(id.map(|id| ("id".to_owned(), id.into())));
        if !properties.is_empty() {
            head.insert("properties".into(), json!(properties));
        }
        *self.output.lock().unwrap_or_else(PoisonError::into_inner) = Some(Writer { output: Output::new(file), head });
    }

    /// Writes a line: what was counted since the last one. Nothing where there is nowhere to write it.
    pub fn flush(&self) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Writer { output, head }) = output.as_mut() else { return };
        let line = {
            let mut sources = self.sources();
            let Sources { process, vm, line } = &mut *sources;
            line.next(head.clone(), process.iter().chain(vm.iter()))
        };
        let lost = match output.write(&line) {
            Written::Whole => return,
            Written::Missed => &self.reports.missed_metrics_count,
            Written::Failed => &self.reports.metrics_fails,
        };
        lost.fetch_add(1, Ordering::Relaxed);
    }

    /// What the members of a group have counted under this name, all together.
    pub fn total(&self, group: &str, name: &str) -> u64 {
        let mut total = 0;
        for source in self.sources().vm.iter().filter(|source| source.group == group) {
            source.tally.each(&mut |metric| match metric.value {
                devices::tally::Value::Counter(value) if metric.name == name => total += value,
                _ => {}
            });
        }
        total
    }

    /// All that was counted so far, as Prometheus reads it.
    pub fn exposition(&self) -> String {
        let sources = self.sources();
        prometheus::text(sources.process.iter().chain(&sources.vm))
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
