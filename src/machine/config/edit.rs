//! Edits of the document before it is typed: what the command line's flags do. Pure.

use serde_json::{Map, Value};

use super::fault::Problem;
use super::path::{JsonPath, Step};

/// A change of the document at one place.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// The place; what is missing on the way there is created.
    pub path: JsonPath,
    /// What to do there.
    pub change: Change,
    /// The flag that asks for it, as the user would name it.
    pub source: String,
}

/// What an [`Edit`] does at its place.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Puts this value there.
    Set(Value),
    /// Puts this value there if there is none.
    Default(Value),
    /// Puts these words behind the text that is there.
    Words(String),
}

impl Edit {
    /// Puts `value` at `path` because `source` asks for it.
    pub fn set(path: JsonPath, value: impl Into<Value>, source: impl Into<String>) -> Self {
        Self { path, change: Change::Set(value.into()), source: source.into() }
    }

    /// Changes what is at `place` by `patch`: each key replaces the old one, and within an object (a rate limiter, say)
    /// each of its keys does. Null changes nothing. `source` names the patch in messages.
    pub fn patch(place: &JsonPath, patch: &Map<String, Value>, source: &str) -> Vec<Self> {
        let mut edits = Vec::new();
        for (key, new) in patch.iter().filter(|(_, new)| !new.is_null()) {
            let path = place.key(key);
            match new {
                Value::Object(inner) if !inner.is_empty() => {
                    let inner = inner.iter().filter(|(_, new)| !new.is_null());
                    let source = |inner| format!("{source}: {key}.{inner}");
                    edits.extend(inner.map(|(key, new)| Self::set(path.key(key), new.clone(), source(key))));
                }
                new => edits.push(Self::set(path, new.clone(), format!("{source}: {key}"))),
            }
        }
        edits
    }
}

/// A place that an edit wrote to, without [`Step::Next`] and [`Step::Where`], and which edit it was.
pub(super) struct Edited<'a> {
    pub path: JsonPath,
    pub source: &'a str,
}

/// Applies `edits` in order.
pub(super) fn apply<'a>(document: &mut Value, edits: &'a [Edit]) -> (Vec<Edited<'a>>, Vec<(Problem, &'a str)>) {
    let (mut done, mut problems) = (Vec::new(), Vec::new());
    for edit in edits {
        let mut path = JsonPath::ROOT;
        match apply_one(document, edit, &mut path) {
            Ok(()) => done.push(Edited { path, source: &edit.source }),
            Err(text) => problems.push((Problem::new(path, text), edit.source.as_str())),
        }
    }
    (done, problems)
}

/// On an error `path` is the place at which it happened.
fn apply_one(document: &mut Value, edit: &Edit, path: &mut JsonPath) -> Result<(), String> {
    let mut here = document;
    for step in &edit.path.0 {
        here = descend(here, step, path)?;
    }
    match &edit.change {
        Change::Set(value) => *here = value.clone(),
        Change::Default(value) if here.is_null() => *here = value.clone(),
        Change::Default(_) => {}
        Change::Words(words) => match here {
            Value::Null => *here = words.as_str().into(),
            Value::String(text) => *text = format!("{} {words}", text.trim_end()),
            other => return Err(format!("cannot add words to {}", describe(other))),
        },
    }
    Ok(())
}

