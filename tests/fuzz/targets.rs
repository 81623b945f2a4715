//! What is fuzzed: one function a target, from bytes. The fuzzer and the replay of its corpus call the same ones.

use std::fs::File;

use devices::virtio::DeviceConfig;
use machine::config::{Source, load};
use serde_json::{Value, json};

/// A target's name and what it does with an input.
type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 2] = [("device", device), ("config", config)];

/// The first byte chooses a device, the others drive it.
pub fn device(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    File::create(&image).and_then(|file| file.set_len(64 << 10)).expect("an image");
    let drive = |more: Value| {
        let mut drive = json!({ "drive_id": "d", "path_on_host": image, "is_root_device": false });
        drive.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        DeviceConfig::Block(serde_json::from_value(drive).expect("a drive"))
    };
    let config = match choice % 4 {
        0 => drive(json!({})),
        1 => drive(json!({ "is_read_only": true, "cache_type": "Unsafe" })),
        2 => DeviceConfig::Balloon(serde_json::from_value(json!({ "deflate_on_oom": true })).expect("a balloon")),
        _ => DeviceConfig::Rng(serde_json::from_value(json!({})).expect("a random number generator")),
    };
    devices::fuzzing::drive(devices::virtio::open(&config).expect("a device"), data);
}

/// The bytes are a document. What it says wrong is reported; what is right has a plan.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match load(Some(Source { text, file: None }), &[], None) {
        Ok(config) => {
            machine::plan::Plan::of(&config).expect("a checked configuration has a plan");
        }
        Err(faults) => assert!(faults.iter().all(|fault| !fault.to_string().is_empty())),
    }
}
