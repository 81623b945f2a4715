//! What Firecracker calls what is counted here, and what its lines always have. Pure.
//!
//! Source of the names: Firecracker, src/vmm/src/logger/metrics.rs and the metrics.rs of each device.

use serde_json::{Map, Value, json};

/// Its names where they differ: group, our name, its name. What has two of them is in a line twice.
const NAMES: &[(&str, &str, &str)] = &[
    ("balloon", "bad_accesses", "cfg_fails"),
    ("balloon", "broken", "event_fails"),
    ("balloon", "bytes_out", "freed_bytes"),
    ("block", "bad_accesses", "cfg_fails"),
    ("block", "broken", "event_fails"),
    ("block", "bytes_in", "read_bytes"),
    ("block", "bytes_out", "write_bytes"),
    ("block", "engine_throttled", "io_engine_throttled_events"),
    ("block", "failed", "execute_fails"),
    ("block", "flushes", "flush_count"),
    ("block", "kicks", "queue_event_count"),
    ("block", "limit_events", "rate_limiter_event_count"),
    ("block", "moves_in", "read_count"),
    ("block", "moves_out", "write_count"),
    ("block", "refused", "invalid_reqs_count"),
    ("block", "throttled", "rate_limiter_throttled_events"),
    ("block", "updates", "update_count"),
    ("entropy", "bytes_in", "entropy_bytes"),
    ("entropy", "failed", "entropy_event_fails"),
    ("entropy", "limit_events", "rate_limiter_event_count"),
    ("entropy", "requests", "entropy_event_count"),
    ("entropy", "throttled", "entropy_rate_limiter_throttled"),
    ("latencies_us", "pause_vm", "pause_vm"),
    ("latencies_us", "pause_vm", "vmm_pause_vm"),
    ("latencies_us", "resume_vm", "resume_vm"),
    ("latencies_us", "resume_vm", "vmm_resume_vm"),
    ("mmds", "tx_frames", "tx_count"),
    ("mmds", "tx_frames", "tx_frames"),
    ("net", "bad_accesses", "cfg_fails"),
    ("net", "broken", "event_fails"),
    ("net", "bytes_in", "rx_bytes_count"),
    ("net", "bytes_out", "tx_bytes_count"),
    ("net", "frames_in_throttled", "rx_rate_limiter_throttled"),
    ("net", "frames_malformed", "tx_malformed_frames"),
    ("net", "frames_out_throttled", "tx_rate_limiter_throttled"),
    ("net", "frames_waited", "no_rx_avail_buffer"),
    ("net", "host_events", "rx_tap_event_count"),
    ("net", "host_read_fails", "tap_read_fails"),
    ("net", "host_write_fails", "tap_write_fails"),
    ("net", "limit_in_events", "rx_event_rate_limiter_count"),
    ("net", "limit_out_events", "tx_rate_limiter_event_count"),
    ("net", "moves_in", "rx_count"),
    ("net", "moves_in", "rx_packets_count"),
    ("net", "moves_out", "tx_count"),
    ("net", "moves_out", "tx_packets_count"),
    ("net", "receive_kicks", "rx_queue_event_count"),
    ("net", "transmit_kicks", "tx_queue_event_count"),
    ("pmem", "bad_accesses", "cfg_fails"),
    ("pmem", "broken", "event_fails"),
    ("pmem", "kicks", "queue_event_count"),
    ("uart", "bytes_in", "read_count"),
    ("uart", "bytes_lost", "missed_write_count"),
    ("uart", "bytes_out", "write_count"),
    ("vsock", "bad_accesses", "cfg_fails"),
    ("vsock", "bytes_in", "rx_bytes_count"),
    ("vsock", "bytes_out", "tx_bytes_count"),
    ("vsock", "moves_in", "rx_packets_count"),
    ("vsock", "moves_out", "tx_packets_count"),
    ("vsock", "receive_kicks", "rx_queue_event_count"),
    ("vsock", "transmit_kicks", "tx_queue_event_count"),
];

/// What it calls the endpoints in its counts of requests, by the first part of their paths.
const ENDPOINTS: &[(&str, &str)] = &[
    ("", "instance_info"),
    ("cpu-config", "cpu_cfg"),
    ("drives", "drive"),
    ("hotplug", "hotplug_memory"),
    ("machine-config", "machine_cfg"),
    ("network-interfaces", "network"),
    ("version", "vmm_version"),
    ("vm", "vm"),
];

