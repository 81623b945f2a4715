//! From a document and flags to a [`VmConfig`], or to all of its faults at once.
//!
//! The good path is one pass of serde; the schema is only built to explain what it refused.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::VmConfig;
use super::edit::{self, Edit, Edited};
use super::fault::{Fault, Faults, Origin, Problem};
use super::host::HostLimits;
use super::include::Included;
use super::lines::Lines;
use super::path::JsonPath;
use super::{dialect, include, walk};

/// A JSON document.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The text.
    pub text: &'a str,
    /// The file that it was read from.
    pub file: Option<&'a Path>,
}

/// Reads a document, if there is one, applies `edits` and checks the result; with `host`, also against the host.
pub fn load(source: Option<Source<'_>>, edits: &[Edit], host: Option<&HostLimits>) -> Result<VmConfig, Faults> {
    let document = match source {
        Some(source) => parse(source)?,
        None => Value::Object(Map::new()),
    };
    check(Document { value: document, source, unfinished: None }, edits, host)
}

/// A document on its way to a configuration.
pub(super) struct Document<'a> {
    pub value: Value,
    /// What it was read from.
    pub source: Option<Source<'a>>,
    /// A part that is still to come: what it means is not checked.
    pub unfinished: Option<JsonPath>,
}

/// Applies `edits` to a document and checks the result; with `host`, also against the host.
pub(super) fn check(document: Document<'_>, edits: &[Edit], host: Option<&HostLimits>) -> Result<VmConfig, Faults> {
    let Document { value: mut document, source, unfinished } = document;
    let (edited, refused) = edit::apply(&mut document, edits);
    let (included, refused_file) = include::cpu_config(&mut document);
    let origins = Origins::new(source, included.as_ref(), &edited);
    let mut faults: Vec<Fault> = refused.into_iter().map(|(problem, flag)| of_flag(problem, flag)).collect();

    let mut problems = origins.lines.repeated.clone();
    problems.extend(refused_file);
    problems.extend(origins.included_repeated());
    problems.extend(dialect::settle(&mut document));
    let config = match typed(&document) {
        Ok(config) => config,
        Err(_) => {
            problems.extend(walk::explain(&mut document, &VmConfig::schema()));
            typed(&document).map_err(|error| {
                let problem = Problem::new(JsonPath::ROOT, error);
                Faults::new(vec![origins.fault(problem)])
            })?
        }
    };
    let known: Vec<_> = problems.iter().map(|problem| problem.path.clone()).collect();
    let mut meant = config.validate();
    if let Some(host) = host {
        meant.extend(config.check_host(host));
    }
    meant.retain(|problem| !unfinished.as_ref().is_some_and(|part| problem.path.is_in(part)));
    // One fault is enough for one place.
    for problem in meant {
        if !known.iter().any(|place| problem.path.is_in(place)) && !problems.iter().any(|p| p.path == problem.path) {
            problems.push(problem);
        }
    }
    faults.extend(problems.into_iter().map(|problem| origins.fault(problem)));
    if faults.is_empty() { Ok(config) } else { Err(Faults::new(faults)) }
}

fn parse(source: Source<'_>) -> Result<Value, Faults> {
    serde_json::from_str(source.text).map_err(|error| {
        let text = error.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        let text = match source.text.trim().is_empty() {
            true => "the document is empty; JSON is expected".to_owned(),
            false => format!("not JSON: {text} (column {})", error.column()),
        };
        let origin = Origin::Document { file: source.file.map(Path::to_owned), line: Some(error.line()) };
        Faults::new(vec![Fault { origin, path: JsonPath::ROOT, text }])
    })
}

/// The keys whose values are lists.
const LISTS: [&str; 4] = ["drives", "network-interfaces", "pmem", "shares"];

fn typed(document: &Value) -> Result<VmConfig, String> {
    // serde would also take a list of values for an object.
    let members = document.as_object().into_iter().flatten();
    let listed = members.clone().any(|(key, value)| !LISTS.contains(&key.as_str()) && value.is_array());
    if document.is_array() || listed || has_list_in_list(document) {
        return Err("a list where an object is expected".into());
    }
    VmConfig::deserialize(document).map_err(|error| error.to_string())
}

/// No list here has lists as elements.
fn has_list_in_list(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.iter().any(|element| element.is_array() || has_list_in_list(element)),
        Value::Object(object) => object.values().any(has_list_in_list),
        _ => false,
    }
}

