//! The metadata service, read by programs of a guest, beside ordinary traffic.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::api::Remote;
use crate::disk::{folder, noise};
use crate::net::{guest_side, ip, md5, sender};
use crate::user_net::uplink;
use crate::vm::Vm;

/// Asks by one request and shows status line and body, as `name=STATUS BODY`; the lines of a body are joined by `+`.
const ASK: &str = r#"ask() {
    name=$1; shift; printf '%s\r\n' "$@" '' | nc $SERVICE 80 | tr -d '\r' >/tmp/answer
    echo $name=$(sed -n '1s/[^ ]* //p' /tmp/answer) $(sed '1,/^$/d' /tmp/answer | tr '\n' '+')
}
"#;

fn contents() -> Value {
    json!({ "latest": { "meta-data": { "ami-id": "ami-1", "hosts": { "a": "b" } }, "user-data": "#!/bin/sh" } })
}

fn metadata(folder: &Path, contents: &Value) -> PathBuf {
    let file = folder.join("metadata.json");
    std::fs::write(&file, contents.to_string()).expect("writing a file");
    file
}

/// Many requests, by every CPU and its queue pair, while other bytes come through the TAP device.
fn answers(net: u8, pairs: u8, service: &str, more: &str, json: &str) {
    let folder = folder();
    let file = metadata(folder.path(), &contents());
    let tap = format!("vmmtest{net}");
    let config = format!("mmds-config={{\"network_interfaces\": [\"eth0\"]{more}}}");
    let script = format!("{}SERVICE={service}\n{ASK}", guest_side(net))
        + &format!(
            r#"ip route add $SERVICE dev eth0; echo READY; read go
            nc 10.9.{net}.1 7002 </dev/null >/tmp/in & each=0
            for i in $(seq 30); do
                [ "$(taskset $((1 << i % {pairs})) wget -q -O - http://$SERVICE/latest/user-data)" = '#!/bin/sh' ] && each=$((each + 1))
            done
            wait; echo each=$each; echo in=$(md5sum </tmp/in | cut -d' ' -f1)
            ask keys 'GET /latest/meta-data/ HTTP/1.0'
            ask json 'GET /latest/meta-data HTTP/1.1' 'Accept: application/json'
            ask none 'GET /nothing HTTP/1.1'
            ask post 'POST / HTTP/1.1' 'Content-Length: 0'
            arping -c 1 -I eth0 $SERVICE >/dev/null && echo arp=yes"#
        );
    let options = format!("tap={tap},mac=02:00:00:00:09:{net:02x},queue-pairs={pairs}");
    let args = ["--net", &options, "--set", &config, "--metadata", file.to_str().expect("a plain name")];
    let mut vm = Vm::tuned().args(args).args(["--cpus", &pairs.to_string()]).run(&script).pipe().start();
    vm.expect("READY");
    ip(&format!("addr add 10.9.{net}.1/24 dev {tap}"));
    ip(&format!("link set {tap} up"));
    let bytes = noise(8 << 20);
    let sum = md5(&bytes);
    let to_guest = sender(TcpListener::bind((format!("10.9.{net}.1"), 7002)).expect("listening"), bytes);
    vm.send("\n");
    let ended = vm.ends(0);
    to_guest.join().expect("all was sent");
    assert_eq!((ended.number("each"), ended.value("in")), (30, sum.as_str()));
    assert_eq!(ended.value("keys"), "200 OK ami-id+hosts/");
    assert_eq!(ended.value("json"), json);
    assert_eq!(ended.value("none"), "404 Not Found Resource not found: /nothing.");
    assert_eq!(ended.value("post"), "405 Method Not Allowed Not allowed HTTP method.");
    assert_eq!(ended.value("arp"), "yes");
}

#[test]
fn anyone_is_answered_and_other_traffic_goes_on() {
    answers(41, 1, "169.254.169.254", "", "200 OK {\"ami-id\":\"ami-1\",\"hosts\":{\"a\":\"b\"}}");
    let more = ", \"ipv4_address\": \"169.254.42.1\", \"imds_compat\": true";
    answers(42, 2, "169.254.42.1", more, "200 OK ami-id+hosts/");
}

