//! The API from outside, without KVM: a VM that is configured and never starts, or can not.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::client::{self, ClientError};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "api/document.rs"]
mod document;
#[path = "api/operations.rs"]
mod operations;
#[path = "api/requests.rs"]
mod requests;
#[path = "api/schema.rs"]
mod schema;
#[path = "api/told.rs"]
mod told;

const PATIENCE: Duration = Duration::from_secs(30);
/// Why there is nothing to change or to ask yet.
const NOT_STARTED: &str = "the VM is not started; start it first (InstanceStart)";

/// A `vmm` that waits for its VM, in a directory with some files.
struct Waiting {
    process: Child,
    room: TempDir,
}

impl Waiting {
    fn start(args: &[&str]) -> Self {
        let room = TempDir::new().expect("a directory");
        for (name, text) in
            [("kernel", format!("{:514}HdrS", "not a kernel")), ("disk", "a".repeat(512)), ("text", String::new())]
        {
            std::fs::write(room.path().join(name), text).expect("a file");
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command
            .args(["--api-sock", "api.sock"])
            .args(args)
            .current_dir(room.path())
            .env("VMM_RUNTIME_DIR", room.path().join("vmm"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let waiting = Self { process: command.spawn().expect("start vmm"), room };
        let until = Instant::now() + PATIENCE;
        while UnixStream::connect(waiting.socket()).is_err() {
            assert!(Instant::now() < until, "no API");
            std::thread::sleep(Duration::from_millis(5));
        }
        waiting
    }

    fn socket(&self) -> PathBuf {
        self.room.path().join("api.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("the API's socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        stream
    }

    fn call(&self, method: &str, path: &str, body: Value) -> Result<Value, String> {
        let body = (!body.is_null()).then_some(body);
        match client::call(&self.socket(), method, path, body.as_ref()) {
            Err(ClientError::Refused(text)) => Err(text),
            answer => Ok(answer.expect("an answer")),
        }
    }

    /// What comes back for these bytes, until the other end closes.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// It still answers.
    fn is_well(&self) {
        assert_eq!(self.call("GET", "/", Value::Null).expect("an answer")["state"], "Not started");
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn says_what_it_is() {
    let vm = Waiting::start(&["--id", "my-vm"]);
    let wanted =
        json!({ "app_name": "vmm", "id": "my-vm", "state": "Not started", "vmm_version": env!("CARGO_PKG_VERSION") });
    assert_eq!(vm.call("GET", "/", Value::Null), Ok(wanted));
    // What `firecracker --version` prints (tests/cli/verbs.rs).
    assert_eq!(vm.call("GET", "/version", Value::Null).unwrap(), json!({ "firecracker_version": "1.17.0" }));
}

/// What the metadata service has to tell is any JSON, of a limited size.
#[test]
fn metadata_is_put_patched_and_read() {
    let vm = Waiting::start(&["--mmds-size-limit", "30"]);
    let get = || vm.call("GET", "/mmds", Value::Null).unwrap();
    let refused = |method: &str, body: Value| vm.call(method, "/mmds", body).unwrap_err();
    assert_eq!(get(), json!({}));
    assert_eq!(refused("PATCH", json!({ "a": 1 })), "The MMDS data store is not initialized.");
    for contents in [json!([1, "two"]), json!("text"), json!({ "a": { "b": "c" } })] {
        vm.call("PUT", "/mmds", contents.clone()).unwrap();
        assert_eq!(get(), contents);
    }
    vm.call("PATCH", "/mmds", json!({ "a": { "b": null, "c": 1 }, "d": true })).unwrap();
    assert_eq!(get(), json!({ "a": { "c": 1 }, "d": true }));
    let long = json!({ "long": "x".repeat(30) });
    for method in ["PUT", "PATCH"] {
        assert_eq!(refused(method, long.clone()), "The MMDS patch request doesn't fit.");
        let (head, body) = (format!("{method} /mmds HTTP/1.1\r\n"), long.to_string());
        let answer = vm.raw(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
        assert!(answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{answer}");
    }
    assert!(vm.raw(b"PUT /mmds HTTP/1.1\r\nContent-Length: 1\r\n\r\n{").contains("the body is not JSON"));
    assert_eq!(get(), json!({ "a": { "c": 1 }, "d": true }));
    assert!(vm.call("GET", "/mmds/config", Value::Null).unwrap_err().contains("Known here: PUT."));
}

#[test]
fn the_first_metadata_may_come_from_a_file() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("metadata.json");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "{ \"a\": [1, 2] }").unwrap();
    let vm = Waiting::start(&["--metadata", path]);
    assert_eq!(vm.call("GET", "/mmds", Value::Null).unwrap(), json!({ "a": [1, 2] }));
}

#[test]
fn every_answer_says_how_long_it_took() {
    let vm = Waiting::start(&[]);
    // The console's 101 needs a VM that runs: tests/guest/names.rs.
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET /x HTTP/1.1\r\n\r\n",
        "nonsense\r\n\r\n",
        "GET /vm/events HTTP/1.1\r\n\r\n",
        "GET /vm/console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: vmm-console\r\n\r\n",
    ] {
        let mut stream = vm.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 4096];
        let len = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..len]);
        let value = answer.lines().find_map(|line| line.strip_prefix("Server-Timing: total;dur=")).expect("a header");
        assert!(value.parse::<f64>().unwrap() >= 0.0, "{value}");
    }
}

#[test]
fn flags_and_requests_edit_the_same_configuration() {
    let vm = Waiting::start(&["--memory", "64M", "--cpus", "2", "--disk", "disk"]);
    vm.call("PATCH", "/machine-config", json!({ "vcpu_count": 1 })).unwrap();
    let config = vm.call("GET", "/vm/config", Value::Null).unwrap();
    assert_eq!(config["machine-config"]["mem_size_mib"], 64);
    assert_eq!(config["machine-config"]["vcpu_count"], 1);
    assert_eq!(config["drives"][0]["drive_id"], "disk1");
    assert!(config.get("boot-source").is_none() && config.get("entropy").is_none());
}

#[test]
fn a_request_that_is_no_request_harms_nobody() {
    let vm = Waiting::start(&[]);
    let put = |headers: &str, body: &str| format!("PUT /entropy HTTP/1.1\r\n{headers}\r\n\r\n{body}");
    let long = put("Content-Length: 60000", &"x".repeat(60_000));
    for (bytes, part) in [
        (&b"hello\r\n\r\n"[..], "HTTP/1.1 400 "),
        (put("Content-Length: 2", "{").as_bytes(), ""),
        (put("Content-Length: 1", "{").as_bytes(), "PUT /entropy: the body is not JSON"),
        (put("Content-Length: 2", "{}").as_bytes(), "HTTP/1.1 204 "),
        (&[put("Content-Length: 4", "").as_bytes(), b"\"\xff\xfe\""].concat(), "the body is not JSON"),
        (put("Content-Length: nine", "").as_bytes(), "Content-Length is not one number"),
        (put("Transfer-Encoding: chunked", "0\r\n\r\n").as_bytes(), "HTTP/1.1 501 "),
        (long.as_bytes(), "HTTP/1.1 413 "),
        (&[0; 5000], "HTTP/1.1 400 "),
        (b"", ""),
    ] {
        let answer = vm.raw(bytes);
        assert!(answer.contains(part), "{:?}: {answer}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]));
        assert!(part.is_empty() == answer.is_empty(), "{answer}");
        vm.is_well();
    }
}

#[test]
fn requests_may_come_together_or_byte_by_byte() {
    let vm = Waiting::start(&[]);
    let get = "GET /version HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(vm.raw(get.repeat(50).as_bytes()).matches("HTTP/1.1 200 OK").count(), 50);
    let mut slow = vm.connect();
    for byte in get.bytes() {
        slow.write_all(&[byte]).unwrap();
        vm.is_well();
    }
    let mut first = [0; 15];
    slow.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    let mut waits = vm.connect();
    waits.write_all(b"PUT /entropy HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").unwrap();
    let mut proceed = [0; 25];
    waits.read_exact(&mut proceed).unwrap();
    assert_eq!(&proceed, b"HTTP/1.1 100 Continue\r\n\r\n");
    waits.write_all(b"{}").unwrap();
    waits.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 204 No");
}

/// Clients that are silent, that vanish in the middle, that never read their answers, and a hundred that are well.
#[test]
fn clients_do_not_disturb_each_other() {
    let vm = Waiting::start(&[]);
    let silent: Vec<_> = (0..300).map(|_| vm.connect()).collect();
    for _ in 0..50 {
        vm.connect().write_all(b"PUT /entropy HTTP/1.1\r\nContent-Length: 100\r\n\r\n{").unwrap();
    }
    let mut greedy = vm.connect();
    greedy.set_nonblocking(true).unwrap();
    let request = b"GET /vm/config HTTP/1.1\r\n\r\n".repeat(100);
    while greedy.write(&request).is_ok() {}
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..100).map(|_| scope.spawn(|| (0..10).for_each(|_| vm.is_well()))).collect();
        calls.into_iter().for_each(|call| call.join().unwrap());
    });
    drop(silent);
    vm.is_well();
}

