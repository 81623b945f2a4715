//! What a registry wants to know of who asks: `WWW-Authenticate`.
//!
//! Source: RFC 9110, section 11; RFC 6750, section 3; Docker Registry v2 authentication.

/// One way to say who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// By name and password.
    Basic,
    /// By a token, that somebody else gives.
    Bearer {
        /// Where tokens are given.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best of these headers that is understood.
    pub fn of<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut found: Vec<_> = headers.into_iter().filter_map(Self::of_header).collect();
        found.sort_by_key(|one| *one == Self::Basic);
        found.into_iter().next()
    }

    fn of_header(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest);
        let mut take = |name: &str| {
            let at = parameters.iter().position(|(key, _)| key.eq_ignore_ascii_case(name))?;
            Some(parameters.swap_remove(at).1)
        };
        Some(Self::Bearer { realm: take("realm")?, service: take("service"), scope: take("scope") })
    }
}

/// `name=value, name="quoted, \"value\""`, as far as it is understood.
fn parameters(mut rest: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']).to_owned();
        let (value, after) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => unquoted(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after.get(..end).unwrap_or_default().trim().to_owned(), after.get(end..).unwrap_or_default())
            }
        };
        found.push((name, value));
        rest = after;
    }
    found
}

/// What stands before the closing quote, and what after.
fn unquoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, text.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            character => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.into(), service: own(service), scope: own(scope) })
    }

    #[test]
    fn challenges_are_read() {
        let usual =
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        let scope = Some("repository:a/b:pull,push");
        assert_eq!(Challenge::of([usual]), bearer("https://auth.example/token", Some("registry.example"), scope));
        assert_eq!(Challenge::of(["Basic realm=\"x\"", usual]), Challenge::of([usual]));
        assert_eq!(Challenge::of(["Negotiate", "basic"]), Some(Challenge::Basic));
        assert_eq!(Challenge::of([r#"bearer  Realm = "a\"b" , service=c"#]), bearer("a\"b", Some("c"), None));
        for none in ["", "Bearer", "Bearer service=x", "Digest realm=x"] {
            assert_eq!(Challenge::of([none]), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn no_header_is_too_odd(text in "(Bearer )?.{0,100}", odd in "Bearer [a-z=\",\\\\ ]{0,60}") {
            let _ = Challenge::of([text.as_str(), odd.as_str()]);
        }
    }
}