fn descend<'v>(here: &'v mut Value, step: &Step, path: &mut JsonPath) -> Result<&'v mut Value, String> {
    if here.is_null() {
        *here = match step {
            Step::Key(_) => Value::Object(Map::new()),
            _ => Value::Array(Vec::new()),
        };
    }
    let found = describe(here);
    let list = |here: &'v mut Value| match here {
        Value::Array(list) => Ok(list),
        _ => Err(format!("is {found}, not a list")),
    };
    match step {
        Step::Key(key) => {
            let Value::Object(object) = here else { return Err(format!("is {found}; it has no `{key}`")) };
            *path = path.key(key);
            Ok(object.entry(key.as_str()).or_insert(Value::Null))
        }
        Step::Index(index) => {
            let list = list(here)?;
            let len = list.len();
            if *index > len {
                return Err(format!("has {len} elements; [{len}] would be the next, [{index}] is too far"));
            }
            *path = path.index(*index);
            Ok(element(list, *index, || Value::Null))
        }
        Step::Next => {
            let list = list(here)?;
            let len = list.len();
            *path = path.index(len);
            Ok(element(list, len, || Value::Null))
        }
        Step::Where(key, wanted) => {
            let list = list(here)?;
            let value = if wanted == "true" { Value::Bool(true) } else { Value::from(wanted.as_str()) };
            let found = list.iter().position(|element| element.get(key) == Some(&value));
            let index = found.unwrap_or(list.len());
            *path = path.index(index);
            Ok(element(list, index, || serde_json::json!({ key.as_str(): value })))
        }
    }
}

/// The element at `index`, which may be the one past the end: then it is made.
fn element(list: &mut Vec<Value>, index: usize, make: impl FnOnce() -> Value) -> &mut Value {
    if index == list.len() {
        list.push(make());
    }
    &mut list[index]
}

/// What a value is, with its article.
pub(super) fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edited(document: Value, path: &str, change: Change) -> Result<Value, String> {
        let mut document = document;
        let edits = [Edit { path: path.parse().unwrap(), change, source: "--x".into() }];
        let (_, problems) = apply(&mut document, &edits);
        match problems.first() {
            Some((problem, source)) => Err(format!("{source} {}: {}", problem.path, problem.text)),
            None => Ok(document),
        }
    }

    #[test]
    fn creates_what_is_missing() {
        let set = |document, path| edited(document, path, Change::Set(json!(1)));
        assert_eq!(set(json!({}), "a.b").unwrap(), json!({ "a": { "b": 1 } }));
        assert_eq!(set(json!({}), "a[0].b").unwrap(), json!({ "a": [{ "b": 1 }] }));
        assert_eq!(set(json!({ "a": [0] }), "a[+]").unwrap(), json!({ "a": [0, 1] }));
        assert_eq!(set(json!({ "a": [0, 7] }), "a.1").unwrap(), json!({ "a": [0, 1] }));
        assert_eq!(set(json!({ "a": [{ "id": "x" }] }), "a[id=x].n").unwrap(), json!({ "a": [{ "id": "x", "n": 1 }] }));
        assert_eq!(set(json!({}), "a[root=true].n").unwrap(), json!({ "a": [{ "root": true, "n": 1 }] }));
    }

    #[test]
    fn adds_words_and_keeps_what_is_there() {
        let words = |document| edited(document, "a", Change::Words("c".into()));
        assert_eq!(words(json!({ "a": "b" })).unwrap(), json!({ "a": "b c" }));
        assert_eq!(words(json!({})).unwrap(), json!({ "a": "c" }));
        assert_eq!(words(json!({ "a": 1 })).unwrap_err(), "--x a: cannot add words to a number");
        let default = |document| edited(document, "a", Change::Default(json!(2)));
        assert_eq!(default(json!({ "a": 1 })).unwrap(), json!({ "a": 1 }));
        assert_eq!(default(json!({})).unwrap(), json!({ "a": 2 }));
    }

    #[test]
    fn names_the_place_that_does_not_fit() {
        let set = |document, path| edited(document, path, Change::Set(json!(1))).unwrap_err();
        assert_eq!(set(json!({ "a": "t" }), "a.b"), "--x a: is a text; it has no `b`");
        assert_eq!(set(json!({ "a": {} }), "a[0]"), "--x a: is an object, not a list");
        assert_eq!(set(json!({ "a": [] }), "a[2]"), "--x a: has 0 elements; [0] would be the next, [2] is too far");
    }
}
