//! Archives and layouts as tools write them, and as nobody should.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;
use crate::add::add;
use crate::document::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use crate::export::{Kind, export};
use crate::progress::Progress;
use crate::reference::Place;
use crate::store::Store;

/// A directory for archives, and a store.
struct Room {
    room: TempDir,
    store: Store,
}

/// Files by name.
type Files = Vec<(String, Vec<u8>)>;

impl Room {
    fn new() -> Self {
        let room = TempDir::new().unwrap();
        let store = Store::open(&room.path().join("store"), None).unwrap();
        Self { room, store }
    }

    fn place(&self, name: &str, selector: Option<&str>) -> Place {
        Place { path: self.room.path().join(name), selector: selector.map(str::to_owned) }
    }

    /// A layout as a directory.
    fn layout(&self, files: &Files, selector: Option<&str>) -> Result<Layout, SourceError> {
        for (name, bytes) in files {
            let path = self.room.path().join("layout").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        Layout::directory(&self.place("layout", selector))
    }

    fn tar(&self, files: &Files) -> PathBuf {
        let path = self.room.path().join("image.tar");
        std::fs::write(&path, tarred(files)).unwrap();
        path
    }

    fn docker(&self, files: &Files, selector: Option<&str>) -> Result<DockerArchive, SourceError> {
        self.tar(files);
        archive::docker(&self.store, &self.place("image.tar", selector))
    }

    fn add(&self, source: &dyn Source) -> Result<crate::add::Added, String> {
        add(&self.store, source, &[], &Progress::silent()).map_err(|error| error.to_string())
    }

    /// Why it is refused; nothing of it is visible.
    fn refused(&self, source: Result<impl Source, SourceError>) -> String {
        let why = match source {
            Ok(source) => self.add(&source).unwrap_err(),
            Err(error) => error.to_string(),
        };
        assert!(self.store.entries().unwrap().is_empty());
        self.store.sweep().unwrap();
        assert_eq!(self.store.used().unwrap(), 0, "{why}");
        why
    }
}

fn header(size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size as u64);
    header.set_mode(0o644);
    header
}

fn tarred(files: &Files) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (name, bytes) in files {
        tar.append_data(&mut header(bytes.len()), name, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A layer with one file.
fn layer(text: &str) -> Vec<u8> {
    tarred(&vec![("file".to_owned(), text.as_bytes().to_vec())])
}

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    config.to_string().into_bytes()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

fn blob(bytes: &[u8]) -> (String, Vec<u8>) {
    (format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes.to_vec())
}

/// A layout with one image, whose manifest is changed before it is named.
fn layout(change: impl Fn(&mut Value)) -> Files {
    let layers = [layer("one"), layer("two")];
    let config = config(&layers);
    let descriptors: Vec<_> = layers.iter().map(|layer| descriptor(OCI_LAYER, layer)).collect();
    let mut manifest = json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG, &config), "layers": descriptors});
    change(&mut manifest);
    let manifest = manifest.to_string().into_bytes();
    let mut named = descriptor(OCI_MANIFEST, &manifest);
    named["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    let index = json!({"schemaVersion": 2, "manifests": [named]}).to_string().into_bytes();
    let mut files = vec![("index.json".to_owned(), index), blob(&manifest), blob(&config)];
    files.extend(layers.iter().map(|layer| blob(layer)));
    files
}

/// What docker save writes.
fn saved() -> Files {
    let layers = [layer("one"), layer("two")];
    let list = json!([{"Config": "c.json", "RepoTags": ["app:1", "host.x/app:2"], "Layers": ["1/layer.tar", "2.tar"]}]);
    vec![
        ("1/layer.tar".to_owned(), layers[0].clone()),
        ("2.tar".to_owned(), layers[1].clone()),
        ("c.json".to_owned(), config(&layers)),
        ("manifest.json".to_owned(), list.to_string().into_bytes()),
    ]
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn a_layout_is_added_under_its_name() {
    let room = Room::new();
    let added = room.add(&room.layout(&layout(|_| {}), Some("v1")).unwrap()).unwrap();
    assert_eq!(added.image.names[0].to_string(), "localhost/layout:v1");
    assert_eq!(added.image.manifest.layers.len(), 2);
    assert!(!added.was_there);
    assert!(room.add(&room.layout(&vec![], None).unwrap()).unwrap().was_there);
    // The same in a tar.
    room.tar(&layout(|_| {}));
    let again = room.add(&archive::oci(&room.store, &room.place("image.tar", None)).unwrap()).unwrap();
    assert_eq!(again.image.descriptor, added.image.descriptor);
    assert_eq!(again.image.names.len(), 2);
}

#[test]
fn what_docker_saved_is_added_with_all_its_names() {
    let room = Room::new();
    let added = room.add(&room.docker(&saved(), None).unwrap()).unwrap();
    let names: Vec<_> = added.image.names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["docker.io/library/app:1", "host.x/app:2"]);
    let by_name = room.docker(&saved(), Some("docker.io/library/app:1")).unwrap();
    assert_eq!(by_name.manifest().unwrap().bytes, room.store.read_document(&added.image.descriptor.digest).unwrap());
    let packed = gzipped(&tarred(&saved()));
    std::fs::write(room.room.path().join("packed"), packed).unwrap();
    let packed = archive::docker(&room.store, &room.place("packed", None)).unwrap();
    assert!(room.add(&packed).unwrap().was_there);
}

