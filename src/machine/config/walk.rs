//! Compares a document with the JSON Schema of the configuration and says everything that does not fit. Pure.
//!
//! serde stops at the first fault and knows no places; so where it fails, this walk explains. It also mends the document
//! as it goes (null means absent; what is wrong is replaced by something harmless), so that the checks of meaning can
//! run on the rest and all faults come together.

use serde_json::{Map, Value};

use super::edit::describe;
use super::fault::Problem;
use super::nearest::nearest;
use super::path::JsonPath;

/// Walks `document`, mends it and returns what was wrong.
pub(super) fn explain(document: &mut Value, schema: &Value) -> Vec<Problem> {
    let mut walk = Walk { root: schema, problems: Vec::new() };
    walk.value(document, schema, &JsonPath::ROOT);
    walk.problems
}

struct Walk<'s> {
    root: &'s Value,
    problems: Vec<Problem>,
}

impl<'s> Walk<'s> {
    fn value(&mut self, value: &mut Value, schema: &'s Value, path: &JsonPath) {
        let schema = resolve(self.root, schema);
        let wrong = match kind(schema) {
            "object" => match value {
                Value::Object(object) => return self.object(object, schema, path),
                _ => Some("an object in braces".to_owned()),
            },
            "array" => match value {
                Value::Array(list) => {
                    let Some(items) = schema.get("items") else { return };
                    list.iter_mut().enumerate().for_each(|(index, item)| self.value(item, items, &path.index(index)));
                    return;
                }
                _ => Some("a list in brackets".to_owned()),
            },
            "integer" => not_in_range(value, schema),
            "boolean" => (!value.is_boolean()).then(|| "true or false".to_owned()),
            "string" => not_in_choice(value, schema),
            _ => None,
        };
        if let Some(wanted) = wrong {
            self.problems.push(Problem::new(path.clone(), format!("must be {wanted}, not {}", shown(value))));
            *value = placeholder(self.root, schema);
        }
    }

    fn object(&mut self, object: &mut Map<String, Value>, schema: &'s Value, path: &JsonPath) {
        // Any key, and values of one kind.
        if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
            return object.iter_mut().for_each(|(key, value)| self.value(value, values, &path.key(key)));
        }
        let none = Map::new();
        let known = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let (problems, root) = (&mut self.problems, self.root);
        object.retain(|key, value| {
            if !known.contains_key(key) {
                problems.push(Problem::new(path.key(key), unknown(key, known)));
                return false;
            }
            !value.is_null()
        });
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        for key in required {
            let Some(wanted) = known.get(key).filter(|_| !object.contains_key(key)) else { continue };
            let meaning = wanted.get("description").and_then(Value::as_str).unwrap_or_default();
            let meaning = meaning.split(". ").next().unwrap_or_default().trim_end_matches('.');
            problems.push(Problem::new(path.key(key), format!("is missing ({meaning})")));
            object.insert(key.to_owned(), placeholder(root, wanted));
        }
        let Some(known) = schema.get("properties").and_then(Value::as_object) else { return };
        for (key, value) in object {
            if let Some(schema) = known.get(key) {
                self.value(value, schema, &path.key(key));
            }
        }
    }
}

/// Follows references and takes the branch of an optional value that is not null.
fn resolve<'s>(root: &'s Value, mut schema: &'s Value) -> &'s Value {
    for _ in 0..8 {
        let next = if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            root.pointer(name.trim_start_matches('#'))
        } else if let Some(branches) = schema.get("anyOf").and_then(Value::as_array) {
            branches.iter().find(|branch| branch.get("type").and_then(Value::as_str) != Some("null"))
        } else {
            None
        };
        match next {
            Some(next) => schema = next,
            None => break,
        }
    }
    schema
}

/// The type that a schema asks for, null aside.
fn kind(schema: &Value) -> &str {
    match schema.get("type") {
        Some(Value::String(kind)) => kind,
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or(""),
        _ if schema.get("oneOf").is_some() || schema.get("enum").is_some() => "string",
        _ => "",
    }
}

/// The texts that a schema allows; none: any text.
fn choices(schema: &Value) -> Vec<&str> {
    let plain = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let documented = schema.get("oneOf").and_then(Value::as_array).into_iter().flatten();
    // schemars puts variants without documentation into one branch with an `enum`.
    documented
        .flat_map(|branch| {
            branch.get("const").into_iter().chain(branch.get("enum").and_then(Value::as_array).into_iter().flatten())
        })
        .chain(plain)
        .filter_map(Value::as_str)
        .collect()
}

fn not_in_choice(value: &Value, schema: &Value) -> Option<String> {
    let choices = choices(schema);
    match value.as_str() {
        Some(text) if choices.is_empty() || choices.contains(&text) => None,
        None if choices.is_empty() => Some("a text in quotes".to_owned()),
        _ => Some(alternatives(&choices)),
    }
}

fn not_in_range(value: &Value, schema: &Value) -> Option<String> {
    let bound = |name| schema.get(name).and_then(Value::as_f64).map(|bound| bound as i128);
    let Some(number) = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from)) else {
        return Some("a whole number".to_owned());
    };
    let bits = match schema.get("format").and_then(Value::as_str) {
        Some("uint16") => u16::MAX.into(),
        Some("uint32") => u32::MAX.into(),
        _ => i128::from(u64::MAX),
    };
    let (least, most) = (bound("minimum").unwrap_or(0), bound("maximum").unwrap_or(bits));
    match () {
        () if number < least => Some(format!("at least {least}")),
        () if number > most => Some(format!("at most {most}")),
        () => None,
    }
}

