//! Images from directories and archives, and all that is done with them in the store.

use std::fs::File;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Room, cut, done, noise, one_line, refused};

#[test]
fn an_image_is_the_same_from_everywhere() {
    let room = Room::new();
    room.layout();
    assert_eq!(room.done("import oci:layout:v1 app:1"), "docker.io/library/app:1\n");
    room.is_same("app:1", "oci:layout:v1");
    // The store is a layout itself.
    room.is_same("app:1", &format!("oci:{}:docker.io/library/app:1", room.store().display()));
    room.run("skopeo copy oci:layout:v1 oci-archive:oci.tar:app:2");
    assert_eq!(room.done("import oci-archive:oci.tar"), "docker.io/library/app:2\n");
    room.is_same("app:2", "oci-archive:oci.tar");
    room.run("skopeo copy oci:layout:v1 docker-archive:docker.tar:app:3");
    assert_eq!(room.done("import docker-archive:docker.tar"), "docker.io/library/app:3\n");
    let (one, three) = (room.json("inspect app:1"), room.json("inspect app:3"));
    for key in ["/0/Config", "/0/RootFS", "/0/Created", "/0/Manifest/config/digest"] {
        assert!(one.pointer(key).is_some() && one.pointer(key) == three.pointer(key), "{key}");
    }
    let theirs = room.skopeo("docker-archive:docker.tar");
    assert_eq!(one.pointer("/0/RootFS/Layers"), Some(&theirs["Layers"]));
}

#[test]
fn a_tar_may_come_through_a_pipe() {
    let room = Room::new();
    room.layout();
    room.run("skopeo copy oci:layout:v1 docker-archive:docker.tar:app:3");
    room.run("skopeo copy oci:layout:v1 oci-archive:oci.tar:app:2");
    room.run("gzip --keep oci.tar");
    for (file, name) in [("docker.tar", "app:3"), ("oci.tar", "app:2"), ("oci.tar.gz", "app:2")] {
        let mut command = room.image("import -");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start vmm");
        let mut pipe = child.stdin.take().expect("a pipe");
        std::io::copy(&mut File::open(room.path(file)).expect("the tar"), &mut pipe).expect("all of it");
        drop(pipe);
        let output = child.wait_with_output().expect("its end");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("docker.io/library/{name}\n"));
        // A file is read where it is.
        let mut command = room.image("import - other:1");
        assert!(!done(command.stdin(File::open(room.path(file)).expect("the tar"))).is_empty());
    }
    assert!(refused(&mut room.image("import -")).contains("this is empty"));
}

#[test]
fn the_store_is_listed_and_pruned() {
    let room = Room::new();
    room.layout();
    assert_eq!(room.done("ls"), "REPOSITORY  TAG  IMAGE ID  CREATED  SIZE\n");
    room.done("import oci:layout:v1 app:1 host.example/group/app:2");
    let blobs = room.files("blobs/sha256").len();
    room.insert("v1", "text", "/etc/text2");
    room.done("import oci:layout:v1 app:3");
    // Manifest, configuration, one layer: the others are shared.
    assert_eq!(room.files("blobs/sha256").len(), blobs + 3);
    let list = room.json("ls --json");
    assert_eq!(list[0]["names"], json!(["docker.io/library/app:1", "host.example/group/app:2"]));
    assert_eq!((&list[0]["layer_count"], &list[1]["layer_count"]), (&json!(2), &json!(3)));
    let table = room.done("ls");
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let digest = list[0]["digest"].as_str().expect("a digest");
    assert_eq!((rows.len(), &rows[1][..2], rows[1][2]), (4, &["app", "1"][..], &digest[7..19]));
    assert_eq!(room.done("ls -q").lines().count(), 2);

    assert!(room.refused(&format!("rm {}", &digest[7..13])).contains("has several names"));
    assert_eq!(room.done("rm app:1"), "Untagged: docker.io/library/app:1\n");
    assert!(room.refused("inspect app:1").ends_with("no image `app:1` in the store (`vmm image ls` lists them)"));
    assert_eq!(room.done(&format!("rm {digest}")), "Untagged: host.example/group/app:2\n");
    room.is_same("app:3", "oci:layout:v1");
    // What is not there does not keep the others.
    let mut command = room.image("rm nothing:1 app:3");
    assert!(one_line(command.output().expect("run it")).contains("no image `nothing:1`"));
    assert!(room.files("blobs/sha256").is_empty() && room.files("layers").is_empty());
    room.done("rm --force nothing:1");

    room.done("import oci:layout:v1 app:4");
    std::fs::write(room.store().join("work/blob-left"), vec![1; 10_000]).expect("a leftover");
    assert_eq!(room.done("import oci:layout:v1 app:4"), "docker.io/library/app:4\n");
    let pruned = room.json("prune --json");
    assert_eq!((&pruned["leftovers"], &pruned["blobs"]), (&json!(1), &json!(0)));
    assert!(pruned["bytes"].as_u64().expect("a number") >= 10_000);
    assert_eq!(room.done("prune"), "Removed 0 blobs, 0 layers, 0 templates and 0 leftovers: 0B (0 bytes)\n");
}

#[test]
fn images_that_no_container_uses_can_be_pruned() {
    let room = Room::new();
    room.layout();
    room.insert("v1", "text", "/etc/more");
    room.run("umoci tag --image layout:v1 v2");
    room.insert("v2", "text", "/etc/two");
    room.done("import oci:layout:v1 app:1");
    room.done("import oci:layout:v2 app:2 other:2");
    // A container that has ended was made of the first.
    let folder = room.store().join("containers/c");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("container.json"), r#"{"name": "c", "image": "app:1"}"#).expect("a record");
    assert_eq!(room.json("prune --json")["untagged"], json!([]));
    let said = room.done("prune -a");
    let untagged = "Untagged: docker.io/library/app:2\nUntagged: docker.io/library/other:2\nRemoved 3 blobs, 1 layers, 0 templates and ";
    assert!(said.starts_with(untagged), "{said}");
    room.done("inspect app:1");
    std::fs::remove_dir_all(&folder).expect("removed");
    assert_eq!(room.json("prune --all --json")["untagged"], json!(["docker.io/library/app:1"]));
    assert!(room.files("blobs/sha256").is_empty() && room.files("layers").is_empty());
}