#[test]
fn layers_of_an_archive_may_be_packed_and_linked() {
    let room = Room::new();
    let mut files = saved();
    files[0].1 = gzipped(&files[0].1);
    let added = room.add(&room.docker(&files, None).unwrap()).unwrap();
    assert_eq!(added.image.manifest.layers[0].digest, Digest::of(&files[0].1));
    // Old versions of docker save link to a layer that is there twice.
    let mut tar = Builder::new(File::create(room.room.path().join("links")).unwrap());
    for (name, bytes) in saved() {
        let (name, target) =
            if name == "2.tar" { ("x/real.tar".into(), Some("x/../x/./real.tar")) } else { (name, None) };
        tar.append_data(&mut header(bytes.len()), &name, &bytes[..]).unwrap();
        if let Some(target) = target {
            let mut link = header(0);
            link.set_entry_type(EntryType::Symlink);
            tar.append_link(&mut link, "2.tar", target).unwrap();
        }
    }
    tar.finish().unwrap();
    drop(tar);
    assert!(room.add(&archive::docker(&room.store, &room.place("links", None)).unwrap()).is_ok());
}

#[test]
fn an_exported_image_is_the_same_image() {
    let room = Room::new();
    let mut files = saved();
    files[0].1 = gzipped(&files[0].1);
    let added = room.add(&room.docker(&files, None).unwrap()).unwrap();
    for (kind, file) in [(Kind::Oci, "oci.tar"), (Kind::Docker, "docker.tar")] {
        let path = room.room.path().join(file);
        let names = &added.image.names[..1];
        export(&room.store, &added.image, names, kind, File::create(&path).unwrap()).unwrap();
        let other = Room::new();
        let place = room.place(file, None);
        let again = match kind {
            Kind::Oci => other.add(&archive::oci(&other.store, &place).unwrap()).unwrap(),
            Kind::Docker => other.add(&archive::docker(&other.store, &place).unwrap()).unwrap(),
        };
        assert_eq!(again.image.names, names);
        assert_eq!(again.image.manifest.config, added.image.manifest.config);
        if kind == Kind::Oci {
            assert_eq!(again.image.descriptor, added.image.descriptor);
        }
    }
}

#[test]
fn a_manifest_that_lies_is_refused() {
    let room = Room::new();
    let changed = |path: &str, value: Value| {
        let files = layout(|manifest| *manifest.pointer_mut(path).unwrap() = value.clone());
        room.refused(room.layout(&files, None))
    };
    assert!(changed("/layers/0/size", json!(100)).contains("has more than 100 bytes instead of 100"));
    assert!(changed("/layers/1/size", json!(1 << 20)).contains("bytes instead of 1048576"));
    assert!(changed("/layers/1/size", json!(u64::MAX)).contains("has room for"));
    assert!(changed("/config/size", json!(3)).contains("has more than 3 bytes"));
    assert!(changed("/layers/0/digest", json!(Digest::of(b"?"))).contains("No such file"));
    assert!(changed("/layers/0/digest", json!("sha256:../../../../etc/passwd")).contains("hexadecimal"));
    assert!(changed("/layers", json!([])).contains("has 0 layers, its configuration 2"));
    assert!(changed("/config/mediaType", json!("text/plain")).contains("no container image"));
}

#[test]
fn blobs_that_are_others_are_refused() {
    let room = Room::new();
    for (number, what) in
        [(1, "the manifest has the digest"), (2, "a blob has the digest"), (4, "a blob has the digest")]
    {
        let mut files = layout(|_| {});
        let last = files[number].1.last_mut().unwrap();
        *last ^= 1;
        let why = room.refused(room.layout(&files, None));
        assert!(why.starts_with(what), "{why}");
    }
    let mut files = layout(|_| {});
    files[1].1.push(b' ');
    assert!(room.refused(room.layout(&files, None)).contains("bytes instead of"));
}

