//! A directory with a store and images in it, and what runs there.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A store, and room for images.
pub struct Room(TempDir);

impl Room {
    pub fn new() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// `vmm image` with these words.
    pub fn image(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.arg("image").args(line.split_whitespace()).current_dir(self.0.path()).stdin(Stdio::null());
        command.env_clear().env("VMM_STORE", self.store()).env("HOME", self.0.path());
        command
    }

    /// What it prints; it must succeed.
    pub fn done(&self, line: &str) -> String {
        done(&mut self.image(line))
    }

    /// What it complains of; it must fail with one line.
    pub fn refused(&self, line: &str) -> String {
        refused(&mut self.image(line))
    }

    /// All that it says before it gives up.
    pub fn gives_up(&self, line: &str) -> String {
        let output = self.image(line).output().expect("run it");
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{text}");
        text
    }

    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.done(line)).expect("JSON")
    }

    /// Another program, here.
    pub fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().expect("a program"));
        done(command.args(words).current_dir(self.0.path()).env("XDG_RUNTIME_DIR", self.0.path()).stdin(Stdio::null()))
    }

    /// An OCI layout `layout` with an image `v1`: busybox, a file, and a configuration.
    pub fn layout(&self) {
        self.run("umoci init --layout layout");
        self.run("umoci new --image layout:v1");
        self.insert("v1", "/bin/busybox", "/bin/busybox");
        std::fs::write(self.path("text"), "text\n").expect("a file");
        self.insert("v1", "text", "/etc/text");
        self.run("umoci config --image layout:v1 --config.cmd /bin/busybox --config.env A=b --config.user 7:8");
    }

    /// One more layer, with one file.
    pub fn insert(&self, tag: &str, file: &str, target: &str) {
        self.run(&format!("umoci insert --image layout:{tag} {file} {target}"));
    }

    /// A program in this directory.
    pub fn program(&self, name: &str, script: &str) {
        std::fs::write(self.path(name), script).expect("a file");
        std::fs::set_permissions(self.path(name), Permissions::from_mode(0o755)).expect("to make it run");
    }

    /// The files of a directory of the store.
    pub fn files(&self, directory: &str) -> Vec<PathBuf> {
        let entries = self.store().join(directory).read_dir().expect("a directory of the store");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    /// What skopeo says of an image in this place.
    pub fn skopeo(&self, place: &str) -> Value {
        serde_json::from_str(&self.run(&format!("skopeo inspect {place}"))).expect("JSON")
    }

    /// The store's image is the one that skopeo sees there.
    pub fn is_same(&self, image: &str, place: &str) {
        let (ours, theirs) = (self.json(&format!("inspect {image}")), self.skopeo(place));
        let ours = &ours[0];
        assert_eq!(ours["Id"], theirs["Digest"], "{place}");
        assert_eq!(ours["Config"]["Env"], theirs["Env"]);
        assert_eq!(ours["Created"], theirs["Created"]);
        assert_eq!((&ours["Os"], &ours["Architecture"]), (&theirs["Os"], &theirs["Architecture"]));
        let layers = ours["Manifest"]["layers"].as_array().expect("layers");
        let layers: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
        assert_eq!(Value::from(layers), theirs["Layers"]);
    }
}

pub fn done(command: &mut Command) -> String {
    let output = command.output().expect("run it");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

pub fn refused(command: &mut Command) -> String {
    one_line(command.output().expect("run it"))
}

/// The one line of something that failed.
pub fn one_line(output: Output) -> String {
    let text = String::from_utf8(output.stderr).expect("text");
    assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    text.trim_end().to_owned()
}

/// A file's first bytes only.
pub fn cut(path: &Path, bytes: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("the file");
    file.set_len(bytes).expect("cut it");
}

/// Bytes that do not become fewer by compression.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(count);
    while bytes.len() < count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.write_all(&state.to_be_bytes()[..2]).expect("memory");
    }
    bytes
}
