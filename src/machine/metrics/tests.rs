//! Lines and pages of metrics, from sources that the test moves.

use std::io::{Read, Seek};

use devices::tally::{Metric, Span, Times, Value as Measured};

use super::*;

tally! {
    /// A disk's, say.
    struct Disk {
        /// Bytes read.
        bytes_in: AtomicU64,
        /// Interrupts sent.
        interrupts: AtomicU64,
        /// How long it took.
        request_time: Times,
        /// The same for reads.
        read_agg: Span,
    }
}

/// Two disks and two endpoints, of which one has not been asked for.
fn metrics() -> (Metrics, [Arc<Disk>; 2], Arc<Endpoint>) {
    let metrics = Metrics::new();
    let endpoint = metrics.endpoint("PUT /drives/{drive_id}");
    metrics.endpoint("GET /");
    let disks = [Arc::<Disk>::default(), Arc::<Disk>::default()];
    let names = ["a", "b"];
    metrics.set_vm(names.iter().zip(&disks).map(|(name, disk)| Source::member("block", *name, disk.clone())).collect());
    (metrics, disks, endpoint)
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

#[test]
fn lines_tell_what_has_changed() {
    let (metrics, [one, two], endpoint) = metrics();
    let mut file = tempfile::tempfile().unwrap();
    metrics.flush(); // nowhere yet
    let properties = BTreeMap::from([("host".to_owned(), "h1".to_owned())]);
    metrics.write_to(file.try_clone().unwrap(), Some("vm"), &properties);
    add(&one.bytes_in, 5);
    add(&two.bytes_in, 7);
    add(&one.interrupts, 1);
    one.request_time.record(Duration::from_micros(40));
    for (disk, micros) in [(&one, 30), (&one, 50), (&two, 70)] {
        disk.read_agg.record(Duration::from_micros(micros));
    }
    endpoint.asked(true, Duration::ZERO);
    endpoint.asked(false, Duration::ZERO);
    metrics.latencies.pause_vm.0.store(300, Ordering::Relaxed);
    metrics.flush();
    add(&two.bytes_in, 1);
    add(&two.interrupts, 2);
    metrics.flush();
    metrics.set_vm(vec![Source::member("block", "a", Arc::new(Disk { bytes_in: 2.into(), ..Disk::default() }))]);
    metrics.flush();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [first, second, third] = lines.as_slice() else { panic!("{text}") };
    assert_eq!((&first["id"], &first["properties"]), (&json!("vm"), &json!({ "host": "h1" })));
    assert!(first["utc_timestamp_ms"].as_u64().unwrap() > 1_600_000_000_000);
    let reads = |line: &Value| ["block", "block_a", "block_b"].map(|it| line[it]["read_bytes"].as_u64());
    assert_eq!(reads(first), [Some(12), Some(5), Some(7)]);
    assert_eq!(reads(second), [Some(1), Some(0), Some(1)]);
    assert_eq!(reads(third), [Some(2), Some(2), None], "another VM begins at 0");
    assert_eq!([first, second].map(|line| line["interrupts"]["triggers"].clone()), [json!(1), json!(2)]);
    let time = |count, sum, le| json!({ "count": count, "sum_us": sum, "le_us": le });
    assert_eq!(first["block_a"]["request_time"], time(1, 40, json!({ "64": 1 })));
    assert_eq!(second["block_a"]["request_time"], time(0, 0, json!({})));
    let ends = |min, max, sum| json!({ "min_us": min, "max_us": max, "sum_us": sum });
    assert_eq!(
        ["block_a", "block_b", "block"].map(|it| first[it]["read_agg"].clone()),
        [ends(30, 50, 80), ends(70, 70, 70), ends(30, 70, 150)]
    );
    assert_eq!(second["block"]["read_agg"], ends(30, 70, 0), "the sum is since the line before");
    let asked = ["drive_count", "drive_fails"].map(|name| first["put_api_requests"][name].as_u64());
    assert_eq!(asked, [Some(2), Some(1)]);
    assert_eq!([first, second].map(|line| line["latencies_us"]["pause_vm"].clone()), [json!(300), json!(300)]);
    assert!(second["process"]["resident_bytes"].as_u64().unwrap() > 0);
}

/// Who reads Firecracker's lines finds its groups, though nobody has counted anything.
#[test]
fn a_line_has_all_of_firecracker_s_groups() {
    let (metrics, ..) = metrics();
    let mut file = tempfile::tempfile().unwrap();
    metrics.write_to(file.try_clone().unwrap(), None, &BTreeMap::new());
    metrics.flush();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    let line: Value = serde_json::from_str(&text).unwrap();
    for name in [
        "api_server.process_startup_time_us",
        "balloon.activate_fails",
        "balloon.free_page_hint_freed",
        "block_b.activate_fails",
        "block_b.update_count",
        "block.write_agg.max_us",
        "deprecated_api.deprecated_http_api_calls",
        "entropy.entropy_bytes",
        "get_api_requests.hotplug_memory_count",
        "i8042.reset_count",
        "interrupts.config_updates",
        "interrupts.triggers",
        "latencies_us.full_create_snapshot",
        "latencies_us.vmm_pause_vm",
        "logger.missed_log_count",
        "memory_hotplug.plug_agg.sum_us",
        "mmds.tx_count",
        "net.rx_tap_event_count",
        "net.tap_write_agg.min_us",
        "patch_api_requests.machine_cfg_fails",
        "pmem.queue_event_count",
        "put_api_requests.cpu_cfg_count",
        "seccomp.num_faults",
        "signals.sigill",
        "uart.flush_count",
        "vcpu.exit_io_in_agg.sum_us",
        "vcpu.kvmclock_ctrl_fails",
        "vmm.panic_count",
        "vsock.conns_added",
        "vsock.rx_queue_event_count",
        "vsock.tx_packets_count",
    ] {
        let value = name.split('.').fold(&line, |value, key| &value[key]);
        assert_eq!(value.as_u64(), Some(0), "{name} in {text}");
    }
    assert!(line.get("read_agg").is_none() && line["api_server"].get("read_agg").is_none());
}

#[test]
fn endpoints_are_named_as_firecracker_s() {
    let named = ["drives/{drive_id}", "hotplug/memory", "cpu-config", "boot-source", ""].map(firecracker::endpoint);
    assert_eq!(named, ["drive", "hotplug_memory", "cpu_cfg", "boot_source", "instance_info"]);
}

#[test]
fn what_is_not_taken_is_counted() {
    let (metrics, ..) = metrics();
    metrics.write_to(File::open("/dev/null").unwrap(), None, &BTreeMap::new());
    metrics.flush();
    assert_eq!(metrics.reports.metrics_fails.load(Ordering::Relaxed), 1);
}

#[test]
fn a_page_has_totals_by_family() {
    let (metrics, [one, two], endpoint) = metrics();
    add(&one.bytes_in, 5);
    add(&two.bytes_in, 7);
    endpoint.asked(true, Duration::from_micros(100));
    endpoint.asked(true, Duration::from_micros(200));
    two.request_time.record(Duration::from_micros(2));
    two.request_time.record(Duration::from_secs(10));
    assert_eq!((metrics.total("block", "bytes_in"), metrics.total("net", "bytes_in")), (12, 0));
    let page = metrics.exposition();
    for lines in [
        "# HELP vmm_block_bytes_in_total Bytes read.\n# TYPE vmm_block_bytes_in_total counter\n\
         vmm_block_bytes_in_total{id=\"a\"} 5\nvmm_block_bytes_in_total{id=\"b\"} 7\n",
        "# TYPE vmm_api_requests_total counter\n\
         vmm_api_requests_total{method=\"PUT\",path=\"/drives/{drive_id}\"} 2\n# HELP",
        "vmm_api_request_time_seconds_bucket{method=\"PUT\",path=\"/drives/{drive_id}\",le=\"0.000128\"} 1\n",
        "vmm_api_request_time_seconds_sum{method=\"PUT\",path=\"/drives/{drive_id}\"} 0.0003\n",
        "# TYPE vmm_latencies_us_pause_vm gauge\nvmm_latencies_us_pause_vm 0\n",
        "vmm_block_request_time_seconds_bucket{id=\"b\",le=\"0.000001\"} 0\n\
         vmm_block_request_time_seconds_bucket{id=\"b\",le=\"0.000002\"} 1\n",
        "vmm_block_request_time_seconds_bucket{id=\"b\",le=\"4.194304\"} 1\n\
         vmm_block_request_time_seconds_bucket{id=\"b\",le=\"+Inf\"} 2\n\
         vmm_block_request_time_seconds_sum{id=\"b\"} 10.000002\n\
         vmm_block_request_time_seconds_count{id=\"b\"} 2\n",
    ] {
        assert!(page.contains(lines), "{lines}\n---\n{page}");
    }
    assert_eq!(page.matches("# TYPE vmm_block_bytes_in_total").count(), 1);
}

#[test]
fn names_in_labels_are_escaped() {
    struct One;
    impl Tally for One {
        fn each(&self, show: &mut dyn FnMut(Metric<'_>)) {
            show(Metric { name: "x", help: "X.", value: Measured::Gauge(1) });
        }
    }
    let page = prometheus::text([Source::member("g", "a\"b\\c\nd", Arc::new(One))].iter());
    assert!(page.ends_with("vmm_g_x{id=\"a\\\"b\\\\c\\nd\"} 1\n"), "{page}");
}
