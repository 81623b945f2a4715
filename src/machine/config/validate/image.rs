//! What is wrong with what a drive is made of: an image, or files that become its partitions. Pure.

use std::path::Path;

use devices::virtio::block::config::{DriveConfig, IoEngine, MAX_PARTITIONS};
use devices::virtio::block::gpt::NAME_MAX;

use super::Problem;
use crate::config::path::JsonPath;

/// Every file of the drive `index`, with its place.
pub fn drive_files(index: usize, drive: &DriveConfig) -> impl Iterator<Item = (JsonPath, &Path)> {
    let path = JsonPath::keys(["drives"]).index(index);
    let list = path.key("partitions");
    let parts = drive.partitions.iter().enumerate();
    let parts = parts.map(move |(part, it)| (list.index(part).key("path_on_host"), it.path_on_host.as_path()));
    drive.path_on_host.iter().map(move |file| (path.key("path_on_host"), file.as_path())).chain(parts)
}

/// Adds what is wrong with the files of the drive at `path`, whatever they are on the host.
pub fn check(drive: &DriveConfig, path: &JsonPath, problems: &mut Vec<Problem>) {
    let mut wrong = |path: JsonPath, text: String| problems.push(Problem::new(path, text));
    let count = drive.partitions.len();
    if count == 0 {
        if drive.path_on_host.is_none() {
            let text = "is missing (Raw image file or block device on the host; or give `partitions`)";
            wrong(path.key("path_on_host"), text.into());
        }
        return;
    }
    if drive.path_on_host.is_some() {
        let text = "is in the way of `partitions`, whose files make up the disk; remove one of the two";
        wrong(path.key("path_on_host"), text.into());
    }
    if !drive.is_read_only {
        wrong(path.key("is_read_only"), "must be true with `partitions`: their files are only read".into());
    }
    if drive.io_engine != IoEngine::Sync {
        wrong(path.key("io_engine"), "must be \"Sync\" with `partitions`".into());
    }
    if drive.direct {
        wrong(path.key("direct"), "must be false with `partitions`: their files share the host's page cache".into());
    }
    let list = path.key("partitions");
    if count > MAX_PARTITIONS {
        wrong(list.clone(), format!("{count} partitions are too many: at most {MAX_PARTITIONS} fit"));
    }
    for (index, part) in drive.partitions.iter().enumerate() {
        let bad = part.name.as_deref().and_then(bad_name);
        bad.into_iter().for_each(|text| wrong(list.index(index).key("name"), text));
    }
}

/// What is wrong with the name of a partition.
fn bad_name(name: &str) -> Option<String> {
    if let Some(bad) = name.chars().find(|char| char.is_control()) {
        return Some(format!("contains the control character {bad:?}"));
    }
    let units = name.encode_utf16().count();
    (units > NAME_MAX).then(|| format!("is {units} UTF-16 units long; at most {NAME_MAX} fit"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::config::VmConfig;

    fn problems(drive: Value) -> Vec<String> {
        let config: VmConfig = serde_json::from_value(json!({
            "boot-source": { "kernel_image_path": "k" }, "drives": [drive]
        }))
        .unwrap();
        config.validate().into_iter().map(|p| format!("{}: {}", p.path, p.text)).collect()
    }

    #[test]
    fn each_fault_has_its_place_and_words() {
        let part = |name: &str| json!({ "path_on_host": "x", "name": name });
        let good = json!({ "drive_id": "a", "partitions": [part("a"), { "path_on_host": "y" }], "is_read_only": true });
        assert_eq!(problems(good), [""; 0]);
        assert_eq!(
            problems(json!({ "drive_id": "a", "partitions": [] })),
            ["drives[0].path_on_host: is missing (Raw image file or block device on the host; or give `partitions`)"]
        );
        let long = "\u{1f4be}".repeat(18);
        let bad = json!({
            "drive_id": "a", "path_on_host": "x", "direct": true, "io_engine": "Async",
            "partitions": [part(&long), part(&format!("{long}x")), part("a\tb"), { "path_on_host": "" }]
        });
        assert_eq!(
            problems(bad),
            [
                "drives[0].path_on_host: is in the way of `partitions`, whose files make up the disk; remove one of the two",
                "drives[0].is_read_only: must be true with `partitions`: their files are only read",
                "drives[0].io_engine: must be \"Sync\" with `partitions`",
                "drives[0].direct: must be false with `partitions`: their files share the host's page cache",
                "drives[0].partitions[1].name: is 37 UTF-16 units long; at most 36 fit",
                "drives[0].partitions[2].name: contains the control character '\\t'",
                "drives[0].partitions[3].path_on_host: is empty; a file's path is expected",
            ]
        );
        let many: Vec<_> = (0..128).map(|_| part("a")).collect();
        let many = problems(json!({ "drive_id": "a", "partitions": many, "is_read_only": true }));
        assert_eq!(many, ["drives[0].partitions: 128 partitions are too many: at most 127 fit"]);
    }
}
