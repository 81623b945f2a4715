//! `--pmem`: PATH, then options after commas. Pure.

use serde_json::{Value, json};

/// Reads `PATH[,ro][,private][,root][,id=NAME]` into an element of the key `pmem`; its id is given later where it has none.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut parts = text.split(',');
    let path = parts.next().unwrap_or_default();
    if path.is_empty() {
        return Err("a path is expected before the options".into());
    }
    let mut pmem = json!({ "path_on_host": path });
    for option in parts {
        let (key, value) = match option.split_once('=').unwrap_or((option, "")) {
            ("ro", "") => ("read_only", Value::from(true)),
            ("private", "") => ("private", true.into()),
            ("root", "") => ("root_device", true.into()),
            ("id", name) if !name.is_empty() => ("id", name.into()),
            _ => {
                return Err(format!(
                    "unknown option `{option}`; ro, private, root and id=NAME are known (a path with a comma in it needs \
                     --set or a file)"
                ));
            }
        };
        if let Some(pmem) = pmem.as_object_mut() {
            pmem.insert(key.to_owned(), value);
        }
    }
    Ok(pmem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_path() {
        assert_eq!(parse("a.img").unwrap(), json!({ "path_on_host": "a.img" }));
        assert_eq!(
            parse("a,ro,private,root,id=x").unwrap(),
            json!({ "path_on_host": "a", "read_only": true, "private": true, "root_device": true, "id": "x" })
        );
    }

    #[test]
    fn unknown_options_are_named() {
        for (text, word) in
            [("", "path"), (",ro", "path"), ("a,rw", "`rw`"), ("a,ro=1", "`ro=1`"), ("a,id=", "`id=`"), ("a,", "``")]
        {
            assert!(parse(text).unwrap_err().contains(word), "{text}");
        }
    }
}