#[test]
fn what_is_missing_or_too_much_is_named() {
    let room = Room::new();
    let empty = room.place("nothing", None);
    assert!(Layout::directory(&empty).err().unwrap().to_string().contains("No such file"));
    let room_itself = room.place("", None);
    assert!(Layout::directory(&room_itself).err().unwrap().to_string().contains("no OCI image layout"));
    let refused = room.refused(room.layout(&layout(|_| {}), Some("v2")));
    assert!(refused.ends_with("there is no image `v2`, but v1"), "{refused}");
    let mut files = layout(|_| {});
    let mut index: Value = serde_json::from_slice(&files[0].1).unwrap();
    let mut second = index["manifests"][0].clone();
    second["annotations"] = json!({"org.opencontainers.image.ref.name": "v2"});
    index["manifests"].as_array_mut().unwrap().push(second);
    files[0].1 = index.to_string().into_bytes();
    assert!(room.refused(room.layout(&files, None)).contains("say which, as PATH:REF: v1, v2"));
    files[0].1 = json!({"schemaVersion": 2, "manifests": []}).to_string().into_bytes();
    assert!(room.refused(room.layout(&files, None)).contains("there is no image in it"));
    files[0].1 = b"{".to_vec();
    assert!(room.refused(room.layout(&files, None)).contains("index is not understood"));
    files[0].1 = vec![b' '; 5 << 20];
    assert!(room.refused(room.layout(&files, None)).contains("longer than"));
}

#[test]
fn an_index_leads_to_this_machine_s_manifest() {
    let room = Room::new();
    let inner = layout(|_| {});
    let manifest = inner[1].1.clone();
    let nest = |depth: usize, architecture: &str| {
        let mut files = inner.clone();
        let mut one = descriptor(OCI_MANIFEST, &manifest);
        one["platform"] = json!({"os": "linux", "architecture": architecture});
        for _ in 0..depth {
            let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [one]}).to_string();
            files.push(blob(index.as_bytes()));
            one = descriptor(OCI_INDEX, index.as_bytes());
        }
        files[0].1 = json!({"schemaVersion": 2, "manifests": [one]}).to_string().into_bytes();
        room.layout(&files, None)
    };
    assert!(room.refused(nest(1, "s390x")).contains("for linux/s390x; this machine runs linux/amd64"));
    assert!(room.refused(nest(6, "amd64")).contains("4 deep"));
    let source = nest(2, "amd64").unwrap();
    assert_eq!(source.manifest().unwrap().bytes, manifest);
}

#[test]
fn archives_that_are_none_are_refused() {
    let room = Room::new();
    let docker = |bytes: &[u8]| {
        std::fs::write(room.room.path().join("odd"), bytes).unwrap();
        room.refused(archive::docker(&room.store, &room.place("odd", None)))
    };
    assert!(docker(b"").contains("this is empty"));
    assert!(docker(&[b'x'; 2000]).contains("no tar"));
    let whole = tarred(&saved());
    assert!(docker(&whole[..1000]).contains("cut off within `1/layer.tar`"));
    assert!(docker(&gzipped(&whole)[..300]).contains("can not read"));
    assert!(docker(&tarred(&layout(|_| {}))).contains("oci-archive:"));
    assert!(room.refused(archive::oci(&room.store, &room.place("", None))).contains("directory"));
    room.tar(&saved());
    assert!(room.refused(archive::oci(&room.store, &room.place("image.tar", None))).contains("docker-archive:"));
    let mut files = saved();
    files.remove(1);
    assert!(room.refused(room.docker(&files, None)).contains("has no `2.tar`"));
    assert!(room.refused(room.docker(&saved(), Some("other"))).contains("no image `other`, but app:1, host.x/app:2"));
}

#[test]
fn links_in_a_circle_end() {
    let room = Room::new();
    let mut tar = Builder::new(Vec::new());
    for (name, target) in [("manifest.json", "b"), ("b", "manifest.json")] {
        let mut link = header(0);
        link.set_entry_type(EntryType::Symlink);
        tar.append_link(&mut link, name, target).unwrap();
    }
    std::fs::write(room.room.path().join("circle"), tar.into_inner().unwrap()).unwrap();
    let why = room.refused(archive::docker(&room.store, &room.place("circle", None)));
    assert!(why.contains("leads to itself"), "{why}");
}

