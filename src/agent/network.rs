//! The network of the VM and of its containers. The VM has an address on its first interface; a bridge of its own joins
//! the containers, each of which has a network namespace with a pair of interfaces to it. Threads of orders.
//!
//! A namespace lives as long as its file or a process in it, and its interfaces go with it.

mod carry;
mod filter;
mod links;
mod names;
mod namespace;
mod netlink;
mod subnet;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use protocol::message::File;
use protocol::network::{self, Endpoint, Publish};

pub use self::carry::Called;
use self::carry::Carrier;
use self::links::{End, Links};
use self::names::Names;
use self::namespace::Namespace;
use self::subnet::Subnet;
use crate::{Doing, Fault};

/// The interface that leads out of the VM.
const OUTSIDE: &str = "eth0";
/// The bridge of the containers.
const BRIDGE: &str = "vmm0";
/// A container's interface, as it sees it.
const INSIDE: &str = "eth0";
const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The VM's network.
#[derive(Debug)]
pub struct Network {
    resolv_conf: String,
    subnet: Subnet,
    names: Names,
    /// Whose a port of the VM is: for UDP, its number.
    published: Mutex<BTreeMap<(bool, u16), String>>,
    /// Largest packet, bytes.
    mtu: u32,
    /// Who carries what callers of the host say; there when the first one has come.
    carrier: OnceLock<Result<Carrier, Fault>>,
}

/// A container's end of it. Dropped, it is free for another.
#[derive(Debug)]
pub struct Joined<'a> {
    network: &'a Network,
    id: String,
    number: u8,
    namespace: Namespace,
    publishes: bool,
}

impl Network {
    /// Brings the VM's network up as the host says it is.
    pub fn begin(order: &network::Network) -> Result<Self, Fault> {
        let (address, prefix) = subnet::parse(&order.address)?;
        let gateway = order.gateway.as_ref().map(|text| text.parse().doing(|| format!("read the gateway {text}")));
        let gateway = gateway.transpose()?;
        let nameservers = order.nameservers.iter().filter_map(|text| text.parse().ok());
        let subnet = Subnet::choose(address, prefix, gateway.into_iter().chain(nameservers))?;
        let outside = links::index(OUTSIDE).map_err(|why| format!("{why} (has this kernel CONFIG_VIRTIO_NET?)"))?;
        let links = Links::here()?;
        links.address(outside, address, prefix)?;
        // passt learns the guest's hardware address by the first frame from it: there shall be one before anybody calls.
        set(&format!("conf/{OUTSIDE}/arp_notify"))?;
        links.up(outside)?;
        gateway.map_or(Ok(()), |gateway| links.default_route(gateway))?;
        let mtu = fs::read_to_string(format!("/sys/class/net/{OUTSIDE}/mtu")).doing(|| "read an MTU".to_owned())?;
        let mtu = mtu.trim().parse().doing(|| "read an MTU".to_owned())?;
        links.bridge(End { name: BRIDGE, mac: subnet.mac(subnet::BRIDGE) }, mtu)?;
        let bridge = links::index(BRIDGE)?;
        links.address(bridge, subnet.address(subnet::BRIDGE), subnet::PREFIX)?;
        links.up(bridge)?;
        filter::begin(OUTSIDE)?;
        set("ip_forward")?;
        let (names, published, carrier) = (Names::default(), Mutex::default(), OnceLock::new());
        Ok(Self { resolv_conf: resolv_conf(order), subnet, names, published, mtu, carrier })
    }

