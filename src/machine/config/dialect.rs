//! Firecracker's keys for what is not here yet: refused by name, or taken out where they ask for nothing. Pure.
//!
//! Firecracker writes every key into its own sample files, with null for what is not wanted; those must be accepted.
//! Source: Firecracker, docs/getting-started.md and src/firecracker/swagger/firecracker.yaml.

use serde_json::{Map, Value};

use super::fault::Problem;
use super::path::JsonPath;

/// Firecracker's keys without a meaning here, by the object that they are in.
const LATER: [(&str, &[&str]); 3] = [("", &["memory-hotplug"]), ("cpu-config", &ARM), ("drives", &["socket"])];

/// Parts of `cpu-config` that are about another kind of processor.
const ARM: [&str; 2] = ["reg_modifiers", "vcpu_features"];

/// The names of log levels as Firecracker reads them: in any case, and with a short form.
const LEVELS: [(&str, &str); 7] = [
    ("off", "Off"),
    ("error", "Error"),
    ("warning", "Warning"),
    ("warn", "Warning"),
    ("info", "Info"),
    ("debug", "Debug"),
    ("trace", "Trace"),
];

/// Takes out Firecracker's keys that ask for nothing and brings its spellings into one form. What asks for something
/// that is not here is a problem, and is taken out too.
pub(super) fn settle(document: &mut Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    let Value::Object(document) = document else { return problems };
    for (place, keys) in LATER {
        if place.is_empty() {
            take_out(document, keys, &JsonPath::ROOT, &mut problems);
            continue;
        }
        let path = JsonPath::keys([place]);
        match document.get_mut(place) {
            Some(Value::Object(object)) => take_out(object, keys, &path, &mut problems),
            Some(Value::Array(list)) => {
                for (index, element) in list.iter_mut().enumerate() {
                    if let Value::Object(object) = element {
                        take_out(object, keys, &path.index(index), &mut problems);
                    }
                }
            }
            _ => {}
        }
    }
    if let Some(Value::Object(logger)) = document.get_mut("logger") {
        logger.get_mut("level").into_iter().for_each(settle_level);
        let levels = logger.get_mut("levels").and_then(Value::as_object_mut);
        levels.into_iter().flat_map(Map::values_mut).for_each(settle_level);
    }
    problems
}

fn settle_level(level: &mut Value) {
    if let Value::String(level) = level
        && let Some((_, name)) = LEVELS.iter().find(|(plain, _)| level.eq_ignore_ascii_case(plain))
    {
        *level = (*name).to_owned();
    }
}

fn take_out(object: &mut Map<String, Value>, keys: &[&str], path: &JsonPath, problems: &mut Vec<Problem>) {
    for key in keys {
        let Some(value) = object.remove(*key) else { continue };
        let asks_nothing = match &value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Bool(wanted) => !wanted,
            _ => false,
        };
        if !asks_nothing {
            let text = match ARM.contains(key) {
                true => format!("`{key}` is for Arm processors; this machine is x86-64"),
                false => format!("`{key}` (Firecracker's) is not in this version of vmm"),
            };
            problems.push(Problem::new(path.key(key), text));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_asks_for_nothing_is_taken_out() {
        let mut document = json!({
            "memory-hotplug": null, "network-interfaces": [],
            "machine-config": { "smt": false }, "cpu-config": { "reg_modifiers": [] },
            "drives": [{ "drive_id": "a", "socket": null }],
            "logger": { "level": "WARN", "levels": { "api": "trace" } }, "unknown": null
        });
        assert_eq!(settle(&mut document), []);
        let left = json!({
            "machine-config": { "smt": false }, "cpu-config": {}, "drives": [{ "drive_id": "a" }],
            "logger": { "level": "Warning", "levels": { "api": "Trace" } }, "network-interfaces": [], "unknown": null
        });
        assert_eq!(document, left);
    }

    #[test]
    fn what_asks_for_something_is_refused_by_name() {
        let mut document = json!({
            "memory-hotplug": { "total_size_mib": 1 }, "cpu-config": { "vcpu_features": [{}] },
            "drives": [{}, { "socket": "x" }]
        });
        let problems: Vec<_> = settle(&mut document).into_iter().map(|p| format!("{}: {}", p.path, p.text)).collect();
        let refused = |path: &str, key: &str| format!("{path}: `{key}` (Firecracker's) is not in this version of vmm");
        assert_eq!(
            problems,
            [
                refused("memory-hotplug", "memory-hotplug"),
                "cpu-config.vcpu_features: `vcpu_features` is for Arm processors; this machine is x86-64".into(),
                refused("drives[1].socket", "socket"),
            ]
        );
    }
}
