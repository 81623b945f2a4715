//! A store that many use at once, and that they are killed in.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::document::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::reference::Name;

/// Says to [`a_process_that_is_killed`] where its store is.
const HELPER: &str = "VMM_TEST_STORE";

fn store() -> (TempDir, Store) {
    let room = TempDir::new().unwrap();
    let store = Store::open(&room.path().join("a/store"), None).unwrap();
    (room, store)
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    let (digest, size) = (Digest::of(bytes), bytes.len() as u64);
    Descriptor { media_type: media_type.into(), digest, size, platform: None, annotations: None }
}

/// An image with these layers, in the order in which commands add one.
fn add(store: &Store, title: &str, layers: &[&str]) -> Descriptor {
    let lease = store.lease().unwrap();
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer.as_bytes())).collect();
    lease.add(diff_ids.clone()).unwrap();
    let mut blobs = Vec::new();
    for layer in layers {
        store.add_document(layer.as_bytes()).unwrap();
        blobs.push(descriptor(OCI_LAYER, layer.as_bytes()));
        if let Claim::Part(part) = store.claim_layer(&Digest::of(layer.as_bytes()), &|| {}).unwrap() {
            part.reset().unwrap();
            part.file().write_all(b"an image of ").unwrap();
            part.file().write_all(layer.as_bytes()).unwrap();
            part.finish().unwrap();
        }
    }
    let config = json!({"os": "linux", "architecture": "amd64", "author": title, "rootfs": {"diff_ids": diff_ids}});
    let config = config.to_string();
    let manifest = json!({"schemaVersion": 2, "layers": blobs, "config": descriptor(OCI_CONFIG, config.as_bytes())});
    let manifest = manifest.to_string();
    lease.add([Digest::of(config.as_bytes()), Digest::of(manifest.as_bytes())]).unwrap();
    store.add_document(config.as_bytes()).unwrap();
    store.add_document(manifest.as_bytes()).unwrap();
    let descriptor = descriptor(OCI_MANIFEST, manifest.as_bytes());
    store.set_name(&name(title), &descriptor).unwrap();
    descriptor
}

/// What is named is whole: every blob has its digest, every layer its contents.
fn is_whole(store: &Store) {
    for (_, image) in store.images().unwrap() {
        let image = image.unwrap();
        for (layer, diff_id) in image.manifest.layers.iter().zip(&image.config.rootfs.diff_ids) {
            let mut text = String::new();
            store.open_blob(layer).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(Digest::of(text.as_bytes()), layer.digest);
            let layer = std::fs::read_to_string(store.layer_path(diff_id)).unwrap();
            assert_eq!(layer, format!("an image of {text}"));
        }
    }
}

fn files(store: &Store, directory: &str) -> usize {
    store.path().join(directory).read_dir().unwrap().count()
}

#[test]
fn an_image_is_found_by_name_and_digest() {
    let (_room, store) = store();
    assert!(store.entries().unwrap().is_empty());
    let (one, two) = (add(&store, "one:1", &["a"]), add(&store, "two", &["a", "b"]));
    let pinned = format!("one@{}", one.digest);
    for text in ["one:1", "docker.io/library/one:1", &pinned, &one.digest.to_string(), &one.digest.hex()[..12]] {
        assert_eq!(store.find(text).unwrap().descriptor, one, "{text}");
    }
    assert_eq!(store.find("two:latest").unwrap().descriptor, two);
    for text in ["one", "one:2", &format!("three@{}", one.digest), "fff0", "sha256:1234"] {
        assert!(matches!(store.find(text), Err(StoreError::Unknown(_))), "{text}");
    }
    assert!(matches!(store.find("one:"), Err(StoreError::Name(_))));
    // A layer is there once.
    assert_eq!((files(&store, "layers"), files(&store, "work")), (2, 0));
    is_whole(&store);
}

