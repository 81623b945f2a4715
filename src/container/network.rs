//! Networks of VMs for containers: what `--network` and `-p` say, what the monitor's interface shall be, and what the agent
//! is told of it. Pure.
//!
//! A port goes two steps: from the host to the port of the same number of the VM (passt), and from there to the
//! container (the agent). With a TAP device the host's step is the user's affair. A VM that runs already gets no more ports
//! of the host: these lead to the container in one step (ports.rs).

mod tap;

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use protocol::network::{Network, Publish};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

pub use tap::Tap;

/// The VM's address behind passt, which derives the others of it: the network's first is the gateway, its second the name
/// server (docs/devices.md).
const USER_ADDRESS: &str = "10.0.2.15/24";
const USER_GATEWAY: &str = "10.0.2.1";
const USER_NAMESERVER: &str = "10.0.2.2";
/// passt takes packets of this size, bytes, which is the largest that an interface may have at a multiple of four.
const USER_MTU: u16 = 65_520;
/// The most ports that one `-p` names.
const MOST_PORTS: u16 = 1000;

/// What cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NetworkError {
    /// No such kind of network.
    #[error("--network {0}: none, user, or tap:NAME[,address=IP/BITS][,gateway=IP][,dns=IP] is expected")]
    Kind(String),
    /// A TAP device with options that do not fit.
    #[error("--network {0}: {1}")]
    Tap(String, String),
    /// A port that cannot be read.
    #[error(
        "-p {0}: [IP:]HOST:CONTAINER[/tcp|/udp] is expected, each a port or a range of as many, as 8080:80 or 127.0.0.1:8000-8009:9000-9009"
    )]
    Port(String),
    /// An address of another kind.
    #[error("-p {0}: ports are published on IPv4 addresses")]
    Ipv6(String),
    /// A port that leads to two.
    #[error("-p {0}: port {1} is published already")]
    Twice(String, u16),
    /// Nobody can reach it.
    #[error("-p: with --network none nothing reaches the container")]
    NoNetwork,
    /// The VM has addresses of its own.
    #[error("-p {0}: with a TAP device ports are published at the VM's address, so none is to be given")]
    AddressWithTap(String),
    /// The VM runs already, with another network.
    #[error("it runs with another network: the --network of its first container says which")]
    Other,
}

/// A network that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The loopback interface only.
    None,
    /// By passt, without privileges.
    User,
    /// By a TAP device of the host.
    Tap(Tap),
}

/// A port of the host, or of a VM with a TAP device, that leads to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The host's address; all without it.
    pub address: Option<Ipv4Addr>,
    /// The host's port.
    pub host: u16,
    /// The container's.
    pub container: u16,
    /// For UDP; otherwise for TCP.
    pub udp: bool,
}

/// What a VM's network shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmNetwork {
    /// An element of the monitor's `network-interfaces`.
    pub interface: Value,
    /// What the agent is told.
    pub told: Network,
}

impl FromStr for Choice {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        match text {
            "none" => Ok(Self::None),
            "user" => Ok(Self::User),
            _ => match text.strip_prefix("tap:") {
                Some(rest) => tap::read(rest).map(Self::Tap).map_err(|why| NetworkError::Tap(text.to_owned(), why)),
                None => Err(NetworkError::Kind(text.to_owned())),
            },
        }
    }
}

/// Digits only.
fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|_| text.bytes().all(|digit| digit.is_ascii_digit()))
}

/// The ports that `-p` names.
pub fn ports(texts: &[String]) -> Result<Vec<Port>, NetworkError> {
    let mut all: Vec<Port> = Vec::new();
    for text in texts {
        for port in range(text)? {
            if all.iter().any(|other| other.collides(&port)) {
                return Err(NetworkError::Twice(text.clone(), port.host));
            }
            all.push(port);
        }
    }
    Ok(all)
}