/// A start that fails leaves everything as it was, and the next one may succeed.
#[test]
fn a_start_that_fails_is_no_end() {
    let vm = Waiting::start(&[]);
    vm.call("PUT", "/boot-source", json!({ "kernel_image_path": "kernel" })).unwrap();
    for _ in 0..2 {
        vm.call("PUT", "/actions", json!({ "action_type": "InstanceStart" })).expect_err("that is no kernel");
        vm.is_well();
    }
}

#[test]
fn its_socket_goes_with_it_and_a_left_one_is_replaced() {
    let mut vm = Waiting::start(&[]);
    let second = Command::new(env!("CARGO_BIN_EXE_vmm")).arg("--api-sock").arg(vm.socket()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process listens there"));
    vm.is_well();
    vm.process.kill().unwrap();
    vm.process.wait().unwrap();
    assert!(vm.socket().exists(), "who is killed leaves it");
    let mut again = Command::new(env!("CARGO_BIN_EXE_vmm")).arg("--api-sock").arg(vm.socket()).spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    while UnixStream::connect(vm.socket()).is_err() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    vm.call("PUT", "/actions", json!({ "action_type": "Stop" })).unwrap();
    assert_eq!(again.wait().unwrap().code(), Some(12));
    assert!(!vm.socket().exists());
}

#[test]
fn ctl_speaks_the_same_api() {
    let mut vm = Waiting::start(&["--id", "one"]);
    let socket = vm.socket();
    let ctl = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_vmm")).arg("ctl").arg(&socket).args(words).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (status, out, _) = ctl(&["state"]);
    assert_eq!((status, serde_json::from_str::<Value>(&out).unwrap()["id"].clone()), (Some(0), json!("one")));
    let (status, out, err) = ctl(&["pause"]);
    assert_eq!((status, out.as_str()), (Some(1), ""));
    assert!(err.contains("the VM is not started"), "{err}");
    let (status, out, err) = ctl(&["console"]);
    assert!(status == Some(1) && out.is_empty() && err.contains("the VM is not started"), "{err}");
    let (status, _, err) = ctl(&["update", "balloon", "amount_mib=1"]);
    assert!(status == Some(1) && err.contains("not started"), "{err}");
    assert_eq!(ctl(&["stop"]), (Some(0), String::new(), String::new()));
    assert_eq!(vm.process.wait().unwrap().code(), Some(12));
    let (status, _, err) = ctl(&["state"]);
    assert!(status == Some(1) && err.contains("No such file"), "{err}");
}
