//! `cpu-config` as the path of a file: the file takes the path's place, so that all else knows one form only.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use serde_json::Value;

use super::fault::Problem;
use super::path::JsonPath;

/// Longest file, bytes: many times as much as a description of every leaf and register takes.
const MOST: u64 = 4 << 20;

/// A file that became part of the document.
pub(super) struct Included {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// The place of what can be included.
pub(super) fn place() -> JsonPath {
    JsonPath::keys(["cpu-config"])
}

/// Puts the file that is named in its place. What cannot be read is a problem, and taken out.
pub(super) fn cpu_config(document: &mut Value) -> (Option<Included>, Option<Problem>) {
    let Some(here) = document.get_mut("cpu-config") else { return (None, None) };
    let Value::String(path) = here else { return (None, None) };
    let path = PathBuf::from(path.as_str());
    let read = read(&path).and_then(|text| {
        let value = serde_json::from_str(&text).map_err(|error| format!("is not JSON: {error}"))?;
        Ok((value, text))
    });
    match read {
        Ok((value, text)) => {
            *here = value;
            (Some(Included { path, text }), None)
        }
        Err(text) => {
            *here = Value::Null;
            (None, Some(Problem::new(place(), format!("{} {text}", path.display()))))
        }
    }
}

fn read(path: &PathBuf) -> Result<String, String> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MOST + 1).read_to_string(&mut text)).map_err(unreadable)?;
    if text.len() as u64 > MOST { Err(format!("is longer than {} MiB", MOST >> 20)) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::json;

    use super::super::load::{Source, load};

    fn faults(file: &Path) -> Vec<String> {
        let text = json!({ "boot-source": { "kernel_image_path": "k" }, "cpu-config": file }).to_string();
        match load(Some(Source { text: &text, file: Some(Path::new("vm.json")) }), &[], None) {
            Ok(_) => Vec::new(),
            Err(faults) => faults.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn the_file_takes_the_paths_place_and_its_faults_have_its_lines() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cpu.json");
        let name = file.display();
        let say = |text: &str| {
            fs::write(&file, text).unwrap();
            faults(&file)
        };
        assert_eq!(say("{ \"msr_modifiers\": [{ \"addr\": \"0x10a\", \"bitmap\": \"0b0\" }] }"), [""; 0]);
        assert_eq!(
            say("{\n\"msr_modifiers\": [\n{ \"addr\": \"0x10g\",\n\"bits\": \"0b0\" }],\n\"reg_modifiers\": [1] }"),
            [
                format!(
                    "{name}:3: msr_modifiers[0].bitmap: is missing (`0b` and a digit for each of 64 bits, as of CPUID)"
                ),
                format!("{name}:3: msr_modifiers[0].addr: `0x10g` is no number of 32 bits; 0x10a, 0b1 or 7 is one"),
                format!("{name}:4: msr_modifiers[0].bits: unknown key; did you mean `bitmap`?"),
                format!("{name}:5: reg_modifiers: `reg_modifiers` is for Arm processors; this machine is x86-64"),
            ]
        );
        assert_eq!(say("{\n\"msr_modifiers\": [],\n\"msr_modifiers\": [] }").len(), 1);
        assert_eq!(say("{").len(), 1);
        assert_eq!(say("[]"), ["vm.json:1: cpu-config: must be an object in braces, not a list"]);
        assert_eq!(faults(Path::new("/no/such")), ["vm.json:1: cpu-config: /no/such does not exist"]);
        assert_eq!(faults(dir.path()).len(), 1);
    }
}
