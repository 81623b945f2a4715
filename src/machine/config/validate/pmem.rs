//! What is wrong with files that the guest shall see as memory. Pure.

use super::{Problem, VmConfig, bad_id};
use crate::config::path::JsonPath;

impl VmConfig {
    pub(super) fn check_pmem(&self, problems: &mut Vec<Problem>) {
        let list = JsonPath::keys(["pmem"]);
        for (index, pmem) in self.pmem.iter().enumerate() {
            let path = list.index(index);
            let mut wrong = |key, text: String| problems.push(Problem::new(path.key(key), text));
            let id = &pmem.id;
            let earlier = || self.pmem.iter().take(index);
            if let Some(text) = bad_id(id).or_else(|| self.reserved(id)) {
                wrong("id", text);
            } else if let Some(first) = earlier().position(|other| other.id == *id) {
                wrong("id", format!("`{id}` is pmem[{first}]'s id already"));
            } else if self.drives.iter().any(|drive| drive.drive_id == *id) {
                wrong("id", format!("`{id}` is a drive's id already"));
            } else if self.network_interfaces.iter().any(|net| net.iface_id == *id) {
                wrong("id", format!("`{id}` is a network interface's id already"));
            }
            if pmem.root_device {
                if let Some(drive) = self.root_drive() {
                    wrong("root_device", format!("drives[{drive}] is the root device already"));
                } else if let Some(first) = earlier().position(|other| other.root_device) {
                    wrong("root_device", format!("pmem[{first}] is the root device already"));
                }
            }
            if pmem.private && pmem.read_only {
                wrong("private", "is of no use with read_only: the guest writes nothing".into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_fault_has_its_place_and_words() {
        let config: VmConfig = serde_json::from_value(json!({
            "boot-source": { "kernel_image_path": "k" },
            "entropy": {},
            "drives": [{ "drive_id": "d", "path_on_host": "x", "is_root_device": true }],
            "network-interfaces": [{ "iface_id": "n", "host_dev_name": "t" }],
            "pmem": [
                { "id": "a", "path_on_host": "x", "read_only": true },
                { "id": "a", "path_on_host": "" },
                { "id": "d", "path_on_host": "x" },
                { "id": "n", "path_on_host": "x" },
                { "id": "rng", "path_on_host": "x" },
                { "id": "a b", "path_on_host": "x" },
                { "id": "b", "path_on_host": "x", "root_device": true },
                { "id": "c", "path_on_host": "x", "read_only": true, "private": true },
            ]
        }))
        .unwrap();
        let found: Vec<_> = config.validate().into_iter().map(|p| format!("{}: {}", p.path, p.text)).collect();
        assert_eq!(
            found,
            [
                "pmem[1].id: `a` is pmem[0]'s id already",
                "pmem[2].id: `d` is a drive's id already",
                "pmem[3].id: `n` is a network interface's id already",
                "pmem[4].id: `rng` is the random number generator's id; choose another",
                "pmem[5].id: `a b` contains ' '; letters, digits, `-` and `_` are allowed",
                "pmem[6].root_device: drives[0] is the root device already",
                "pmem[7].private: is of no use with read_only: the guest writes nothing",
                "pmem[1].path_on_host: is empty; a file's path is expected",
            ]
        );
        let two = json!([{ "id": "a", "path_on_host": "x", "root_device": true },
            { "id": "b", "path_on_host": "y", "root_device": true }]);
        let config: VmConfig =
            serde_json::from_value(json!({ "boot-source": { "kernel_image_path": "k" }, "pmem": two })).unwrap();
        let found: Vec<_> = config.validate().into_iter().map(|p| format!("{}: {}", p.path, p.text)).collect();
        assert_eq!(found, ["pmem[1].root_device: pmem[0] is the root device already"]);
    }
}