/// What one `-p` names.
fn range(text: &str) -> Result<Vec<Port>, NetworkError> {
    let wrong = || NetworkError::Port(text.to_owned());
    let (ports, udp) = match text.rsplit_once('/') {
        None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), false),
        Some((ports, "udp")) => (ports, true),
        Some(_) => return Err(wrong()),
    };
    if ports.contains('[') {
        return Err(NetworkError::Ipv6(text.to_owned()));
    }
    let (rest, container) = ports.rsplit_once(':').ok_or_else(wrong)?;
    let (address, host) = match rest.split_once(':') {
        Some((address, host)) => (Some(address.parse().map_err(|_| wrong())?), host),
        None => (None, rest),
    };
    let address = address.filter(|address: &Ipv4Addr| !address.is_unspecified());
    let both = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (number(first)?, number(last)?);
        (first != 0 && first <= last && last - first < MOST_PORTS).then_some(first..=last)
    };
    let (host, container) = both(host).zip(both(container)).ok_or_else(wrong)?;
    if host.len() != container.len() {
        return Err(wrong());
    }
    Ok(host.zip(container).map(|(host, container)| Port { address, host, container, udp }).collect())
}

impl Port {
    /// Whether the two cannot be published both. A number leads to one port of the VM, whichever the address.
    fn collides(&self, other: &Self) -> bool {
        let same_place = self.address.is_none() || other.address.is_none() || self.address == other.address;
        self.host == other.host && self.udp == other.udp && (same_place || self.container != other.container)
    }

    /// As the monitor writes it: the VM's port has the host's number.
    pub fn to_vm(&self) -> String {
        let address = self.address.map_or(String::new(), |address| format!("{address}:"));
        format!("{address}{host}:{host}/{}", if self.udp { "udp" } else { "tcp" }, host = self.host)
    }
}

impl VmNetwork {
    /// The interface without ports of the host.
    pub fn unpublished(&self) -> Value {
        let mut interface = self.interface.clone();
        interface.pointer_mut("/user/publish").map(Value::take);
        interface
    }

    /// What a VM that runs with it lacks for a container that wants `other`: ports of the host, as [`Port::to_vm`] writes them.
    pub fn lacks(&self, other: &Self) -> Result<Vec<String>, NetworkError> {
        let ports = |network: &Self| {
            let ports = network.interface.pointer("/user/publish").and_then(Value::as_array).cloned();
            ports.unwrap_or_default()
        };
        if self.unpublished() != other.unpublished() || self.told.address != other.told.address {
            return Err(NetworkError::Other);
        }
        let own = ports(self);
        let lacking = ports(other).into_iter().filter(|port| !own.contains(port));
        Ok(lacking.filter_map(|port| port.as_str().map(str::to_owned)).collect())
    }
}

/// What the agent is told of ports: the VM's and the container's.
pub fn published(ports: &[Port]) -> Vec<Publish> {
    let mut published: Vec<Publish> = Vec::new();
    for port in ports {
        let port = Publish { vm: port.host, container: port.container, udp: port.udp };
        if !published.contains(&port) {
            published.push(port);
        }
    }
    published
}

impl Choice {
    /// The VM's network, with these ports; `resolv_conf` is the host's (resolv.conf(5)), and `hosts` are its addresses on a TAP
    /// device, with the bits of their networks.
    pub fn network(
        &self,
        ports: &[Port],
        resolv_conf: &str,
        hosts: &[(Ipv4Addr, u32)],
    ) -> Result<Option<VmNetwork>, NetworkError> {
        match self {
            Self::None if !ports.is_empty() => Err(NetworkError::NoNetwork),
            Self::None => Ok(None),
            Self::User => Ok(Some(user(ports, resolv_conf))),
            Self::Tap(tap) => match ports.iter().find_map(|port| Some((port, port.address?))) {
                Some((port, _)) => Err(NetworkError::AddressWithTap(port.to_vm())),
                None => of_tap(tap, resolv_conf, hosts).map(Some),
            },
        }
    }
}