/// A small file that unpacks to more than the store may have.
#[test]
fn a_bomb_stops_at_the_store_s_limit() {
    let room = TempDir::new().unwrap();
    let store = Store::open(&room.path().join("store"), Some(1 << 20)).unwrap();
    let bomb = gzipped(&vec![0; 8 << 20]);
    std::fs::write(room.path().join("bomb"), bomb).unwrap();
    let place = Place { path: room.path().join("bomb"), selector: None };
    let why = archive::docker(&store, &place).err().unwrap().to_string();
    assert!(why.contains("has room for 1048576 bytes more"), "{why}");
    assert_eq!(store.used().unwrap(), 0);
}

/// A layout whose image has this one layer, and a configuration that says something else of it.
fn layout_of(layer: &[u8], media_type: &str, diff_id: Digest) -> Files {
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let config = config.to_string().into_bytes();
    let layers = [descriptor(media_type, layer)];
    let manifest = json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG, &config), "layers": layers});
    let manifest = manifest.to_string().into_bytes();
    let index = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST, &manifest)]}).to_string();
    vec![("index.json".to_owned(), index.into_bytes()), blob(&manifest), blob(&config), blob(layer)]
}

#[test]
fn a_layer_becomes_a_file_system_image_once() {
    let room = Room::new();
    let (plain, gzip) = (layer("text"), "application/vnd.oci.image.layer.v1.tar+gzip");
    let added = room.add(&room.layout(&layout_of(&gzipped(&plain), gzip, Digest::of(&plain)), None).unwrap()).unwrap();
    let path = room.store.layer_path(&added.image.config.rootfs.diff_ids[0]);
    let made = path.metadata().unwrap().modified().unwrap();
    // EROFS, include/uapi or fs/erofs/erofs_fs.h: the superblock is at 1024.
    assert_eq!(std::fs::read(&path).unwrap()[1024..1028], 0xE0F5_E1E2_u32.to_le_bytes());
    let other = room.layout(&layout_of(&plain, OCI_LAYER, Digest::of(&plain)), None).unwrap();
    assert_ne!(room.add(&other).unwrap().image.descriptor, added.image.descriptor);
    assert_eq!(path.metadata().unwrap().modified().unwrap(), made);
}

#[test]
fn layers_that_can_not_be_unpacked_are_refused() {
    let room = Room::new();
    let (plain, gzip) = (layer("text"), "application/vnd.oci.image.layer.v1.tar+gzip");
    let packed = gzipped(&plain);
    let refused = |layer: &[u8], media_type: &str, diff_id: Digest| {
        room.refused(room.layout(&layout_of(layer, media_type, diff_id), None))
    };
    assert!(refused(&packed, gzip, Digest::of(b"?")).starts_with("an unpacked layer has the digest"));
    let short = Digest::of(&packed[..50]).short();
    assert!(refused(&packed[..50], gzip, Digest::of(&plain)).starts_with(&format!("layer {short}: the layer")));
    assert!(refused(&[b'x'; 1024], OCI_LAYER, Digest::of(&[b'x'; 1024])).contains("no tar"));
    let climbing = tarred_by_hand("../../etc/passwd");
    assert!(refused(&climbing, OCI_LAYER, Digest::of(&climbing)).contains("etc/passwd"));
    // More than the store may have, of next to nothing.
    let limited = Store::open(&room.room.path().join("limited"), Some(1 << 20)).unwrap();
    let bomb = layer(&"0".repeat(8 << 20));
    let source = room.layout(&layout_of(&gzipped(&bomb), gzip, Digest::of(&bomb)), None).unwrap();
    let why = add(&limited, &source, &[], &Progress::silent()).unwrap_err().to_string();
    assert!(why.contains("unpacks to more than the") && why.contains("VMM_STORE_LIMIT"), "{why}");
    limited.sweep().unwrap();
    assert_eq!(limited.used().unwrap(), 0);
}

/// A tar with a file of this name, which the library would not write.
fn tarred_by_hand(name: &str) -> Vec<u8> {
    let mut head = header(1);
    head.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    head.set_cksum();
    let mut tar = Builder::new(Vec::new());
    tar.append(&head, &b"x"[..]).unwrap();
    tar.into_inner().unwrap()
}

/// What a layer reads as, whichever way it is packed.
#[test]
fn a_layer_s_blob_is_read_from_anywhere() {
    let room = Room::new();
    let source = room.docker(&saved(), None).unwrap();
    let manifest = crate::document::Manifest::read(&source.manifest().unwrap().bytes).unwrap();
    let (layer, whole) = (&manifest.layers[1], &saved()[1].1);
    let mut rest = Vec::new();
    source.open(layer, 700).unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(rest, whole[700..]);
}
