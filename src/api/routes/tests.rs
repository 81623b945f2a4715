//! The endpoints against docs/api.yaml, and what each answers before and after the start.

use super::*;

/// (method, path) of each endpoint that docs/api.yaml describes. Its layout is fixed: paths at two spaces, methods at four.
fn documented() -> Vec<(String, String)> {
    let text = include_str!("../../../docs/api.yaml");
    let mut path = "";
    let mut found = Vec::new();
    for line in text.lines().skip_while(|line| *line != "paths:").skip(1).take_while(|line| line.starts_with(' ')) {
        match line.strip_prefix("  ").unwrap_or(line) {
            rest if rest.starts_with('/') => path = rest.trim_end_matches(':'),
            rest => {
                let method = rest.strip_prefix("  ").and_then(|rest| rest.strip_suffix(':'));
                let method = method.filter(|name| name.bytes().all(|byte| byte.is_ascii_lowercase()));
                found.extend(method.filter(|name| *name != "parameters").map(|m| (m.to_uppercase(), path.to_owned())));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_document_has_every_endpoint_and_no_other() {
    let mut routes: Vec<_> = ROUTES.iter().map(|it| (it.method.to_owned(), it.path.to_owned())).collect();
    routes.sort();
    assert_eq!(routes, documented());
}

#[test]
fn names_in_paths_are_one_part() {
    let form = "/drives/{drive_id}";
    assert_eq!(fits(form, "/drives/a-1"), Some("a-1"));
    for other in ["/drives", "/drives/", "/drives/a/b", "/drive/a"] {
        assert_eq!(fits(form, other), None, "{other}");
    }
    assert_eq!(fits("/", "/"), Some(""));
    assert_eq!(fits("/vm", "/vm/config"), None);
}

#[test]
fn what_is_not_here_is_refused_by_name() {
    let text = |method: &str, path: &str| unknown(&format!("{method} {path}"), path);
    assert_eq!(text("PUT", "/snapshot/load"), "/snapshot/load (Firecracker's) is not in this version of vmm");
    assert_eq!(text("GET", "/hotplug/memory"), "/hotplug (Firecracker's) is not in this version of vmm");
    assert_eq!(text("GET", "/hotplugx"), "Invalid request method and/or path: GET /hotplugx.");
    assert_eq!(text("GET", "/vm"), "Invalid request method and/or path: GET /vm. Known here: PATCH.");
}