/// What its lines always have, in a VM that has no such device or is not asked such things as well: 0 then. Here are names of
/// what is counted, and of what can not happen in this monitor; not those of what happens here uncounted.
const ALWAYS: &[(&str, &str)] = &[
    ("api_server", "process_startup_time_us process_startup_time_cpu_us"),
    (
        "balloon",
        "activate_fails cfg_fails event_fails freed_bytes inflate_count deflate_count stats_updates_count \
         free_page_report_count free_page_report_freed free_page_report_fails free_page_hint_count free_page_hint_freed \
         free_page_hint_fails",
    ),
    (
        "block",
        "activate_fails cfg_fails event_fails execute_fails invalid_reqs_count flush_count queue_event_count read_bytes \
         write_bytes read_count write_count rate_limiter_throttled_events rate_limiter_event_count \
         io_engine_throttled_events update_count",
    ),
    ("deprecated_api", "deprecated_http_api_calls"),
    (
        "entropy",
        "activate_fails entropy_event_fails entropy_event_count entropy_bytes host_rng_fails \
         entropy_rate_limiter_throttled rate_limiter_event_count",
    ),
    ("get_api_requests", "instance_info_count machine_cfg_count mmds_count vmm_version_count hotplug_memory_count"),
    ("i8042", "error_count missed_read_count missed_write_count read_count reset_count write_count"),
    ("interrupts", "config_updates triggers"),
    (
        "latencies_us",
        "full_create_snapshot diff_create_snapshot load_snapshot pause_vm resume_vm vmm_full_create_snapshot \
         vmm_diff_create_snapshot vmm_load_snapshot vmm_pause_vm vmm_resume_vm",
    ),
    ("logger", "missed_metrics_count metrics_fails missed_log_count"),
    (
        "memory_hotplug",
        "activate_fails queue_event_fails queue_event_count plug_count plug_bytes plug_fails unplug_count unplug_bytes \
         unplug_fails unplug_discard_fails unplug_all_count unplug_all_fails state_count state_fails",
    ),
    (
        "mmds",
        "rx_accepted rx_accepted_err rx_bad_eth rx_invalid_token rx_no_token tx_bytes tx_count tx_errors tx_frames \
         connections_created connections_destroyed",
    ),
    (
        "net",
        "activate_fails cfg_fails mac_address_updates no_rx_avail_buffer event_fails rx_bytes_count rx_packets_count rx_count \
         tx_bytes_count tx_packets_count tx_count rx_rate_limiter_throttled rx_event_rate_limiter_count \
         tx_rate_limiter_throttled tx_rate_limiter_event_count rx_tap_event_count tap_read_fails tap_write_fails \
         tx_malformed_frames rx_queue_event_count tx_queue_event_count",
    ),
    (
        "patch_api_requests",
        "drive_count drive_fails network_count network_fails machine_cfg_count machine_cfg_fails mmds_count mmds_fails \
         hotplug_memory_count hotplug_memory_fails",
    ),
    ("pmem", "activate_fails cfg_fails event_fails queue_event_count"),
    (
        "put_api_requests",
        "actions_count actions_fails boot_source_count boot_source_fails drive_count drive_fails logger_count logger_fails \
         machine_cfg_count machine_cfg_fails cpu_cfg_count cpu_cfg_fails metrics_count metrics_fails network_count \
         network_fails mmds_count mmds_fails vsock_count vsock_fails pmem_count pmem_fails serial_count serial_fails \
         hotplug_memory_count hotplug_memory_fails",
    ),
    ("seccomp", "num_faults"),
    ("signals", "sigbus sigsegv sigxfsz sigxcpu sigpipe sighup sigill"),
    ("uart", "error_count flush_count missed_read_count missed_write_count read_count write_count"),
    ("vcpu", "exit_io_in exit_io_out exit_mmio_read exit_mmio_write failures kvmclock_ctrl_fails"),
    ("vmm", "panic_count"),
    (
        "vsock",
        "activate_fails cfg_fails rx_bytes_count tx_bytes_count rx_packets_count tx_packets_count conns_added \
         conns_removed killq_resync rx_queue_event_count tx_queue_event_count",
    ),
];

/// The same for what has a shortest, a longest and a sum.
const SPANS: &[(&str, &str)] = &[
    ("block", "read_agg write_agg"),
    ("memory_hotplug", "plug_agg unplug_agg unplug_all_agg state_agg"),
    ("net", "tap_write_agg"),
    ("vcpu", "exit_io_in_agg exit_io_out_agg exit_mmio_read_agg exit_mmio_write_agg"),
];

/// What a metric is called in a line.
pub fn names<'a>(group: &str, ours: &'a str) -> impl Iterator<Item = &'a str> {
    let group = group.to_owned();
    let theirs = NAMES.iter().filter(move |(its, name, _)| *its == group && *name == ours).map(|(.., theirs)| *theirs);
    let mut theirs = theirs.peekable();
    let own = theirs.peek().is_none().then_some(ours);
    theirs.chain(own)
}

/// What an endpoint is called in a line, by its path without the first slash.
pub fn endpoint(path: &str) -> String {
    let part = path.split('/').next().unwrap_or_default();
    let known = ENDPOINTS.iter().find(|(ours, _)| *ours == part);
    known.map_or_else(|| part.replace('-', "_"), |(_, theirs)| (*theirs).to_owned())
}

/// Adds to a line what it lacks.
pub fn complete(line: &mut Map<String, Value>) {
    let mut fill = |table: &[(&str, &str)], nothing: &Value| {
        for (group, names) in table {
            line.entry(*group).or_insert_with(|| Map::new().into());
            // The sum of the devices of a kind, and each of them.
            let those = line.iter_mut().filter(|(key, _)| key.strip_prefix(group).is_some_and(is_end));
            for object in those.filter_map(|(_, value)| value.as_object_mut()) {
                for name in names.split_whitespace() {
                    object.entry(name).or_insert_with(|| nothing.clone());
                }
            }
        }
    };
    fill(ALWAYS, &Value::from(0));
    fill(SPANS, &json!({ "min_us": 0, "max_us": 0, "sum_us": 0 }));
}

/// Whether a key ends after the name of a group, or goes on with that of a device.
fn is_end(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('_')
}
