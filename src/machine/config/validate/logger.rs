//! What is wrong with a log that is asked for. Pure.

use super::{Problem, VmConfig};
use crate::config::logger::PARTS;
use crate::config::path::JsonPath;

impl VmConfig {
    /// A module that does not exist would be silent without a word.
    pub(super) fn check_logger(&self, problems: &mut Vec<Problem>) {
        let place = JsonPath::keys(["logger", "levels"]);
        for name in self.logger.iter().flat_map(|logger| logger.levels.keys()) {
            let part = name.split("::").next().unwrap_or_default();
            if !PARTS.contains(&part) {
                let text = format!("there is no module `{name}`; the names begin with {}", PARTS.join(", "));
                problems.push(Problem::new(place.key(name), text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn modules_that_are_not_there_are_named() {
        let levels = json!({ "devices::virtio": "Debug", "device": "Info", "vmm": "Off" });
        let config = json!({ "boot-source": { "kernel_image_path": "k" }, "logger": { "levels": levels } });
        let config: VmConfig = serde_json::from_value(config).unwrap();
        let wrong: Vec<_> = config.validate().into_iter().map(|p| format!("{}: {}", p.path, p.text)).collect();
        let text = "logger.levels.device: there is no module `device`; the names begin with api, devices, machine, vmm";
        assert_eq!(wrong, [text]);
    }
}