    /// Makes the end of a container, in the namespace of this file, or in a new one.
    pub fn join(&self, id: &str, endpoint: &Endpoint, there: Option<&Path>) -> Result<Joined<'_>, Fault> {
        let number = self.subnet.take()?;
        let made = Namespace::make(id, there).inspect_err(|_| self.subnet.free(number))?;
        let joined = Joined {
            network: self,
            id: id.to_owned(),
            number,
            namespace: made,
            publishes: !endpoint.publish.is_empty(),
        };
        self.take_ports(id, &endpoint.publish)?;
        let address = self.subnet.address(number);
        let links = Links::here()?;
        let here = format!("veth{number}");
        let here = End { name: &here, mac: self.subnet.mac_here(number) };
        let there = End { name: INSIDE, mac: self.subnet.mac(number) };
        links.pair(here, links::index(BRIDGE)?, there, joined.namespace.as_fd(), self.mtu)?;
        joined.namespace.enter(|| {
            let links = Links::here()?;
            links.up(links::index("lo")?)?;
            let inside = links::index(INSIDE)?;
            links.address(inside, address, subnet::PREFIX)?;
            links.up(inside)?;
            links.default_route(self.subnet.address(subnet::BRIDGE))
        })?;
        if joined.publishes {
            filter::publish(&table(number), OUTSIDE, address, &endpoint.publish)?;
        }
        self.names.add(id, address, &endpoint.names)?;
        Ok(joined)
    }

    /// Connects to a port of a container.
    pub fn call(&self, id: &str, port: u16, udp: bool) -> Result<Called<'_>, Fault> {
        let address = self.names.address(id).ok_or_else(|| format!("container {id} has no network"))?;
        self.carrier.get_or_init(Carrier::start).as_ref().map_err(Fault::clone)?.call(address, port, udp)
    }

    /// Ports are one container's at a time.
    fn take_ports(&self, id: &str, ports: &[Publish]) -> Result<(), Fault> {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        for port in ports {
            match published.entry((port.udp, port.vm)) {
                Entry::Occupied(other) => {
                    return Err(format!("port {} is container {}'s already", port.vm, other.get()));
                }
                Entry::Vacant(place) => place.insert(id.to_owned()),
            };
        }
        Ok(())
    }
}

impl Joined<'_> {
    /// The namespace's file.
    pub fn path(&self) -> &Path {
        self.namespace.path()
    }

    /// A file that the container sees, which lies at `source`: if it tells of the network, it is written, and kept true.
    /// What the host says of name servers stays.
    pub fn tell(&self, file: &File, source: &Path) -> Result<(), Fault> {
        match file.path.as_str() {
            HOSTS => self.network.names.tell(&self.id, &file.content, source),
            RESOLV_CONF if file.content.is_empty() => {
                fs::write(source, &self.network.resolv_conf).doing(|| format!("write {}", source.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.network.names.remove(&self.id);
        let removed = if self.publishes { filter::remove(&table(self.number)) } else { Ok(()) };
        if let Err(why) = removed {
            eprintln!("vmm-agent: {why}");
        }
        let mut published = self.network.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.retain(|_, id| *id != self.id);
        drop(published);
        self.network.subnet.free(self.number);
    }
}

/// The table with a container's ports.
fn table(number: u8) -> String {
    format!("container{number}")
}

/// Switches something of IPv4 on.
fn set(name: &str) -> Result<(), Fault> {
    let path = format!("/proc/sys/net/ipv4/{name}");
    fs::write(&path, "1").doing(|| format!("write to {path}"))
}

/// As resolv.conf(5) has it.
fn resolv_conf(order: &network::Network) -> String {
    let mut text = String::new();
    if !order.search.is_empty() {
        let _ = writeln!(text, "search {}", order.search.join(" "));
    }
    for server in &order.nameservers {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_stand_as_resolvers_read_them() {
        let mut order = network::Network {
            address: "192.0.2.2/24".to_owned(),
            gateway: None,
            nameservers: vec!["192.0.2.1".to_owned(), "192.0.2.3".to_owned()],
            search: vec!["example.org".to_owned(), "example.net".to_owned()],
        };
        let servers = "nameserver 192.0.2.1\nnameserver 192.0.2.3\n";
        assert_eq!(resolv_conf(&order), format!("search example.org example.net\n{servers}"));
        order.search.clear();
        assert_eq!(resolv_conf(&order), servers);
    }
}