fn of_flag(problem: Problem, flag: &str) -> Fault {
    Fault { origin: Origin::Flag(flag.to_owned()), path: problem.path, text: problem.text }
}

/// Knows where each place of the document was written.
struct Origins<'a> {
    source: Option<Source<'a>>,
    lines: Lines<'a>,
    /// The file that stands for `cpu-config`.
    included: Option<(&'a Included, Lines<'a>)>,
    edited: &'a [Edited<'a>],
}

impl<'a> Origins<'a> {
    /// Keys that the included file has twice.
    fn included_repeated(&self) -> Vec<Problem> {
        let lines = self.included.as_ref().map(|(_, lines)| lines.repeated.as_slice()).unwrap_or_default();
        lines.iter().map(|problem| Problem::new(include::place().within(&problem.path), &*problem.text)).collect()
    }

    /// A fault in the included file, with its line there.
    fn of_included(&self, problem: &Problem) -> Option<Fault> {
        let (file, lines) = self.included.as_ref().filter(|_| problem.path.is_in(&include::place()))?;
        let path = problem.path.seen_from(&include::place());
        let mut around = Some(path.clone()).filter(|path| !path.0.is_empty());
        let line = loop {
            let place = around?;
            match lines.of_place(&place) {
                None => around = place.parent(),
                line => break line,
            }
        };
        let origin = Origin::Document { file: Some(file.path.clone()), line };
        Some(Fault { origin, path, text: problem.text.clone() })
    }

