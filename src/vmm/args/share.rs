//! `--share`: a directory, perhaps its tag, then options after commas. Pure.

use std::path::Path;

use serde_json::{Value, json};

/// Reads `DIR[:TAG][,ro][,virtiofsd=PROGRAM]` into an element of the key `shares`.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut parts = text.split(',');
    let place = parts.next().unwrap_or_default();
    let (dir, tag) = match place.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag)),
        _ => (place, None),
    };
    if dir.is_empty() {
        return Err("a directory is expected before the options".into());
    }
    let name = || Path::new(dir).file_name().and_then(|name| name.to_str());
    let tag =
        tag.or_else(name).ok_or_else(|| format!("`{dir}` has no name to be its tag: give one, as in {dir}:TAG"))?;
    let mut share = json!({ "tag": tag, "path_on_host": dir });
    for option in parts {
        let (key, value) = match option.split_once('=').unwrap_or((option, "")) {
            ("ro", "") => ("is_read_only", Value::from(true)),
            ("virtiofsd", program) if !program.is_empty() => ("virtiofsd", program.into()),
            _ => return Err(format!("unknown option `{option}`; ro and virtiofsd=PROGRAM are known")),
        };
        if let Some(share) = share.as_object_mut() {
            share.insert(key.to_owned(), value);
        }
    }
    Ok(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_given_or_the_directorys_name() {
        for (text, dir, tag) in [
            ("/srv/data", "/srv/data", "data"),
            ("data/", "data/", "data"),
            ("/srv/data:src", "/srv/data", "src"),
            (".:here", ".", "here"),
            ("/a:b/c", "/a:b/c", "c"),
        ] {
            assert_eq!(parse(text).unwrap(), json!({ "path_on_host": dir, "tag": tag }), "{text}");
        }
        let all = json!({ "path_on_host": "/a", "tag": "a", "is_read_only": true, "virtiofsd": "/x" });
        assert_eq!(parse("/a,ro,virtiofsd=/x").unwrap(), all);
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        for (text, word) in [
            ("", "directory"),
            (":t", "directory"),
            ("/", "/:TAG"),
            ("..", "..:TAG"),
            ("/a,rw", "`rw`"),
            ("/a,ro=1", "`ro=1`"),
        ] {
            assert!(parse(text).unwrap_err().contains(word), "{text}");
        }
    }
}
