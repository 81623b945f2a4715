//! Documents of images: what is taken, and what is refused.

use serde_json::json;

use super::*;

fn descriptor(media_type: &str) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": Digest::of(b"x"), "size": 1})
}

fn manifest(config: &str, layers: &[&str]) -> Result<Manifest, String> {
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(layer)).collect();
    let whole = json!({"schemaVersion": 2, "config": descriptor(config), "layers": layers});
    Manifest::read(whole.to_string().as_bytes()).map_err(|error| error.to_string())
}

fn index(platforms: &[(&str, &str, Option<&str>)]) -> Index {
    let manifests = platforms.iter().enumerate().map(|(index, (os, architecture, variant))| Descriptor {
        media_type: OCI_MANIFEST.into(),
        digest: Digest::of(&[u8::try_from(index).unwrap()]),
        size: index as u64,
        platform: Some(Platform {
            os: (*os).into(),
            architecture: (*architecture).into(),
            variant: variant.map(str::to_owned),
        }),
        annotations: None,
    });
    Index { schema_version: 2, media_type: None, manifests: manifests.collect() }
}

#[test]
fn of_several_platforms_this_machine_s_is_taken() {
    let chosen = |platforms: &[_]| index(platforms).for_this_machine().map(|one| one.size).map_err(|e| e.to_string());
    assert_eq!(chosen(&[("linux", "arm64", None), ("linux", "amd64", None)]), Ok(1));
    assert_eq!(chosen(&[("linux", "amd64", Some("v3")), ("linux", "amd64", None)]), Ok(1));
    assert_eq!(chosen(&[("linux", "amd64", Some("v2"))]), Ok(0));
    let refused = chosen(&[("windows", "amd64", None), ("linux", "arm", Some("v7")), ("unknown", "unknown", None)]);
    let wanted = "the image is for linux/arm/v7, windows/amd64; this machine runs linux/amd64";
    assert_eq!(refused, Err(wanted.into()));
}

#[test]
fn a_manifest_is_of_an_image() {
    let layer = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    assert!(manifest(DOCKER_CONFIG, &[layer, OCI_LAYER]).is_ok());
    assert!(manifest("application/vnd.cncf.helm.config.v1+json", &[]).unwrap_err().contains("helm"));
    let secret = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    assert!(manifest(OCI_CONFIG, &[OCI_LAYER, secret]).unwrap_err().starts_with("layer 2 is"));
    assert!(manifest(OCI_CONFIG, &[OCI_LAYER; LAYERS_MAX]).is_ok());
    assert!(manifest(OCI_CONFIG, &[OCI_LAYER; 128]).unwrap_err().contains("128 layers"));
    let old = Manifest::read(br#"{"schemaVersion": 1, "fsLayers": []}"#).unwrap_err();
    assert!(old.to_string().contains("schema version 1"));
    let path = br#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:../../x","size":1},"layers":[]}"#;
    assert!(Manifest::read(path).unwrap_err().to_string().contains("hexadecimal"));
    let negative = br#"{"schemaVersion":2,"config":{"digest":"sha256:","size":-1},"layers":[]}"#;
    assert!(Manifest::read(negative).is_err());
}

#[test]
fn a_configuration_fits_its_manifest() {
    let manifest = manifest(OCI_CONFIG, &[OCI_LAYER]).unwrap();
    let config = |os: &str, layers: &[Digest]| {
        let whole = json!({"os": os, "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": layers},
            "config": {"Env": null, "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5}}, "history": null});
        manifest.config(whole.to_string().as_bytes()).map_err(|error| error.to_string())
    };
    let read = config("linux", &[Digest::of(b"")]).unwrap();
    assert_eq!(read.config.unwrap().healthcheck.unwrap().interval, Some(5));
    assert_eq!(config("linux", &[]).unwrap_err(), "the manifest has 1 layers, its configuration 0");
    assert!(config("windows", &[Digest::of(b"")]).unwrap_err().contains("windows/amd64"));
}
