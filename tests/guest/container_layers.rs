//! Images with unusual layers, run: as many as there may be, and one that is there more than once.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use container::digest::Digest;
use serde_json::json;

use crate::container::store;
use crate::vm::{done, guest, program};

/// A layer that a function fills.
fn layer(room: &Path, name: &str, fill: impl FnOnce(&Path)) -> String {
    let folder = room.join(format!("{name}.d"));
    fs::create_dir_all(&folder).expect("a folder");
    fill(&folder);
    let name = format!("{name}.tar");
    let same = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-C"];
    done(Command::new("tar").arg("-cf").arg(room.join(&name)).args(same).arg(&folder).arg("."));
    name
}

/// A layer with files, by name and text.
fn files(room: &Path, name: &str, files: &[(&str, &str)]) -> String {
    layer(room, name, |folder| {
        for (name, text) in files {
            fs::write(folder.join(name), text).expect("a file");
        }
    })
}

/// A shell and what it needs.
fn base(room: &Path) -> String {
    layer(room, "base", |folder| {
        fs::create_dir(folder.join("bin")).expect("a folder");
        fs::copy("/bin/busybox", folder.join("bin/busybox")).expect("a static busybox");
        for name in ["sh", "cat", "ls"] {
            std::os::unix::fs::symlink("busybox", folder.join("bin").join(name)).expect("a link");
        }
    })
}

/// Runs a script in a container of an archive with these layers, the lowest first.
fn run(room: &Path, layers: &[String], options: &[&str], script: &str) -> Output {
    let id = |name: &String| Digest::of(&fs::read(room.join(name)).expect("a layer")).to_string();
    let ids: Vec<String> = layers.iter().map(id).collect();
    let config =
        json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}});
    fs::write(room.join("config.json"), config.to_string()).expect("a configuration");
    let manifest = json!([{"Config": "config.json", "RepoTags": ["layers:1"], "Layers": layers}]);
    fs::write(room.join("manifest.json"), manifest.to_string()).expect("a manifest");
    let mut once = layers.to_vec();
    once.sort();
    once.dedup();
    let archive = room.join("archive");
    done(
        Command::new("tar")
            .arg("-cf")
            .arg(&archive)
            .arg("-C")
            .arg(room)
            .args(["manifest.json", "config.json"])
            .args(once),
    );
    let mut command = Command::new(program());
    command.args(["run", "--rm", "--network", "none"]).args(options);
    command.arg(format!("docker-archive:{}", archive.display())).args(["/bin/sh", "-c", script]);
    command.env("VMM_STORE", room.join("store")).env("VMM_KERNEL", guest("tuned/vmlinux")).stdin(Stdio::null());
    command.env("VMM_RUNTIME_DIR", room.join("r")).output().expect("vmm run")
}

#[test]
fn an_image_has_as_many_layers_as_there_may_be() {
    let room = store();
    let room = room.path();
    let mut layers = vec![base(room)];
    let mut expected = String::new();
    for number in 1..127 {
        layers.push(files(room, &number.to_string(), &[(&format!("own{number}"), "x"), ("top", &number.to_string())]));
        write!(expected, "/own{number} ").expect("a text");
    }
    let script = "cat top; echo; i=1; while [ -e /own$i ]; do echo -n \"/own$i \"; i=$((i + 1)); done";
    let output = run(room, &layers, &["--templates", "never"], script);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("126\n{expected}"), "{output:?}");
    layers.push(files(room, "127", &[("top", "127")]));
    let output = run(room, &layers, &[], "true");
    assert_eq!(output.status.code(), Some(125));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the image has 128 layers; at most 127 are possible"), "{said}");
}

/// As builds have them that copy the same files twice. overlayfs takes each directory once.
#[test]
fn a_layer_that_is_there_again_counts_where_it_is_highest() {
    let room = store();
    let room = room.path();
    let again = files(room, "again", &[("changed", "again"), ("gone", "again"), ("only", "again")]);
    let between = files(room, "between", &[("changed", "between"), (".wh.gone", ""), ("other", "between")]);
    let script = "for f in changed gone only other; do echo $f $(cat /$f); done";
    let layers = [base(room), again.clone(), between, again];
    for options in [&["--vm", "twice"][..], &[]] {
        let output = run(room, &layers, options, script);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, "changed again\ngone again\nonly again\nother between\n", "{output:?}");
    }
}
