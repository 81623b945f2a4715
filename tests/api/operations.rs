//! What docs/api.yaml says there is: for the tests of the API from outside, without a guest and with one.

use serde_json::Value;

/// A method of a path.
pub struct Operation {
    pub method: String,
    /// As the document writes it: a part in braces stands for a name.
    pub path: String,
    /// What the document says of it.
    pub said: Value,
}

impl Operation {
    /// Whether this request is for it.
    pub fn takes(&self, method: &str, path: &str) -> bool {
        let fits = match self.path.split_once('{') {
            Some((before, _)) => path.strip_prefix(before).is_some_and(|name| !name.contains('/')),
            None => path == self.path,
        };
        fits && method == self.method
    }

    /// Whether its description has these words.
    pub fn says(&self, words: &str) -> bool {
        self.said["description"].as_str().is_some_and(|text| text.contains(words))
    }
}

/// docs/api.yaml.
pub fn document() -> Value {
    serde_saphyr::from_str(include_str!("../../docs/api.yaml")).expect("docs/api.yaml is YAML")
}

/// All that the document has. That these are the routes of the code, all of them, is a unit test of the routes.
pub fn operations() -> Vec<Operation> {
    let document = document();
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, said) in methods.as_object().expect("methods").iter().filter(|(name, _)| *name != "parameters") {
            found.push(Operation { method: method.to_uppercase(), path: path.clone(), said: said.clone() });
        }
    }
    assert!(found.len() > 40, "{} operations", found.len());
    found
}
