//! What the user asks of the metadata service (Firecracker's `mmds-config`).

use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The metadata service: a guest reads by HTTP what the API wrote to /mmds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// Names of the network interfaces at which the guest finds the service: at least one.
    pub network_interfaces: Vec<String>,
    /// What a guest must do to read.
    #[serde(default)]
    pub version: MmdsVersion,
    /// The service's IPv4 address in the guest: a link-local one.
    #[serde(default = "address")]
    pub ipv4_address: String,
    /// Answer as text also where JSON is asked for, as EC2's service does.
    #[serde(default)]
    pub imds_compat: bool,
}

/// What a guest must do to read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MmdsVersion {
    /// Nothing.
    #[default]
    V1,
    /// Show a token, which it gets by a PUT.
    V2,
}

fn address() -> String {
    "169.254.169.254".into()
}

impl MmdsConfig {
    /// The address; what is wrong otherwise.
    pub fn address(&self) -> Result<Ipv4Addr, &'static str> {
        const WRONG: &str = "a link-local IPv4 address is expected: 169.254.1.0 to 169.254.254.255";
        let address: Ipv4Addr = self.ipv4_address.parse().map_err(|_| WRONG)?;
        match address.octets() {
            // The first and the last 256 are reserved (RFC 3927, 2.1).
            [169, 254, 1..=254, _] => Ok(address),
            _ => Err(WRONG),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_link_local() {
        let config = |address: &str| -> MmdsConfig {
            let json = serde_json::json!({ "network_interfaces": ["eth0"], "ipv4_address": address });
            serde_json::from_value(json).unwrap()
        };
        assert_eq!(config("169.254.1.0").address(), Ok(Ipv4Addr::new(169, 254, 1, 0)));
        for bad in ["169.254.0.255", "169.254.255.0", "10.0.0.1", "169.254.1", "", "::1"] {
            assert!(config(bad).address().is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults_are_firecracker_s() {
        let config: MmdsConfig = serde_json::from_str("{\"network_interfaces\": [\"a\"]}").unwrap();
        let wanted = serde_json::json!({
            "network_interfaces": ["a"], "version": "V1", "ipv4_address": "169.254.169.254", "imds_compat": false
        });
        assert_eq!(serde_json::to_value(config).unwrap(), wanted);
    }
}
