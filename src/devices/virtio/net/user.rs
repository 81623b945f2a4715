//! What the user asks of user-mode networking (`network-interfaces[].user`).

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::publish::Publish;

/// Networking without privileges: the guest's connections are made by passt (https://passt.top), a process of its own with
/// the user's rights. passt gives the guest an address (DHCP, DHCPv6, NDP): the host's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    /// Ports of the host that lead into the guest: `[IP:]HOSTPORT:GUESTPORT[/tcp|/udp]`; TCP and UDP unless one is said,
    /// all addresses of the host unless one is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    /// The program passt. Without it passt is looked for on the PATH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passt: Option<PathBuf>,
}

impl UserConfig {
    /// The ports, without those that can not be read.
    pub fn ports(&self) -> impl Iterator<Item = Publish> {
        self.publish.iter().filter_map(|text| Publish::parse(text).ok())
    }

    /// What is wrong with the ports: the place in the list, and why. `others` are those of other interfaces.
    pub fn problems(&self, others: &[Publish]) -> Vec<(usize, String)> {
        let mut taken = others.to_vec();
        let mut problems = Vec::new();
        for (place, text) in self.publish.iter().enumerate() {
            match Publish::parse(text) {
                Err(why) => problems.push((place, format!("`{text}`: {why}"))),
                Ok(port) if taken.iter().any(|other| other.overlaps(&port)) => {
                    problems.push((place, format!("`{text}`: port {} of the host is published already", port.host)));
                }
                Ok(port) => taken.push(port),
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_is_published_once() {
        let user = |ports: &[&str]| UserConfig {
            publish: ports.iter().map(|text| (*text).to_owned()).collect(),
            ..UserConfig::default()
        };
        let good = user(&["80:80/tcp", "80:80/udp", "81:80"]);
        assert_eq!(good.problems(&[]), []);
        let taken = "`82:1`: port 82 of the host is published already".to_owned();
        let others: Vec<Publish> = user(&["82:1/udp"]).ports().collect();
        let problems = user(&["80:1", "x", "82:1", "80:2/tcp"]).problems(&others);
        assert_eq!(problems.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(problems[1].1, taken);
    }
}