fn user(ports: &[Port], resolv_conf: &str) -> VmNetwork {
    let publish: Vec<String> = ports.iter().map(Port::to_vm).collect();
    VmNetwork {
        interface: json!({
            "iface_id": "eth0", "mtu": USER_MTU, "user": {"address": USER_ADDRESS, "publish": publish},
        }),
        told: Network {
            address: USER_ADDRESS.to_owned(),
            gateway: Some(USER_GATEWAY.to_owned()),
            nameservers: vec![USER_NAMESERVER.to_owned()],
            search: search(resolv_conf),
        },
    }
}

fn of_tap(tap: &Tap, resolv_conf: &str, hosts: &[(Ipv4Addr, u32)]) -> Result<VmNetwork, NetworkError> {
    let (address, gateway) = tap.addresses(hosts).map_err(|why| NetworkError::Tap(format!("tap:{}", tap.name), why))?;
    let given: Vec<String> = tap.nameservers.iter().map(IpAddr::to_string).collect();
    Ok(VmNetwork {
        interface: json!({"iface_id": "eth0", "host_dev_name": tap.name}),
        told: Network {
            address,
            gateway: gateway.map(|gateway| gateway.to_string()),
            nameservers: if given.is_empty() { nameservers(resolv_conf) } else { given },
            search: search(resolv_conf),
        },
    })
}

/// The domains to search; the last line that names some counts.
fn search(resolv_conf: &str) -> Vec<String> {
    let lines = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("search" | "domain")).then(|| words.map(str::to_owned).collect())
    });
    lines.fold(Vec::new(), |_, later| later)
}

