//! The contents of the metadata service: one JSON value, which the API writes and guests read. Any thread.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

use super::counts::Counts;
use super::token::Tokens;

/// Why the contents are as they were, in Firecracker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// They would be too long.
    #[error("The MMDS patch request doesn't fit.")]
    TooLong,
    /// There is nothing to patch.
    #[error("The MMDS data store is not initialized.")]
    Empty,
}

/// Why a guest does not get what it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// There is nothing at that path.
    Nothing,
    /// It is a number, a list, true, false or null, which have no form as text.
    NoText,
}

/// How a guest wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As JSON.
    Json,
    /// As EC2's service tells it: texts as they are, objects as their keys.
    Text,
}

/// The store.
pub struct Store {
    /// Nothing until something was put.
    contents: Mutex<Option<Value>>,
    /// Most bytes of the contents as JSON.
    limit: usize,
    tokens: Tokens,
    counts: Arc<Counts>,
}

impl Store {
    /// An empty store for contents of at most `limit` bytes, as JSON. An error where the host has no random numbers.
    pub fn new(limit: usize) -> io::Result<Self> {
        Ok(Self { contents: Mutex::default(), limit, tokens: Tokens::new()?, counts: Arc::default() })
    }

    /// The contents; an empty object before there are any.
    pub fn get(&self) -> Value {
        self.contents().clone().unwrap_or_else(|| Value::Object(Map::new()))
    }

    /// Other contents.
    pub fn put(&self, contents: Value) -> Result<(), StoreError> {
        let fits = self.fits(&contents);
        let mut place = self.contents();
        if fits { Ok(_ = place.insert(contents)) } else { Err(StoreError::TooLong) }
    }

    /// Changes the contents by a JSON merge patch (RFC 7396): all of it, or nothing.
    pub fn patch(&self, patch: &Value) -> Result<(), StoreError> {
        let mut place = self.contents();
        let mut contents = place.clone().ok_or(StoreError::Empty)?;
        merge(&mut contents, patch);
        if self.fits(&contents) { Ok(_ = place.insert(contents)) } else { Err(StoreError::TooLong) }
    }

    /// What is at `path`: keys and places in lists behind slashes, as in a JSON pointer (RFC 6901). Several slashes are as
    /// one, and one more at the end is as none.
    pub(super) fn read(&self, path: &str, form: Form) -> Result<String, Missing> {
        let pointer: String = path.split('/').filter(|part| !part.is_empty()).map(|part| format!("/{part}")).collect();
        let contents = self.contents();
        let found = contents.as_ref().and_then(|value| value.pointer(&pointer)).ok_or(Missing::Nothing)?;
        match form {
            Form::Json => Ok(found.to_string()),
            Form::Text => text(found).ok_or(Missing::NoText),
        }
    }

    /// Who makes and knows the tokens for these contents.
    pub(super) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// What the service counts.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    fn contents(&self) -> MutexGuard<'_, Option<Value>> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fits(&self, contents: &Value) -> bool {
        contents.to_string().len() <= self.limit
    }
}

/// An object as its keys, a line each, with a slash behind those of objects; a text as it is.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(members) => {
            let keys = members.iter().map(|(key, value)| format!("{key}{}", if value.is_object() { "/" } else { "" }));
            Some(keys.collect::<Vec<_>>().join("\n"))
        }
        _ => None,
    }
}