/// The way to the service leads past a router here, which never hears of it.
#[test]
fn with_v2_a_token_is_needed() {
    let script = format!("SERVICE=169.254.169.254\n{ASK}{}", guest_side(43))
        + r#"ip route add default via 10.9.43.1; echo READY; read go
        ask early 'GET /a HTTP/1.1'
        ask forwarded 'PUT /latest/api/token HTTP/1.1' 'X-metadata-token-ttl-seconds: 60' 'X-Forwarded-For: 10.0.0.1'
        ask token 'PUT /latest/api/token HTTP/1.1' 'X-aws-ec2-metadata-token-ttl-seconds: 60' | tee /tmp/token
        ask short 'PUT /latest/api/token HTTP/1.1' 'X-metadata-token-ttl-seconds: 1' >/tmp/short
        TOKEN=$(sed 's/.* //' /tmp/token) SHORT=$(sed 's/.* //' /tmp/short)
        ask first 'GET /a HTTP/1.1' "X-metadata-token: $TOKEN"
        echo CHANGE; read go; sleep 1
        ask second 'GET /a HTTP/1.1' "X-aws-ec2-metadata-token: $TOKEN"
        ask late 'GET /a HTTP/1.1' "X-metadata-token: $SHORT""#;
    let config = r#"mmds-config={"network_interfaces": ["eth0"], "version": "V2"}"#;
    let args = ["--net", "tap=vmmtest43,mac=02:00:00:00:09:2b", "--set", config];
    let mut remote = Remote::start(Vm::tuned().args(args).run(&script).pipe());
    remote.vm.expect("READY");
    ip("addr add 10.9.43.1/24 dev vmmtest43");
    ip("link set vmmtest43 up");
    remote.call("PUT", "/mmds", json!({ "a": "one" }));
    let refused = remote.try_call("PUT", "/mmds/config", &json!({ "network_interfaces": ["eth0"] }));
    assert!(refused.is_err_and(|text| text.contains("started already")));
    remote.vm.send("\n");
    remote.vm.expect("CHANGE");
    remote.call("PATCH", "/mmds", json!({ "a": "two" }));
    let page = remote.call("GET", "/metrics", Value::Null);
    for line in ["vmm_mmds_requests_total 5\n", "vmm_mmds_rx_no_token_total 1\n"] {
        assert!(page.as_str().is_some_and(|page| page.contains(line)), "{line}: {page}");
    }
    remote.vm.send("\n");
    let ended = remote.vm.ends(0);
    assert!(ended.value("early").starts_with("401 Unauthorized No MMDS token"), "{}", ended.value("early"));
    assert!(ended.value("forwarded").starts_with("400 Bad Request"), "{}", ended.value("forwarded"));
    assert!(ended.value("token").starts_with("200 OK "), "{}", ended.value("token"));
    assert_eq!((ended.value("first"), ended.value("second")), ("200 OK one", "200 OK two"));
    assert_eq!(ended.value("late"), "401 Unauthorized MMDS token not valid.");
}

/// More than one packet, on an interface that is no TAP device, and without an address of the guest's own making.
#[test]
fn long_answers_arrive_past_passt() {
    uplink();
    let folder = folder();
    let text: String = (0..10_000).map(|number| format!("{number:05}")).collect();
    let sum = md5(text.as_bytes());
    let file = metadata(folder.path(), &json!({ "long": text }));
    let script = "ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0; ip route add 169.254.169.254 dev eth0
        for i in 1 2 3; do echo sum$i=$(wget -q -O - http://169.254.169.254/long | md5sum | cut -d' ' -f1); done";
    let config = r#"mmds-config={"network_interfaces": ["eth0"]}"#;
    let args = ["--net", "user", "--set", config, "--metadata", file.to_str().expect("a plain name")];
    let ended = Vm::tuned().args(args).run(script).start().ends(0);
    for name in ["sum1", "sum2", "sum3"] {
        assert_eq!(ended.value(name), sum);
    }
}
