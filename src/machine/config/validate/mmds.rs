//! What is wrong with the metadata service. Pure.

use super::{Problem, VmConfig};
use crate::config::path::JsonPath;

impl VmConfig {
    pub(super) fn check_mmds(&self, problems: &mut Vec<Problem>) {
        let Some(mmds) = &self.mmds_config else { return };
        let path = |key| JsonPath::keys(["mmds-config", key]);
        let mut wrong = |path, text: String| problems.push(Problem::new(path, text));
        let list = path("network_interfaces");
        if mmds.network_interfaces.is_empty() {
            wrong(list.clone(), "is empty; a network interface's id is expected".into());
        }
        for (index, id) in mmds.network_interfaces.iter().enumerate() {
            let text = match self.network_interfaces.iter().find(|net| net.iface_id == *id) {
                None => format!("there is no network interface `{id}`"),
                Some(net) if net.vhost => {
                    format!("the host's kernel moves the frames of `{id}` (vhost), and it has no metadata")
                }
                Some(_) if mmds.network_interfaces.iter().take(index).any(|other| other == id) => {
                    format!("`{id}` is in the list already")
                }
                Some(_) => continue,
            };
            wrong(list.index(index), text);
        }
        if let Err(why) = mmds.address() {
            wrong(path("ipv4_address"), format!("`{}`: {why}", mmds.ipv4_address));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn found(mmds: Value) -> Vec<String> {
        let config: VmConfig = serde_json::from_value(json!({
            "boot-source": { "kernel_image_path": "k" },
            "network-interfaces": [
                { "iface_id": "a", "host_dev_name": "t" }, { "iface_id": "v", "host_dev_name": "u", "vhost": true }
            ],
            "mmds-config": mmds
        }))
        .unwrap();
        config.validate().into_iter().map(|problem| format!("{}: {}", problem.path, problem.text)).collect()
    }

    #[test]
    fn each_fault_has_its_place_and_words() {
        let good = json!({ "network_interfaces": ["a"], "version": "V2", "ipv4_address": "169.254.1.1" });
        assert!(found(good).is_empty() && found(Value::Null).is_empty());
        let list = "mmds-config.network_interfaces";
        assert_eq!(
            found(json!({ "network_interfaces": ["a", "b", "a", "v"], "ipv4_address": "10.0.0.1" })),
            [
                format!("{list}[1]: there is no network interface `b`"),
                format!("{list}[2]: `a` is in the list already"),
                format!("{list}[3]: the host's kernel moves the frames of `v` (vhost), and it has no metadata"),
                "mmds-config.ipv4_address: `10.0.0.1`: a link-local IPv4 address is expected: 169.254.1.0 to 169.254.254.255"
                    .to_owned(),
            ]
        );
        let empty = format!("{list}: is empty; a network interface's id is expected");
        assert_eq!(found(json!({ "network_interfaces": [] })), [empty]);
    }
}
