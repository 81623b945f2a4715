//! What the user asks of user-mode networking (`network-interfaces[].user`).

use std::net::Ipv4Addr;
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
    /// The guest's address in a network of its own, as `10.0.2.15/24`, instead of the host's addresses: only IPv4, and what
    /// listens on the host's 127.0.0.1 is out of reach. The network's first address is the gateway, its second one forwards
    /// questions to the host's name server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The program passt. Without it passt is looked for on the PATH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passt: Option<PathBuf>,
}

impl UserConfig {
    /// The ports, without those that can not be read.
    pub fn ports(&self) -> impl Iterator<Item = Publish> {
        self.publish.iter().filter_map(|text| Publish::parse(text).ok())
    }

    /// The guest's own network, if it has one that can be read.
    pub fn own(&self) -> Option<OwnNetwork> {
        self.address.as_deref().and_then(|text| OwnNetwork::parse(text).ok())
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
                Ok(port) if self.address.is_some() && port.address.is_some_and(|address| address.is_ipv6()) => {
                    problems.push((place, format!("`{text}`: a guest with an `address` of its own has only IPv4")));
                }
                Ok(port) => taken.push(port),
            }
        }
        problems
    }
}

/// A network of the guest's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnNetwork {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Bits of it that are the network's: 1 to 29.
    pub prefix: u8,
    /// The network's first address.
    pub gateway: Ipv4Addr,
    /// Its second.
    pub nameserver: Ipv4Addr,
}

impl OwnNetwork {
    /// Reads `10.0.2.15/24`; what is wrong otherwise.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "an IPv4 address and the bits of its network, 1 to 29, are expected, as in 10.0.2.15/24";
        let (address, prefix) = text.split_once('/').ok_or(FORM)?;
        let address: Ipv4Addr = address.parse().map_err(|_| FORM)?;
        let prefix = prefix.parse().ok().filter(|prefix: &u8| (1..=29).contains(prefix)).ok_or(FORM)?;
        let host = u32::MAX >> prefix;
        let network = address.to_bits() & !host;
        if [0, 1, 2, host].contains(&(address.to_bits() & host)) {
            return Err(
                "the network's own address, its first two (the gateway, the name server) and its last are taken",
            );
        }
        let at = |place| Ipv4Addr::from_bits(network | place);
        Ok(Self { address, prefix, gateway: at(1), nameserver: at(2) })
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

    #[test]
    fn a_network_has_its_first_addresses_for_itself() {
        let own = OwnNetwork::parse("10.9.7.200/20").unwrap();
        let texts = [own.address, own.gateway, own.nameserver].map(|address| address.to_string());
        assert_eq!((texts, own.prefix), (["10.9.7.200", "10.9.0.1", "10.9.0.2"].map(str::to_owned), 20));
        for wrong in ["", "10.0.2.15", "10.0.2.15/", "10.0.2.15/0", "10.0.2.15/30", "10.0.2.15/x", "::1/24"] {
            assert!(OwnNetwork::parse(wrong).unwrap_err().contains("10.0.2.15/24"), "{wrong}");
        }
        for taken in ["10.0.2.0/24", "10.0.2.1/24", "10.0.2.2/24", "10.0.2.255/24"] {
            assert!(OwnNetwork::parse(taken).unwrap_err().contains("taken"), "{taken}");
        }
        let config = UserConfig {
            publish: vec!["[::1]:80:80".to_owned()],
            address: Some("10.0.2.15/24".to_owned()),
            ..UserConfig::default()
        };
        assert!(config.problems(&[])[0].1.contains("only IPv4"));
    }
}
