//! Names as Docker reads them, and what is wrong with others.

use proptest::prelude::*;

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn read(text: &str) -> Name {
    text.parse().unwrap()
}

fn refuse(text: &str) -> String {
    text.parse::<Name>().unwrap_err().to_string()
}

#[test]
fn short_names_are_completed() {
    for (short, whole) in [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/user/app:2", "docker.io/user/app:2"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("host:5000/a/b-c__d.e:T_1.x-2", "host:5000/a/b-c__d.e:T_1.x-2"),
        ("host.example/app", "host.example/app:latest"),
        ("Host/app", "Host/app:latest"),
        ("[::1]:5000/app:1", "[::1]:5000/app:1"),
        ("127.0.0.1:80/a", "127.0.0.1:80/a:latest"),
        ("a/b/c/d", "docker.io/a/b/c/d:latest"),
    ] {
        assert_eq!(read(short).to_string(), whole, "{short}");
    }
}

#[test]
fn a_digest_decides() {
    let pinned = read(&format!("debian@{DIGEST}"));
    assert_eq!(pinned.pin(), Some(DIGEST.parse().unwrap()));
    assert_eq!(pinned.to_string(), format!("docker.io/library/debian@{DIGEST}"));
    assert_eq!(read(&format!("debian:12@{DIGEST}")), pinned);
    assert_eq!(read("debian:12").pinned(DIGEST.parse().unwrap()), pinned);
    assert!(!pinned.is_latest() && read("debian").is_latest() && !read("debian:12").is_latest());
}

#[test]
fn what_goes_without_saying_is_not_said() {
    for (whole, short) in [
        ("docker.io/library/nginx:1", "nginx:1"),
        ("docker.io/user/app:1", "user/app:1"),
        ("docker.io/library/a/b:1", "library/a/b:1"),
        ("localhost/app:1", "localhost/app:1"),
    ] {
        assert_eq!(read(whole).familiar(), short);
    }
}

#[test]
fn what_is_wrong_is_shown_with_its_place() {
    for (text, column, what) in [
        ("NGINX", "column 1 (`N`)", "a repository"),
        ("nginx:", "column 7 (its end)", "a tag"),
        ("nginx:-1", "column 7 (`-`)", "a tag"),
        ("nginx:1.2 7", "column 10 (` `)", "a tag"),
        ("a//b", "column 3 (`/`)", "a repository"),
        ("a/", "column 3 (its end)", "a repository"),
        ("a..b", "column 3 (`.`)", "a repository"),
        ("a___b", "column 4 (`_`)", "a repository"),
        ("a/../b", "column 3 (`.`)", "a repository"),
        ("ä", "column 1 (`ä`)", "a repository"),
        ("aä:1", "column 2 (`ä`)", "a repository"),
        ("host:0/app", "column 6 (`0`)", "a port"),
        ("host:+80/app", "column 6 (`+`)", "a port"),
        ("host.:80/app", "column 6 (`:`)", "a registry"),
        ("-host.x/app", "column 1 (`-`)", "a registry"),
        ("a.b@c/app", "", "no digest"),
        ("[::x]/app", "column 1 (`[`)", "a registry"),
        ("host:70000/app", "column 6", "a port"),
    ] {
        let error = refuse(text);
        assert!(error.contains(column) && error.contains(what), "{text}: {error}");
    }
    assert_eq!(refuse(""), "image name ``: is empty");
    assert!(refuse(&"a".repeat(256)).ends_with("255 characters"));
    assert!(refuse(&format!("a:{}", "b".repeat(129))).ends_with("128 characters"));
    assert!(refuse(&"0".repeat(64)).contains("NAME@sha256:"));
    assert!(refuse("debian@sha512:00").contains("sha512"));
    assert!(refuse("debian@sha256:00").contains("hexadecimal"));
}

fn names() -> impl Strategy<Value = String> {
    let host = "(([a-z0-9]{1,5}\\.[a-z]{2,3}|localhost|[0-9]{1,3}\\.0\\.0\\.1)(:[1-9][0-9]{0,3})?/)?";
    let part = "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}";
    // A first part with a dot would be a host.
    let first = "[a-z0-9]{1,6}((_|__|-{1,3})[a-z0-9]{1,4}){0,2}";
    let tag = "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,10})?";
    let name = proptest::string::string_regex(&format!("{host}{first}(/{part}){{0,2}}{tag}")).unwrap();
    (name, any::<Option<[u8; 4]>>()).prop_map(|(name, digest)| match digest {
        Some(bytes) => format!("{name}@{}", Digest::of(&bytes)),
        None => name,
    })
}

proptest! {
    #[test]
    fn what_the_grammar_makes_is_read(text in names()) {
        let name: Name = text.parse().unwrap();
        prop_assert_eq!(name.to_string().parse::<Name>().unwrap(), name.clone());
        prop_assert_eq!(name.familiar().parse::<Name>().unwrap(), name.clone());
        prop_assert!(name.familiar().len() <= name.to_string().len());
    }

    /// Nothing that would be more than a name in a URL or a path gets through.
    #[test]
    fn no_name_is_dangerous(text in "[a-zA-Z0-9:/@._?#%&\\[\\] \\\\-]{0,40}") {
        if let Ok(name) = text.parse::<Name>() {
            prop_assert!(!name.repository().contains("..") && !name.repository().contains(['?', '#', '%', ' ', '\\', ':', '@']));
            prop_assert!(!name.repository().starts_with('/') && !name.repository().contains("//"));
            prop_assert!(!name.registry().contains(['/', '?', '#', '%', '@', ' ', '\\']));
        }
    }
}