    fn new(source: Option<Source<'a>>, included: Option<&'a Included>, edited: &'a [Edited<'a>]) -> Self {
        let lines = source.map(|source| Lines::of(source.text)).unwrap_or_default();
        let included = included.map(|file| (file, Lines::of(&file.text)));
        Self { source, lines, included, edited }
    }

    fn fault(&self, problem: Problem) -> Fault {
        if let Some(fault) = self.of_included(&problem) {
            return fault;
        }
        // A flag that set this place or something around it.
        if let Some(edit) = self.edited.iter().rev().find(|edit| problem.path.is_in(&edit.path)) {
            let path = problem.path.seen_from(&edit.path);
            return Fault { path, ..of_flag(problem, edit.source) };
        }
        let file = self.source.and_then(|source| source.file).map(Path::to_owned);
        if let Some(line) = self.lines.of_place(&problem.path) {
            return Fault {
                origin: Origin::Document { file, line: Some(line) },
                path: problem.path,
                text: problem.text,
            };
        }
        // Missing, or made by a flag on its way further in.
        let mut around = Some(problem.path.clone());
        while let Some(path) = around {
            if let Some(line) = self.lines.of_place(&path) {
                let origin = Origin::Document { file, line: Some(line) };
                return Fault { origin, path: problem.path, text: problem.text };
            }
            if let Some(edit) = self.edited.iter().find(|edit| !path.0.is_empty() && edit.path.is_in(&path)) {
                return of_flag(problem, edit.source);
            }
            around = path.parent();
        }
        Fault { origin: Origin::Nowhere, path: problem.path, text: problem.text }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(text: &str, edits: &[Edit]) -> Vec<String> {
        let source = Source { text, file: Some(Path::new("vm.json")) };
        match load(Some(source), edits, None) {
            Ok(_) => Vec::new(),
            Err(faults) => faults.iter().map(ToString::to_string).collect(),
        }
    }

    fn edit(path: &str, value: impl Into<Value>, source: &str) -> Edit {
        Edit::set(path.parse().unwrap(), value, source)
    }

    #[test]
    fn all_faults_come_together_with_their_lines() {
        let text = r#"{
            "boot-source": { "kernel": "k" },
            "machine-config": {
                "vcpu_count": 0,
                "mem_size_mib": "128M"
            },
            "memory-hotplug": { "total_size_mib": 1 },
            "drives": [
                { "drive_id": "a b", "path_on_host": "x" },
                { "drive_id": "c" }
            ],
            "drives2": []
        }"#;
        assert_eq!(
            faults(text, &[edit("serial.enabled", 7, "--set serial.enabled")]),
            [
                "vm.json:2: boot-source.kernel: unknown key; did you mean `kernel_image_path`?",
                "vm.json:2: boot-source.kernel_image_path: is missing (Kernel image: an ELF vmlinux or a bzImage; the format is \
                 detected)",
                "vm.json:4: machine-config.vcpu_count: must be at least 1, not 0",
                "vm.json:5: machine-config.mem_size_mib: must be a whole number, not \"128M\"",
                "vm.json:7: memory-hotplug: `memory-hotplug` (Firecracker's) is not in this version of vmm",
                "vm.json:9: drives[0].drive_id: `a b` contains ' '; letters, digits, `-` and `_` are allowed",
                "vm.json:10: drives[1].path_on_host: is missing (Raw image file or block device on the host; or give `partitions`)",
                "vm.json:12: drives2: unknown key; did you mean `drives`?",
                "--set serial.enabled: must be true or false, not 7",
            ]
        );
    }

    #[test]
    fn syntax_faults_have_line_and_column() {
        assert_eq!(faults("{\n \"a\": 1,,\n}", &[]), ["vm.json:2: not JSON: key must be a string (column 9)"]);
        assert_eq!(faults("", &[]), ["vm.json:1: the document is empty; JSON is expected"]);
        assert_eq!(faults("{}x", &[]), ["vm.json:1: not JSON: trailing characters (column 3)"]);
        let twice = "{\"boot-source\": {\"kernel_image_path\": \"k\",\n\"kernel_image_path\": \"l\"}}";
        assert_eq!(faults(twice, &[]), ["vm.json:2: boot-source.kernel_image_path: given twice; first on line 1"]);
    }

    #[test]
    fn faults_of_flags_name_the_flag() {
        let good = "{\"boot-source\": {\"kernel_image_path\": \"k\"}}";
        let one = |path: &str, value: Value, source: &str| faults(good, &[edit(path, value, source)]);
        assert_eq!(one("machine-config.vcpu_count", json!(0), "--cpus"), ["--cpus: must be at least 1, not 0"]);
        assert_eq!(
            one("machine-config.cpus", json!(1), "--set machine-config.cpus"),
            ["--set machine-config.cpus: unknown key; did you mean `vcpu_count`?"]
        );
        assert_eq!(
            one("drives[+]", json!({ "drive_id": "a b", "path_on_host": "x" }), "--disk x"),
            ["--disk x: drive_id: `a b` contains ' '; letters, digits, `-` and `_` are allowed"]
        );
        assert_eq!(
            one("drives[+].is_read_only", json!(true), "--set drives[+].is_read_only"),
            [
                "--set drives[+].is_read_only: drives[0].drive_id: is missing (Name of the drive, unique in the VM)",
                "--set drives[+].is_read_only: drives[0].path_on_host: is missing (Raw image file or block device on the host; or give `partitions`)",
            ]
        );
        assert_eq!(one("nothing.here", json!(1), "--set nothing.here").len(), 1);
        assert_eq!(
            one("boot-source.x.y", json!(1), "--set boot-source.x.y"),
            [
                "--set boot-source.x.y: boot-source.x: unknown key; known here: boot_args, boot_args_append, initrd_path, \
              kernel_image_path"
            ]
        );
        assert_eq!(
            one("drives[3]", json!(1), "--set drives[3]"),
            ["--set drives[3]: drives: has 0 elements; [0] would be the next, [3] is too far"]
        );
    }

    #[test]
    fn a_list_is_no_object() {
        assert_eq!(
            faults("{\"boot-source\": [\"k\"]}", &[]),
            ["vm.json:1: boot-source: must be an object in braces, not a list"]
        );
        assert_eq!(faults("[]", &[]), ["vm.json:1: must be an object in braces, not a list"]);
    }

    #[test]
    fn without_a_document_flags_are_enough() {
        let edits = [edit("boot-source.kernel_image_path", "k", "--kernel")];
        let config = load(None, &edits, None).unwrap();
        assert_eq!(config.boot_source.kernel_image_path, Path::new("k"));
        assert_eq!(config.machine_config.vcpu_count, 1);
        let faults = load(None, &[], None).unwrap_err();
        assert_eq!(faults.to_string(), "boot-source: is missing (What the guest boots)");
        assert!(!faults.is_in_document());
    }

    #[test]
    fn the_host_is_asked_only_when_wanted() {
        let text = "{\"boot-source\": {\"kernel_image_path\": \"/no/such/kernel\"}}";
        let source = Some(Source { text, file: None });
        assert!(load(source, &[], None).is_ok());
        let limits = HostLimits { memory_mib: None, cpus: None };
        let faults = load(source, &[], Some(&limits)).unwrap_err();
        assert_eq!(faults.to_string(), "line 1: boot-source.kernel_image_path: /no/such/kernel does not exist");
    }
}