fn unknown(key: &str, known: &Map<String, Value>) -> String {
    match nearest(key, known.keys().map(String::as_str)) {
        Some(name) => format!("unknown key; did you mean `{name}`?"),
        None if known.is_empty() => "unknown key; none is known here".to_owned(),
        None => {
            let names: Vec<_> = known.keys().map(String::as_str).collect();
            format!("unknown key; known here: {}", names.join(", "))
        }
    }
}

fn alternatives(choices: &[&str]) -> String {
    let quoted: Vec<_> = choices.iter().map(|choice| format!("\"{choice}\"")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// A wrong value, short enough for one line.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => describe(value).to_owned(),
        _ => {
            let text = value.to_string();
            match text.char_indices().nth(60) {
                Some((at, _)) => format!("{}…", &text[..at]),
                None => text,
            }
        }
    }
}

/// Something harmless of the right type.
fn placeholder(root: &Value, schema: &Value) -> Value {
    let schema = resolve(root, schema);
    match kind(schema) {
        "object" => {
            let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
            let members = required.filter_map(Value::as_str).map(|key| {
                let member = schema.get("properties").and_then(|known| known.get(key)).unwrap_or(&Value::Null);
                (key.to_owned(), placeholder(root, member))
            });
            Value::Object(members.collect())
        }
        "array" => Value::Array(Vec::new()),
        "integer" => schema.get("minimum").cloned().unwrap_or_else(|| 0.into()),
        "boolean" => Value::Bool(false),
        _ => Value::from(choices(schema).first().copied().unwrap_or("x")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::VmConfig;

    fn explained(mut document: Value) -> Vec<String> {
        let problems = explain(&mut document, &VmConfig::schema());
        serde_json::from_value::<VmConfig>(document).expect("the walk mends what it complains about");
        problems.into_iter().map(|p| format!("{}: {}", p.path, p.text)).collect()
    }

    fn with(extra: Value) -> Vec<String> {
        let mut document = json!({ "boot-source": { "kernel_image_path": "k" } });
        for (key, value) in extra.as_object().unwrap() {
            document[key] = value.clone();
        }
        explained(document)
    }

    #[test]
    fn null_is_absent() {
        assert!(
            with(json!({ "machine-config": null, "drives": null, "on-reboot": null, "serial": { "enabled": null } }))
                .is_empty()
        );
    }

    #[test]
    fn every_wrong_type_is_said() {
        for (document, wanted) in [
            (json!({ "machine-config": [] }), "machine-config: must be an object in braces, not a list"),
            (json!({ "drives": {} }), "drives: must be a list in brackets, not an object"),
            (json!({ "drives": ["a"] }), "drives[0]: must be an object in braces, not \"a\""),
            (json!({ "machine-config": { "smt": 1 } }), "machine-config.smt: must be true or false, not 1"),
            (
                json!({ "machine-config": { "vcpu_count": "2" } }),
                "machine-config.vcpu_count: must be a whole number, not \"2\"",
            ),
            (
                json!({ "machine-config": { "vcpu_count": 1.5 } }),
                "machine-config.vcpu_count: must be a whole number, not 1.5",
            ),
            (
                json!({ "machine-config": { "vcpu_count": -1 } }),
                "machine-config.vcpu_count: must be at least 1, not -1",
            ),
            (
                json!({ "machine-config": { "vcpu_count": 4_294_967_296u64 } }),
                "machine-config.vcpu_count: must be at most 4096, not 4294967296",
            ),
            (
                json!({ "boot-source": { "kernel_image_path": 7 } }),
                "boot-source.kernel_image_path: must be a text in quotes, not 7",
            ),
            (json!({ "on-reboot": "stop" }), "on-reboot: must be \"exit\" or \"restart\", not \"stop\""),
            (
                json!({ "machine-config": { "huge_pages": "1G" } }),
                "machine-config.huge_pages: must be \"None\", \"Transparent\" or \"2M\", not \"1G\"",
            ),
        ] {
            assert_eq!(with(document), [wanted]);
        }
    }

    #[test]
    fn unknown_and_missing_keys_are_named() {
        assert_eq!(
            with(json!({ "machine-config": { "vcpus": 2 }, "disk": [], "drives": [{ "drive": "a" }] })),
            [
                "disk: unknown key; known here: balloon, boot-source, cpu-config, drives, entropy, gdb, keyboard, logger, machine-config, metrics, mmds-config, network-interfaces, on-reboot, pmem, serial, shares, snapshot, vsock",
                "drives[0].drive: unknown key; did you mean `drive_id`?",
                "drives[0].drive_id: is missing (Name of the drive, unique in the VM)",
                "machine-config.vcpus: unknown key; did you mean `vcpu_count`?",
            ]
        );
        assert_eq!(explained(json!({})), ["boot-source: is missing (What the guest boots)"]);
        assert_eq!(explained(json!(3)), ["must be an object in braces, not 3"].map(|text| format!(": {text}")));
        assert_eq!(
            with(json!({ "metrics": { "metrics_path": "m", "properties": { "a": "b", "c": 1 } } })),
            ["metrics.properties.c: must be a text in quotes, not 1"]
        );
        assert_eq!(with(json!({ "entropy": { "x": 1 } })), ["entropy.x: unknown key; known here: rate_limiter"]);
    }
}
