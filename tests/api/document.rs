//! docs/api.yaml against the program: what it refers to, the keys of bodies, what is in answers. A VM that is not started has
//! them all; the keys of changes of running devices are those of the configuration, which is checked here, and an unknown one
//! is refused by a running VM in tests/guest/api.rs; answers of a running VM are in tests/guest/document.rs.

use serde_json::{Map, Value, json};

use crate::operations::{Operation, operations};
use crate::schema::Documents;
use crate::{NOT_STARTED, Waiting};

/// A key that nothing has.
const STRANGE: &str = "strange";

/// The schema of what an operation takes.
fn body<'a>(documents: &'a Documents, operation: &'a Operation) -> Option<&'a Value> {
    let schema = operation.said["requestBody"]["content"]["application/json"].get("schema");
    schema.map(|schema| documents.follow(schema))
}

/// All references of a document.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(members) => {
            found.extend(members.get("$ref").and_then(Value::as_str));
            members.values().for_each(|member| references(member, found));
        }
        _ => {}
    }
}

#[test]
fn every_reference_is_to_something_and_everything_is_referred_to() {
    let documents = Documents::read();
    let mut found = Vec::new();
    references(&documents.api, &mut found);
    assert!(found.len() > 100, "{}", found.len());
    for kind in ["responses", "schemas"] {
        for name in documents.api["components"][kind].as_object().expect("components").keys() {
            assert!(found.contains(&format!("#/components/{kind}/{name}").as_str()), "{kind} {name}");
        }
    }
    references(&documents.config, &mut found);
    let lost: Vec<_> = found.iter().filter(|reference| documents.find(reference).is_none()).collect();
    assert!(lost.is_empty(), "{lost:?}");
    let keys =
        |schema: &Value| schema["properties"].as_object().expect("properties").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&documents.api["components"]["schemas"]["Config"]), keys(&documents.config));
}

/// A VM with one of everything that is configured.
fn full() -> Waiting {
    let vm = Waiting::start(&["--memory", "256M", "--disk", "disk", "--share", ".:work", "--id", "full"]);
    let limits = json!({ "ops": { "size": 1, "refill_time": 1 } });
    for (path, body) in [
        ("/network-interfaces/eth0", json!({ "iface_id": "eth0", "host_dev_name": "tap0", "rx_rate_limiter": limits })),
        ("/pmem/m", json!({ "id": "m", "path_on_host": "kernel", "private": true })),
        ("/cpu-config", json!({ "msr_modifiers": [{ "addr": "0x10a", "bitmap": "0b1" }] })),
        ("/vsock", json!({ "guest_cid": 3, "uds_path": "v.sock" })),
        ("/entropy", json!({ "rate_limiter": limits })),
        ("/logger", json!({ "log_path": "log", "levels": { "api": "Info" } })),
        ("/balloon", json!({ "amount_mib": 1 })),
        ("/metrics", json!({ "metrics_path": "m", "properties": { "host": "h" } })),
        ("/mmds/config", json!({ "network_interfaces": ["eth0"] })),
    ] {
        vm.call("PUT", path, body).expect("it is right");
    }
    vm
}

/// Every answer with JSON has what its schema requires, and nothing that it does not name.
#[test]
fn answers_are_as_the_document_says() {
    let documents = Documents::read();
    let vm = full();
    for step in ["without a kernel", "with a kernel"] {
        let mut answered = Vec::new();
        for operation in operations() {
            let schema = &operation.said["responses"]["200"]["content"]["application/json"]["schema"];
            if schema.is_null() {
                continue;
            }
            match vm.call(&operation.method, &operation.path, Value::Null) {
                Ok(answer) => {
                    assert_eq!(documents.faults(schema, &answer, &operation.path), [""; 0], "{step}");
                    answered.push(operation.path);
                }
                Err(text) => assert!(operation.says("After the start") && text == NOT_STARTED, "{text}"),
            }
        }
        assert_eq!(answered, ["/", "/balloon", "/machine-config", "/mmds", "/version", "/vm/config"], "{step}");
        vm.call("PUT", "/boot-source", json!({ "kernel_image_path": "kernel" })).unwrap();
    }
    let config = vm.call("GET", "/vm/config", Value::Null).unwrap();
    assert_eq!(documents.faults(&documents.config, &config, ""), [""; 0], "it is a configuration now");
}

