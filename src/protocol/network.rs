//! What is said of networks: the VM's own, and a container's end of it. Plain data, as in `message.rs`.

use serde::{Deserialize, Serialize};

/// The VM's own network, as `ip` and resolv.conf(5) say it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Address and prefix length, IPv4: `192.0.2.2/24`.
    pub address: String,
    /// Where the rest of the world is; none: nowhere.
    pub gateway: Option<String>,
    /// Name servers.
    pub nameservers: Vec<String>,
    /// Domains to search.
    pub search: Vec<String>,
}

/// A container's end of the VM's network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// What other containers of the VM call it.
    pub names: Vec<String>,
    /// Its ports that are reached at the VM's address.
    pub publish: Vec<Publish>,
}

/// A port of the VM that leads to one of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The VM's.
    pub vm: u16,
    /// The container's.
    pub container: u16,
    /// For UDP; otherwise for TCP.
    pub udp: bool,
}