#[test]
fn history_tells_each_step() {
    let room = Room::new();
    room.layout();
    room.done("import oci:layout:v1 app:1");
    let steps = room.json("history --json app:1");
    let steps = steps.as_array().expect("steps");
    // umoci notes the configuration as a step without a layer.
    let sizes: Vec<_> = steps.iter().map(|step| step["size_bytes"].as_u64().expect("a size")).collect();
    let layers = steps.iter().filter(|step| !step["layer"].is_null()).count();
    assert_eq!((layers, sizes[0]), (2, 0));
    let table = room.done("history app:1");
    assert_eq!(table.lines().count(), steps.len() + 1);
    assert!(table.starts_with("CREATED") && table.contains("umoci"));
}

#[test]
fn what_is_exported_others_read() {
    let room = Room::new();
    room.layout();
    room.done("import oci:layout:v1 app:1");
    room.done("export app:1 -o oci.tar");
    room.is_same("app:1", "oci-archive:oci.tar");
    room.done("export --format docker-archive --output docker.tar app:1");
    let theirs = room.skopeo("docker-archive:docker.tar");
    assert_eq!(room.json("inspect app:1").pointer("/0/RootFS/Layers"), Some(&theirs["Layers"]));
    let list: Value = serde_json::from_str(&room.run("tar xOf docker.tar manifest.json")).expect("JSON");
    assert_eq!(list[0]["RepoTags"], json!(["app:1"]));
    // To a pipe, and back.
    let out = room.image("export app:1").output().expect("run it").stdout;
    assert!(out == std::fs::read(room.path("oci.tar")).expect("the file"));
    assert!(room.refused("export app:1 -o nowhere/x.tar").contains("nowhere/x.tar"));
    assert!(room.refused("export app:2").contains("no image `app:2`"));
}

#[test]
fn bad_images_are_one_line_and_leave_nothing() {
    let room = Room::new();
    room.layout();
    room.run("skopeo copy oci:layout:v1 docker-archive:docker.tar:app:3");
    for (line, why) in [
        ("import oci:nothing", "oci:nothing: can not look at nothing: No such file"),
        ("import oci:layout:v2", "there is no image `v2`, but v1"),
        ("import oci-archive:docker.tar", "docker-archive:"),
        ("import docker-archive:text", "no tar"),
        ("import text", "vmm image pull text"),
        ("import oci:layout:v1 ../x", "column 1"),
    ] {
        let output = room.image(line).output().expect("run it");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(why), "{line}: {text}");
        assert!(room.files("blobs/sha256").is_empty(), "{line}");
    }
    cut(&room.path("docker.tar"), 10_000);
    assert!(room.refused("import docker-archive:docker.tar").contains("cut off"));
    // A blob that is not the one that is named.
    let manifest = room.skopeo("oci:layout:v1");
    let layer = manifest["Layers"][0].as_str().expect("a digest").replace("sha256:", "layout/blobs/sha256/");
    let path = room.path(&layer);
    let mut bytes = std::fs::read(&path).expect("the layer");
    bytes[500] ^= 1;
    std::fs::write(&path, &bytes).expect("the layer");
    assert!(room.refused("import oci:layout:v1 app:1").contains("a blob has the digest"));
    bytes.truncate(100);
    std::fs::write(&path, &bytes).expect("the layer");
    assert!(room.refused("import oci:layout:v1 app:1").contains("has 100 bytes instead of"));
    assert_eq!(room.json("ls --json"), json!([]));
    room.done("prune");
    assert_eq!((room.files("blobs/sha256").len(), room.files("work").len()), (0, 0));
}

#[test]
fn a_store_has_a_limit() {
    let room = Room::new();
    room.layout();
    let limited = |limit: &str| refused(room.image("import oci:layout:v1 app:1").env("VMM_STORE_LIMIT", limit));
    assert!(limited("100K").contains("has room for"));
    assert!(limited("much").contains("VMM_STORE_LIMIT is `much`"));
    assert_eq!(room.json("ls --json"), json!([]));
}

/// Many commands for the same and for other images, some of which are killed: all that is listed is whole.
#[test]
fn commands_at_once_and_killed_ones_do_no_harm() {
    let room = Room::new();
    room.layout();
    std::fs::write(room.path("much"), noise(3 << 20)).expect("a file");
    room.insert("v1", "much", "/much");
    for round in 0..8u64 {
        let start = |name: &str| {
            let mut command = room.image(&format!("import oci:layout:v1 {name}"));
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start vmm")
        };
        let mut killed = start(&format!("killed{round}:1"));
        let until = Instant::now() + Duration::from_millis(3 + 12 * round);
        let others = ["same:1", "same:1", "other:1"].map(start);
        while Instant::now() < until {
            std::thread::yield_now();
        }
        killed.kill().expect("kill it");
        killed.wait().expect("its end");
        for other in others {
            let output = other.wait_with_output().expect("its end");
            assert!(output.status.success(), "{output:?}");
        }
        room.is_same("same:1", "oci:layout:v1");
        room.done("rm same:1 other:1");
        room.done(&format!("rm --force killed{round}:1"));
        assert_eq!((room.files("blobs/sha256").len(), room.files("layers").len(), room.files("work").len()), (0, 0, 0));
    }
}
