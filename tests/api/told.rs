//! What a VM that waits tells of itself: metrics, events, the log.

use std::io::{Read, Write};

use api::client;
use serde_json::{Value, json};

use crate::Waiting;
use crate::schema::Documents;

/// Before there is a VM the page of metrics tells of the process and of what was asked.
#[test]
fn requests_are_counted() {
    let vm = Waiting::start(&[]);
    for _ in 0..3 {
        vm.is_well();
    }
    let _ = vm.call("PUT", "/drives/a", json!({}));
    let _ = vm.call("GET", "/nonsense", Value::Null);
    let answer = vm.raw(b"GET /metrics HTTP/1.1\r\n\r\n");
    let (head, page) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    for line in [
        "vmm_api_requests_total{method=\"GET\",path=\"/\"} 3",
        "vmm_api_failed_total{method=\"GET\",path=\"/\"} 0",
        "vmm_api_failed_total{method=\"PUT\",path=\"/drives/{drive_id}\"} 1",
        "vmm_deprecated_api_deprecated_http_api_calls_total 0",
        "vmm_api_failed_total{method=\"unknown\",path=\"/unknown\"} 1",
    ] {
        assert!(page.lines().any(|it| it == line), "{line}\n{page}");
    }
    assert!(!page.contains("/vsock"), "nobody asked for it\n{page}");
    vm.call("PUT", "/vsock", json!({ "guest_cid": 3, "uds_path": "v.sock" })).expect("it is right");
    vm.call("PUT", "/vsock", json!({ "guest_cid": 3, "uds_path": "v.sock", "vsock_id": "1" })).expect("it is right");
    let page = vm.call("GET", "/metrics", Value::Null).expect("a page");
    let calls = "\nvmm_deprecated_api_deprecated_http_api_calls_total 1\n";
    assert!(page.as_str().is_some_and(|page| page.contains(calls)), "one of the two: {page}");
    assert_eq!(vm.call("GET", "/metrics", Value::Null).map(|it| it.is_string()), Ok(true));
}

/// What happens is told to whoever follows, also to one who says that it sends no more; who never reads disturbs nobody.
#[test]
fn events_are_told_until_the_end() {
    let mut vm = Waiting::start(&[]);
    let follow = || {
        let mut stream = vm.connect();
        stream.write_all(b"GET /vm/events HTTP/1.1\r\n\r\n").unwrap();
        let mut head = vec![0; 15];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head, b"HTTP/1.1 200 OK");
        stream
    };
    let followers = [follow(), follow()];
    followers[1].shutdown(std::net::Shutdown::Write).unwrap();
    let (_silent, mut chatty) = (follow(), follow());
    chatty.write_all(&b"GET / HTTP/1.1\r\n\r\n".repeat(1000)).unwrap();
    drop(follow());
    vm.is_well();
    let by_client = {
        let socket = vm.socket();
        std::thread::spawn(move || {
            let mut lines = Vec::new();
            // It may come too late.
            let _ = client::follow(&socket, |line| lines.push(line.to_owned()));
            lines
        })
    };
    vm.is_well();
    vm.call("PUT", "/actions", json!({ "action_type": "Stop" })).unwrap();
    for mut stream in followers {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        let (head, body) = rest.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains("Transfer-Encoding: chunked"), "{head}");
        let line = body.lines().find(|line| line.starts_with('{')).expect("an event");
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&event["event"], &event["status"]), (&json!("exit"), &json!(12)), "{body}");
        assert_eq!(event["reason"], "stopped by a request");
        let documents = Documents::read();
        assert_eq!(documents.faults(&json!({ "$ref": "#/components/schemas/Event" }), &event, "event"), [""; 0]);
        assert!(body.ends_with("\r\n0\r\n\r\n"), "{body}");
    }
    assert!(by_client.join().unwrap().iter().all(|line| line.contains("\"exit\"")));
    assert_eq!(vm.process.wait().unwrap().code(), Some(12));
}

/// The log changes with the request, not with the start; what a request does not name stays.
#[test]
fn the_log_changes_when_it_is_asked_to() {
    let vm = Waiting::start(&["--log-file", "first", "--log-level", "off", "--log-format", "json", "--id", "logged"]);
    let read = |name: &str| std::fs::read_to_string(vm.room.path().join(name)).unwrap();
    vm.call("PUT", "/serial", json!({})).unwrap();
    vm.call("PUT", "/logger", json!({ "level": "debug" })).unwrap();
    vm.call("PUT", "/entropy", json!({})).unwrap();
    vm.call("PUT", "/logger", json!({ "log_path": "second", "levels": { "api": "Info" } })).unwrap();
    vm.is_well(); // a GET, at debug
    vm.call("DELETE", "/drives/none", Value::Null).unwrap_err();
    let lost = vm.call("PUT", "/logger", json!({ "log_path": "no/where" })).unwrap_err();
    assert!(lost.contains("the directory no does not exist"), "{lost}");
    let wrong = vm.call("PUT", "/logger", json!({ "levels": { "apo": "Info" } })).unwrap_err();
    assert_eq!(
        wrong,
        "PUT /logger: levels.apo: there is no module `apo`; the names begin with api, devices, machine, vmm"
    );
    vm.call("PUT", "/logger", json!({ "level": "Off", "levels": {}, "show_level": null })).unwrap();
    vm.call("PUT", "/serial", json!({})).unwrap();
    let lines = |name: &str| -> Vec<(String, u64)> {
        let lines = read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
        let what =
            |line: &Value| (line["message"].as_str().unwrap().to_owned(), line["fields"]["status"].as_u64().unwrap());
        assert!(lines.iter().all(|line| line["id"] == "logged" && line["module"] == "api::connection"), "{lines:?}");
        lines.iter().map(what).collect()
    };
    let wanted =
        |lines: &[(&str, u64)]| lines.iter().map(|(text, status)| ((*text).to_owned(), *status)).collect::<Vec<_>>();
    assert_eq!(lines("first"), wanted(&[("PUT /logger", 204), ("PUT /entropy", 204)]));
    let put = ("PUT /logger", 204);
    let refused = ("PUT /logger", 400);
    assert_eq!(lines("second"), wanted(&[put, ("DELETE /drives/none", 400), refused, refused]));
    let config = &vm.call("GET", "/vm/config", Value::Null).unwrap()["logger"];
    assert_eq!(
        (&config["level"], &config["format"], &config["log_path"]),
        (&json!("Off"), &json!("json"), &json!("second"))
    );
}

/// Standard error is a pipe here, which nobody reads: lines are lost, requests are not.
#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let mut vm = Waiting::start(&["--log-level", "vmm=off,api=debug"]);
    let lost = |vm: &Waiting| -> u64 {
        let page = vm.call("GET", "/metrics", Value::Null).unwrap();
        let line = page.as_str().unwrap().lines().find_map(|it| it.strip_prefix("vmm_logger_missed_log_count_total "));
        line.unwrap().parse().unwrap()
    };
    let mut asked = 0;
    while lost(&vm) < 10 {
        assert!(asked < 10_000, "the pipe is never full");
        (0..50).for_each(|_| vm.is_well());
        asked += 50;
    }
    vm.call("PUT", "/actions", json!({ "action_type": "Stop" })).unwrap();
    let mut text = String::new();
    vm.process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("] GET / status=200 took_us=")).collect();
    assert!(lines.len() > 50 && lines.len() < asked, "{} of {asked} lines", lines.len());
}