#[test]
fn one_beginning_of_two_digests_is_refused() {
    let (_room, store) = store();
    let digest = |n: u32| Digest::of(&n.to_le_bytes());
    let alike = |n: &u32| digest(*n).hex()[..3] == digest(0).hex()[..3];
    let other = (1..).find(alike).unwrap();
    for n in [0, other] {
        let descriptor = Descriptor { digest: digest(n), ..descriptor(OCI_MANIFEST, b"") };
        store.set_name(&name(&format!("n{n}:1")), &descriptor).unwrap();
    }
    let twice = digest(0);
    assert!(matches!(store.find(&twice.hex()[..3]), Err(StoreError::Ambiguous { found, .. }) if found.len() > 1));
}

#[test]
fn a_name_moves_to_the_newer_image() {
    let (_room, store) = store();
    let (old, new) = (add(&store, "app", &["old", "both"]), add(&store, "app", &["both", "new"]));
    assert_eq!(store.find("app").unwrap().descriptor, new);
    assert!(matches!(store.image(&old.digest), Err(StoreError::Unknown(_))));
    let swept = store.sweep().unwrap();
    assert_eq!((swept.blobs, swept.layers, swept.leftovers), (3, 1, 0));
    assert!(swept.bytes >= 4 * 512);
    is_whole(&store);
    assert_eq!(store.sweep().unwrap(), Swept::default());
    assert_eq!(store.remove_names(&[name("app")], &old.digest).unwrap(), []);
    assert_eq!(store.remove_names(&[name("app"), name("b")], &new.digest).unwrap(), [name("app")]);
    store.sweep().unwrap();
    assert_eq!((files(&store, "blobs/sha256"), files(&store, "layers"), store.used().unwrap()), (0, 0, 0));
}

#[test]
fn what_is_used_stays() {
    let (_room, store) = store();
    let image = add(&store, "app", &["a"]);
    let (held, lease) = store.hold("app").unwrap();
    store.remove_names(&[name("app")], &image.digest).unwrap();
    assert_eq!(store.sweep().unwrap(), Swept::default());
    assert!(store.open_blob(&held.manifest.layers[0]).is_ok());
    drop(lease);
    let swept = store.sweep().unwrap();
    assert_eq!((swept.blobs, swept.layers, swept.leftovers), (3, 1, 0));
}

#[test]
fn a_leftover_is_gone_on_with_or_swept() {
    let (_room, store) = store();
    let digest = Digest::of(b"whole");
    let Claim::Part(part) = store.claim_blob(&digest, &|| {}).unwrap() else { panic!("it is not there") };
    part.file().write_all(b"who").unwrap();
    // Its maker lives.
    assert_eq!(store.sweep().unwrap(), Swept::default());
    drop(part);
    let Claim::Part(part) = store.claim_blob(&digest, &|| {}).unwrap() else { panic!("it is not there") };
    assert_eq!(part.size().unwrap(), 3);
    drop(part);
    let swept = store.sweep().unwrap();
    assert_eq!((swept.blobs, swept.leftovers), (0, 1));
    assert!(!store.blob_path(&digest).exists());
}

#[test]
fn what_was_changed_on_disk_is_not_used() {
    let (_room, store) = store();
    let image = add(&store, "app", &["a layer"]);
    let path = store.blob_path(&Digest::of(b"a layer"));
    let rewrite = |path: &Path, text: &[u8]| {
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, text).unwrap();
    };
    rewrite(&path, b"a lay");
    let found = store.find("app").unwrap();
    assert!(store.open_blob(&found.manifest.layers[0]).unwrap_err().to_string().contains("has 5 bytes instead of 7"));
    rewrite(&store.blob_path(&image.digest), b"{}");
    assert!(matches!(store.find("app"), Err(StoreError::Damaged { .. })));
    // Nothing is removed because a manifest can not be read; but the image can be.
    assert!(store.sweep().is_err());
    store.remove_names(&[name("app")], &store.find_digest("app").unwrap()).unwrap();
    store.sweep().unwrap();
    assert_eq!(files(&store, "blobs/sha256"), 0);
}