/// The name servers that can be reached from elsewhere.
fn nameservers(resolv_conf: &str) -> Vec<String> {
    let servers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address: IpAddr = (words.next() == Some("nameserver")).then(|| words.next())??.parse().ok()?;
        (!address.is_loopback()).then(|| address.to_string())
    });
    servers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESOLV_CONF: &str = "# by hand\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver ::1\ndomain x.example\nsearch a.example b.example\n";

    fn read(texts: &[&str]) -> Result<Vec<Port>, NetworkError> {
        ports(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn ports_are_written_as_dockers() {
        let port = |address: &str, host, container, udp| Port { address: address.parse().ok(), host, container, udp };
        assert_eq!(read(&["8080:80"]).unwrap(), [port("", 8080, 80, false)]);
        assert_eq!(read(&["0.0.0.0:8080:80/tcp"]).unwrap(), [port("", 8080, 80, false)]);
        assert_eq!(read(&["127.0.0.1:53:5353/udp"]).unwrap(), [port("127.0.0.1", 53, 5353, true)]);
        let both = read(&["8000-8001:90-91/udp"]).unwrap();
        assert_eq!(both, [port("", 8000, 90, true), port("", 8001, 91, true)]);
        for wrong in
            ["", "80", "x:80", "80:0", "0:80", "+1:80", "80:80/sctp", "1-2:3", "2-1:2-1", "1-2000:1-2000", "::1:80:80"]
        {
            assert_eq!(read(&[wrong]).unwrap_err(), NetworkError::Port(wrong.to_owned()), "{wrong}");
        }
        assert!(read(&["[::1]:80:80"]).unwrap_err().to_string().ends_with("IPv4 addresses"));
    }

    #[test]
    fn a_port_leads_to_one() {
        assert!(read(&["80:80", "80:80/udp", "81:80"]).is_ok());
        assert_eq!(
            read(&["80:80", "127.0.0.1:80:80"]).unwrap_err(),
            NetworkError::Twice("127.0.0.1:80:80".to_owned(), 80)
        );
        assert!(read(&["127.0.0.1:80:80", "127.0.0.2:80:81"]).is_err());
        let two = read(&["127.0.0.1:80:81", "127.0.0.2:80:81"]).unwrap();
        assert_eq!(published(&two), [Publish { vm: 80, container: 81, udp: false }]);
    }

    #[test]
    fn without_privileges_it_is_passt() {
        let ports = read(&["8080:80", "127.0.0.1:53:5353/udp"]).unwrap();
        let network = "user".parse::<Choice>().unwrap().network(&ports, RESOLV_CONF, &[]).unwrap().unwrap();
        assert_eq!(network.interface["user"]["publish"], json!(["8080:8080/tcp", "127.0.0.1:53:53/udp"]));
        assert_eq!(network.told.nameservers, ["10.0.2.2"]);
        assert_eq!(network.told.search, ["a.example", "b.example"]);
    }

    #[test]
    fn a_vm_that_runs_keeps_its_network() {
        let with = |text: &str, published: &[&str]| {
            text.parse::<Choice>().unwrap().network(&read(published).unwrap(), "", &[]).unwrap().unwrap()
        };
        let vm = with("user", &["8080:80", "81:81"]);
        assert_eq!(vm.lacks(&with("user", &[])), Ok(vec![]));
        assert_eq!(vm.lacks(&with("user", &["8080:8000"])), Ok(vec![]));
        let lacking = vm.lacks(&with("user", &["82:82", "81:80", "127.0.0.1:83:1/udp"])).unwrap();
        assert_eq!(lacking, ["82:82/tcp", "127.0.0.1:83:83/udp"]);
        let tap = with("tap:t,address=192.0.2.2/24", &[]);
        assert_eq!(vm.lacks(&tap), Err(NetworkError::Other));
        assert_eq!(tap.lacks(&with("tap:t,address=192.0.2.2/24", &["80:80"])), Ok(vec![]));
    }

    #[test]
    fn a_tap_device_has_what_the_user_says() {
        let choice: Choice = "tap:tap7,address=192.0.2.2/24,gateway=192.0.2.1".parse().unwrap();
        let network = choice.network(&read(&["80:80"]).unwrap(), RESOLV_CONF, &[]).unwrap().unwrap();
        assert_eq!(network.interface, json!({"iface_id": "eth0", "host_dev_name": "tap7"}));
        assert_eq!(
            (network.told.address.as_str(), network.told.gateway.as_deref()),
            ("192.0.2.2/24", Some("192.0.2.1"))
        );
        assert_eq!(network.told.nameservers, ["192.0.2.53"]);
        assert!(choice.network(&read(&["127.0.0.1:80:80"]).unwrap(), "", &[]).is_err());
        let choice: Choice = "tap:t,address=192.0.2.2/24,dns=192.0.2.9,dns=::2".parse().unwrap();
        assert_eq!(choice.network(&[], RESOLV_CONF, &[]).unwrap().unwrap().told.nameservers, ["192.0.2.9", "::2"]);
        assert!(matches!("tap:".parse::<Choice>(), Err(NetworkError::Tap(..))));
        let choice: Choice = "tap:t".parse().unwrap();
        let host = Ipv4Addr::new(192, 0, 2, 1);
        let told = choice.network(&[], "", &[(host, 24)]).unwrap().unwrap().told;
        assert_eq!((told.address.as_str(), told.gateway), ("192.0.2.2/24", Some(host.to_string())));
        let why = choice.network(&[], "", &[]).unwrap_err().to_string();
        assert!(why.starts_with("--network tap:t: the host has no IPv4 address on this device, so"), "{why}");
    }

    #[test]
    fn no_network_has_no_ports() {
        assert_eq!(Choice::None.network(&[], "", &[]), Ok(None));
        assert_eq!(Choice::None.network(&read(&["80:80"]).unwrap(), "", &[]), Err(NetworkError::NoNetwork));
        assert!(matches!("host".parse::<Choice>(), Err(NetworkError::Kind(_))));
    }
}