/// The check above finds what it looks for.
#[test]
fn wrong_answers_are_found() {
    let documents = Documents::read();
    let faults = |schema: &str, value: Value| documents.faults(&json!({ "$ref": schema }), &value, "it");
    let fault = "#/components/schemas/Fault";
    assert_eq!(faults(fault, json!({ "fault_message": "x" })), [""; 0]);
    assert_eq!(faults(fault, json!({ "more": 1 })), ["it.fault_message is missing", "it.more is not known"]);
    assert!(faults(fault, json!({ "fault_message": 1 }))[0].starts_with("it.fault_message: 1 is not "));
    let config = |value: Value| faults("#/components/schemas/Config", value);
    assert_eq!(config(json!({ "drives": [{ "path_on_host": "a" }] })), ["it.drives[0].drive_id is missing"]);
    assert_eq!(config(json!({ "vsock": { "x": 1 } })), ["it.vsock: {\"x\":1} is of no kind that is known"]);
    assert_eq!(config(json!({ "on-reboot": "dance" })).len(), 1);
}

/// Every key of a body is known, each key that the document requires is required, and no other is taken.
#[test]
fn bodies_are_as_the_document_says() {
    let documents = Documents::read();
    let all = operations();
    let vm = full();
    let mut early = Vec::new();
    for operation in &all {
        let Some(schema) = body(&documents, operation) else { continue };
        let Some(keys) = schema["properties"].as_object() else {
            assert!(operation.path == "/mmds", "{} takes anything", operation.path);
            continue;
        };
        assert_eq!(schema["additionalProperties"], false, "{} {}", operation.method, operation.path);
        let (path, name) = named(&operation.path);
        let refused = |more: Value| {
            let mut body = name.clone();
            body.extend(more.as_object().cloned().unwrap_or_default());
            vm.call(&operation.method, &path, Value::Object(body))
                .expect_err(&format!("{} {path} {more}", operation.method))
        };
        let strange = refused(json!({ STRANGE: 1 }));
        if operation.method == "PATCH" && strange == NOT_STARTED {
            early.push(path);
            let put = all
                .iter()
                .find(|it| it.method == "PUT" && it.path == operation.path)
                .and_then(|it| body(&documents, it));
            let known = put.unwrap_or_else(|| panic!("PUT {}", operation.path))["properties"].as_object().unwrap();
            assert!(keys.keys().all(|key| known.contains_key(key)), "{keys:?}");
            continue;
        }
        assert!(strange.contains(&format!("{STRANGE}: unknown key")), "{} {path}: {strange}", operation.method);
        let known = strange.lines().find_map(|line| line.split_once("known here: ")).expect("what is known").1;
        assert!(known.split(", ").all(|key| keys.contains_key(key)), "{} {path}: {known}", operation.method);
        for (key, said) in keys {
            let text = refused(json!({ key: [[]] }));
            assert!(!text.contains("unknown key"), "{} {path}: {text}", operation.method);
            if let Some(known) = said["enum"].as_array() {
                let names: Vec<_> = known.iter().map(|name| name.as_str().expect("a text")).collect();
                assert!(text.contains(&format!("must be one of {}, not", names.join(", "))), "{names:?}: {text}");
            }
        }
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let text = vm.call(&operation.method, &path, json!({})).unwrap_err();
            let lines = if name.contains_key(key) { text } else { refused(json!({})) };
            assert!(lines.lines().any(|it| it.contains(key) && it.contains("is missing")), "{key}: {lines}");
        }
    }
    assert_eq!(early, ["/drives/disk1", "/entropy", "/network-interfaces/eth0", "/pmem/m", "/serial", "/shares/work"]);
}

/// A path with a name that [`full`] has, and the part of the body that repeats it.
fn named(path: &str) -> (String, Map<String, Value>) {
    let Some((before, key)) = path.split_once('{') else { return (path.to_owned(), Map::new()) };
    let (key, name) = (
        key.trim_end_matches('}'),
        match before {
            "/drives/" => "disk1",
            "/network-interfaces/" => "eth0",
            "/pmem/" => "m",
            "/shares/" => "work",
            _ => panic!("{path}"),
        },
    );
    (format!("{before}{name}"), Map::from_iter([(key.to_owned(), name.into())]))
}

/// Whatever has a body says that it may be too long, and refuses it then; whatever is asked may be refused.
#[test]
fn every_body_may_be_too_long() {
    let vm = Waiting::start(&["--http-api-max-payload-size", "100"]);
    for operation in operations() {
        let Operation { method, path, said } = &operation;
        assert!(said["responses"]["400"].is_object(), "{method} {path}");
        let has_body = said["requestBody"].is_object();
        assert_eq!(said["responses"]["413"].is_object(), has_body, "{method} {path}");
        if has_body {
            let answer = vm.raw(format!("{method} {path} HTTP/1.1\r\nContent-Length: 101\r\n\r\n").as_bytes());
            assert!(answer.starts_with("HTTP/1.1 413 "), "{method} {path}: {answer}");
        }
    }
}