#[test]
fn a_limit_holds() {
    let room = TempDir::new().unwrap();
    let store = Store::open(room.path(), Some(1 << 20)).unwrap();
    assert_eq!(store.room().unwrap(), 1 << 20);
    assert!(store.check_room((1 << 20) + 1).is_err());
    store.add_document(&[1; 1 << 19]).unwrap();
    assert!(store.room().unwrap() <= 1 << 19 && store.check_room(1 << 18).is_ok());
    assert!(store.check_room(1 << 20).unwrap_err().to_string().contains("VMM_STORE_LIMIT"));
    assert_eq!((bytes("20G").unwrap(), bytes("7").unwrap()), (20 << 30, 7));
    for text in ["", "G", "0", "-1", "1X", "99999999999T"] {
        assert!(bytes(text).is_err(), "{text}");
    }
}

/// However many want the same, one makes it and the others wait.
#[test]
fn nothing_is_made_twice() {
    let (_room, store) = store();
    let (made, waited) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let digest = Digest::of(b"x");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let waiting = || {
                    waited.fetch_add(1, Ordering::SeqCst);
                };
                if let Claim::Part(part) = store.claim_layer(&digest, &waiting).unwrap() {
                    made.fetch_add(1, Ordering::SeqCst);
                    // Until another is seen to wait.
                    while waited.load(Ordering::SeqCst) == 0 {
                        thread::yield_now();
                    }
                    part.finish().unwrap();
                }
            });
        }
    });
    assert_eq!(made.load(Ordering::SeqCst), 1);
}

/// Adders, removers and sweepers at once.
#[test]
fn many_at_once_do_not_cross() {
    let (_room, store) = store();
    thread::scope(|scope| {
        for worker in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..12 {
                    let layers = ["base", if round % 2 == 0 { "even" } else { "odd" }];
                    let title = format!("app{}:1", (worker + round) % 3);
                    let added = add(store, &title, &layers);
                    if round % 3 == 2 {
                        store.remove_names(&[name(&title)], &added.digest).unwrap();
                    }
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..40 {
                store.sweep().unwrap();
                store.entries().unwrap();
            }
        });
    });
    is_whole(&store);
    store.sweep().unwrap();
    is_whole(&store);
    assert_eq!(files(&store, "work"), 0);
}

/// No test by itself: the process that the next test starts and kills. It adds and removes images until then.
#[test]
fn a_process_that_is_killed() {
    let Some(root) = std::env::var_os(HELPER) else { return };
    let store = Store::open(Path::new(&root), None).unwrap();
    for round in 0.. {
        let text = format!("layer {} ", round % 7).repeat(3000);
        let added = add(&store, &format!("app{}:1", round % 5), &["base", &text]);
        if round % 4 == 3 {
            store.remove_names(&[name(&format!("app{}:1", round % 5))], &added.digest).unwrap();
            store.sweep().unwrap();
        }
    }
}

#[test]
fn kill_9_leaves_a_whole_store() {
    let (_room, store) = store();
    let me = std::env::current_exe().unwrap();
    for round in 0..30 {
        let start = || {
            let mut command = Command::new(&me);
            command.args(["--exact", "store::tests::a_process_that_is_killed"]).env(HELPER, store.path());
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let mut helpers = [start(), start()];
        // Somewhere in their work, another place each time.
        let until = Instant::now() + Duration::from_micros(8000 + 1700 * round);
        while Instant::now() < until {
            thread::yield_now();
        }
        for helper in &mut helpers {
            helper.kill().unwrap();
            helper.wait().unwrap();
            let mut said = String::new();
            helper.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            assert_eq!(said, "");
        }
        is_whole(&store);
    }
    store.sweep().unwrap();
    is_whole(&store);
    assert_eq!(files(&store, "work"), 0);
    assert!(!store.entries().unwrap().is_empty(), "nobody came as far as an image");
}
