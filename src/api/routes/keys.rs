//! Which keys a body has. The `api` thread runs this.

use serde_json::{Map, Value};

use crate::message::Request;

/// The one member of an object, whose value is one of `known`.
pub fn member<'a>(object: &Map<String, Value>, key: &str, known: &[&'a str]) -> Result<&'a str, String> {
    only(object, &[key])?;
    let value = object.get(key).ok_or_else(|| format!("{key} is missing"))?;
    let found = known.iter().find(|name| value.as_str() == Some(**name));
    found.copied().ok_or_else(|| format!("{key} must be one of {}, not {value}", known.join(", ")))
}

/// The object has these keys and no others.
pub fn only(object: &Map<String, Value>, keys: &[&str]) -> Result<(), String> {
    known(object, keys)?;
    let missing = keys.iter().find(|key| !object.contains_key(**key));
    missing.map_or(Ok(()), |key| Err(format!("{key} is missing")))
}

/// The object has no keys but these.
pub fn known(object: &Map<String, Value>, keys: &[&str]) -> Result<(), String> {
    let other = object.keys().find(|key| !keys.contains(&key.as_str()));
    other.map_or(Ok(()), |key| Err(format!("{key}: unknown key; known here: {}", keys.join(", "))))
}

/// Whether a request has a key that Firecracker has declared to mean nothing any more (its swagger file).
pub fn is_deprecated(request: &Request) -> bool {
    request.method == "PUT"
        && request.path == "/vsock"
        && serde_json::from_slice::<Map<String, Value>>(&request.body).is_ok_and(|body| body.contains_key("vsock_id"))
}