/// RFC 7396, 2. As deep as the patch, which serde_json bounds when it reads one.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, new) in patch {
        if new.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.as_str()).or_insert(Value::Null), new);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The table of RFC 7396, appendix A.
    #[test]
    fn patches_are_those_of_the_rfc() {
        for (target, patch, wanted) in [
            (json!({ "a": "b" }), json!({ "a": "c" }), json!({ "a": "c" })),
            (json!({ "a": "b" }), json!({ "b": "c" }), json!({ "a": "b", "b": "c" })),
            (json!({ "a": "b" }), json!({ "a": null }), json!({})),
            (json!({ "a": "b", "b": "c" }), json!({ "a": null }), json!({ "b": "c" })),
            (json!({ "a": ["b"] }), json!({ "a": "c" }), json!({ "a": "c" })),
            (json!({ "a": "c" }), json!({ "a": ["b"] }), json!({ "a": ["b"] })),
            (json!({ "a": { "b": "c" } }), json!({ "a": { "b": "d", "c": null } }), json!({ "a": { "b": "d" } })),
            (json!({ "a": [{ "b": "c" }] }), json!({ "a": [1] }), json!({ "a": [1] })),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({ "a": "b" }), json!(["c"]), json!(["c"])),
            (json!({ "a": "foo" }), json!(null), json!(null)),
            (json!({ "a": "foo" }), json!("bar"), json!("bar")),
            (json!({ "e": null }), json!({ "a": 1 }), json!({ "e": null, "a": 1 })),
            (json!([1, 2]), json!({ "a": "b", "c": null }), json!({ "a": "b" })),
            (json!({}), json!({ "a": { "bb": { "ccc": null } } }), json!({ "a": { "bb": {} } })),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, &patch);
            assert_eq!(merged, wanted, "{target} with {patch}");
        }
    }

    #[test]
    fn nothing_is_patched_before_something_is_put() {
        let store = Store::new(100).unwrap();
        assert_eq!((store.get(), store.patch(&json!({ "a": 1 }))), (json!({}), Err(StoreError::Empty)));
        assert_eq!(store.read("/", Form::Json), Err(Missing::Nothing));
        store.put(json!({})).unwrap();
        store.patch(&json!({ "a": 1 })).unwrap();
        assert_eq!(store.get(), json!({ "a": 1 }));
    }

    #[test]
    fn what_is_too_long_changes_nothing() {
        let store = Store::new(20).unwrap();
        store.put(json!({ "a": "0123456789ab" })).unwrap(); // 20 bytes
        assert_eq!(store.put(json!({ "a": "0123456789abc" })), Err(StoreError::TooLong));
        assert_eq!(store.patch(&json!({ "b": 1 })), Err(StoreError::TooLong));
        assert_eq!(store.get(), json!({ "a": "0123456789ab" }));
        store.patch(&json!({ "a": null, "b": 1 })).unwrap();
        assert_eq!(store.get(), json!({ "b": 1 }));
    }

    #[test]
    fn everything_is_found_by_its_path() {
        let store = Store::new(1000).unwrap();
        store
            .put(json!({
                "name": { "first": "J", "last": "D", "more": {} }, "age": 4, "list": ["x", { "y": "z" }],
                "a/b": "slash", "none": null, "": "empty"
            }))
            .unwrap();
        let json = |path: &str| store.read(path, Form::Json);
        let text = |path: &str| store.read(path, Form::Text);
        assert_eq!(text("/"), Ok("\na/b\nage\nlist\nname/\nnone".into()));
        assert_eq!(text("//"), text(""));
        assert_eq!(text("/name"), Ok("first\nlast\nmore/".into()));
        assert_eq!((text("/name//last/"), json("/name/last")), (Ok("D".into()), Ok("\"D\"".into())));
        assert_eq!((text("/list/0"), text("/list/1/y")), (Ok("x".into()), Ok("z".into())));
        assert_eq!((text("/a~1b"), text("/name/more")), (Ok("slash".into()), Ok(String::new())));
        for (path, value) in [("/age", "4"), ("/list", "[\"x\",{\"y\":\"z\"}]"), ("/none", "null")] {
            assert_eq!((json(path), text(path)), (Ok(value.into()), Err(Missing::NoText)));
        }
        for path in ["/other", "/name/first/x", "/list/2", "/list/00", "/age/0", "/name/f"] {
            assert_eq!((json(path), text(path)), (Err(Missing::Nothing), Err(Missing::Nothing)), "{path}");
        }
    }
}
