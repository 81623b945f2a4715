//! Values against the schemas of docs/api.yaml and of the configuration: for the tests of the API from outside, without a guest
//! and with one.

use serde_json::{Map, Value};

use super::operations::document;

/// How docs/api.yaml names the schema of the configuration, which the code writes (`vmm schema`).
const CONFIG: &str = "../resources/schema/vm.schema.json";
/// docs/api.yaml, and the schema that it refers to.
pub struct Documents {
    pub api: Value,
    pub config: Value,
}

impl Documents {
    pub fn read() -> Self {
        // In its own file `#` is that file.
        let config = include_str!("../../resources/schema/vm.schema.json").replace("\"#/", &format!("\"{CONFIG}#/"));
        Self { api: document(), config: serde_json::from_str(&config).expect("JSON") }
    }

    pub fn find(&self, reference: &str) -> Option<&Value> {
        let (document, place) = match reference.strip_prefix(CONFIG) {
            Some(place) => (&self.config, place),
            None => (&self.api, reference),
        };
        document.pointer(place.strip_prefix('#')?)
    }

    /// The schema that is meant where this one stands.
    pub fn follow<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => self.follow(self.find(reference).unwrap_or_else(|| panic!("{reference} is nowhere"))),
            None => schema,
        }
    }

    /// What of this schema is not so in this value. It knows the words that the two documents use for what there is; the limits
    /// of numbers and texts are the configuration's own checks.
    pub fn faults(&self, schema: &Value, value: &Value, place: &str) -> Vec<String> {
        let schema = self.follow(schema);
        if let Some(kinds) = ["anyOf", "oneOf"].iter().find_map(|word| schema[*word].as_array()) {
            let fits = kinds.iter().any(|kind| self.faults(kind, value, place).is_empty());
            return if fits { Vec::new() } else { vec![format!("{place}: {value} is of no kind that is known")] };
        }
        let is_of = |kind: &str| match kind {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_u64() || value.is_i64(),
            "string" => value.is_string(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            _ => panic!("{place}: a kind {kind}"),
        };
        let is_right = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).any(is_of),
            kind => kind.as_str().is_none_or(is_of),
        };
        let is_one = schema["enum"].as_array().is_none_or(|known| known.contains(value));
        let is_it = schema.get("const").is_none_or(|only| only == value);
        let mut faults = Vec::new();
        if !(is_right && is_one && is_it) {
            faults.push(format!("{place}: {value} is not {schema}"));
        }
        for (number, item) in value.as_array().into_iter().flatten().enumerate() {
            faults.extend(self.faults(&schema["items"], item, &format!("{place}[{number}]")));
        }
        if let Some(members) = value.as_object() {
            faults.extend(self.members(schema, members, place));
        }
        faults
    }

    fn members(&self, schema: &Value, members: &Map<String, Value>, place: &str) -> Vec<String> {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut faults: Vec<_> =
            required.filter(|key| !members.contains_key(*key)).map(|key| format!("{place}.{key} is missing")).collect();
        for (key, value) in members {
            // A schema that does not say a word of members allows any; one that names some allows no other.
            match schema["properties"].get(key).or(schema.get("additionalProperties").filter(|it| it.is_object())) {
                Some(schema) => faults.extend(self.faults(schema, value, &format!("{place}.{key}"))),
                None if schema.get("properties").is_none() && schema["additionalProperties"] != false => {}
                None => faults.push(format!("{place}.{key} is not known")),
            }
        }
        faults
    }
}
