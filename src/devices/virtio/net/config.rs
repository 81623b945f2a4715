//! What the user asks of a network interface (Firecracker's `network-interfaces[]`).

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::user::UserConfig;
use crate::rate_limit::RateLimiterConfig;

/// A network interface (virtio 1.2, 5.1): frames to and from the host. One of `host_dev_name`, `host_fd` and `user` says
/// how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Name of the interface, unique in the VM.
    pub iface_id: String,
    /// TAP device on the host: opened if it exists, else created, which takes CAP_NET_ADMIN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// Inherited file descriptor instead: a TAP device, a socket that keeps frames apart (datagrams, packets), or a stream
    /// socket on which each frame has its length before it (4 bytes, the highest first).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_fd: Option<i32>,
    /// User-mode networking instead: connections of the guest are connections of a process with the user's own rights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserConfig>,
    /// Address of the guest's interface, as `02:00:00:00:00:01`. Without it the guest makes one up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// Largest packet, bytes, that the guest shall send; 68 to 65535. Without it the guest takes 1500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Pairs of queues, so that several vCPUs can send and receive at a time; 1 where it is absent. More take a TAP
    /// device by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub queue_pairs: Option<u16>,
    /// The host's kernel moves the frames (/dev/vhost-net), not this process. It then reads and writes the guest's memory
    /// and checks its rings. For a TAP device; without limits.
    #[serde(default)]
    pub vhost: bool,
    /// Limits of what the guest receives: bytes and frames. What is too early waits in the host's queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// Limits of what the guest sends: bytes and frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
}

impl NetConfig {
    /// How many queue pairs it asks for.
    pub fn queue_pairs(&self) -> u16 {
        self.queue_pairs.unwrap_or(1).clamp(1, MAX_QUEUE_PAIRS)
    }
}

/// What can be changed while the VM exists: limits, by direction.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetChange {
    /// Of what the guest receives.
    pub receive: Option<RateLimiterConfig>,
    /// Of what the guest sends.
    pub transmit: Option<RateLimiterConfig>,
}

/// Most queue pairs of an interface.
pub const MAX_QUEUE_PAIRS: u16 = 16;

/// Longest name of an interface of the host (IFNAMSIZ with its NUL).
pub const NAME_MAX: usize = 15;
/// Least MTU that IPv4 allows (RFC 791).
pub const MTU_MIN: u16 = 68;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of an interface; what is wrong with one that can not be.
    pub fn of_interface(bytes: [u8; 6]) -> Result<Self, &'static str> {
        match bytes {
            [first, ..] if first & 1 != 0 => Err("a group address is no interface's"),
            [0, 0, 0, 0, 0, 0] => Err("all zeros is no address"),
            bytes => Ok(Self(bytes)),
        }
    }

    /// Reads `xx:xx:xx:xx:xx:xx`; what is wrong otherwise.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "six bytes as in 02:00:00:00:00:01 are expected";
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part =
                parts.next().filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or(FORM)?;
        }
        if parts.next().is_some() {
            return Err(FORM);
        }
        if mac.first().is_some_and(|first| first & 1 != 0) {
            return Err("it is a group address: the lowest bit of its first byte is 1");
        }
        if mac == [0; 6] {
            return Err("all zeros is no address");
        }
        Ok(Self(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What is wrong with the name of an interface of the host.
pub fn bad_name(name: &str) -> Option<String> {
    if name.is_empty() || name == "." || name == ".." {
        return Some(format!("`{name}` is no name of a network interface"));
    }
    if name.len() > NAME_MAX {
        return Some(format!("`{name}` is {} bytes long; at most {NAME_MAX} are allowed", name.len()));
    }
    let bad = name.chars().find(|char| char.is_whitespace() || "/:%\0".contains(*char));
    bad.map(|bad| format!("`{name}` contains {bad:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        assert_eq!(Mac::parse("02:aB:00:00:00:0f").unwrap().to_string(), "02:ab:00:00:00:0f");
        for (text, why) in [
            ("", "six bytes"),
            ("02:00:00:00:00", "six bytes"),
            ("02:00:00:00:00:01:02", "six bytes"),
            ("2:0:0:0:0:1", "six bytes"),
            ("02:00:00:00:00:+1", "six bytes"),
            ("03:00:00:00:00:01", "group address"),
            ("00:00:00:00:00:00", "all zeros"),
        ] {
            assert!(Mac::parse(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(bad_name("tap0"), None);
        for (name, why) in
            [("", "no name"), ("a/b", "'/'"), ("a b", "' '"), ("sixteen-bytes-xx", "16 bytes"), ("tap%d", "'%'")]
        {
            assert!(bad_name(name).is_some_and(|text| text.contains(why)), "{name}");
        }
    }
}
