//! Interfaces, addresses and routes, as rtnetlink(7) has them.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};

use super::netlink::{Attributes, Conversation, Order, Part};
use crate::{Doing, Fault};

/// The other interface of a pair (linux/veth.h).
const VETH_INFO_PEER: u16 = 1;
const NEW: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

/// The interfaces of one network namespace: that in which it was begun.
#[derive(Debug)]
pub struct Links(Conversation);

/// One end of a pair of interfaces.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: [u8; 6],
}

impl Links {
    /// Those of this thread's namespace.
    pub fn here() -> Result<Self, Fault> {
        Conversation::begin(Part::Route).doing(|| "speak to the kernel about interfaces".to_owned()).map(Self)
    }

    /// Makes a bridge.
    pub fn bridge(&self, end: End<'_>, mtu: u32) -> Result<(), Fault> {
        let kind = Attributes::default().text(libc::IFLA_INFO_KIND, "bridge");
        let attributes = named(end, mtu).nest(libc::IFLA_LINKINFO, kind);
        self.link(NEW, link(0, false), attributes)
            .doing(|| format!("make the bridge {} (has this kernel CONFIG_BRIDGE?)", end.name))
    }

    /// Makes a pair of interfaces: one here, which is up and at the bridge of this number, the other in `namespace`.
    pub fn pair(
        &self,
        here: End<'_>,
        bridge: u32,
        there: End<'_>,
        namespace: BorrowedFd<'_>,
        mtu: u32,
    ) -> Result<(), Fault> {
        let namespace = namespace.as_raw_fd().to_ne_bytes();
        let peer = named(there, mtu).with(libc::IFLA_NET_NS_FD, namespace);
        let peer = Attributes::default().nest_after(VETH_INFO_PEER, &link(0, false), &peer);
        let kind = Attributes::default().text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, peer);
        let master = named(here, mtu).with(libc::IFLA_MASTER, bridge.to_ne_bytes());
        self.link(NEW, link(0, true), master.nest(libc::IFLA_LINKINFO, kind))
            .doing(|| format!("make the interfaces {} and {} (has this kernel CONFIG_VETH?)", here.name, there.name))
    }

    /// Switches an interface on.
    pub fn up(&self, index: u32) -> Result<(), Fault> {
        self.link(0, link(index, true), Attributes::default()).doing(|| "switch an interface on".to_owned())
    }

    /// Gives an interface an address, with `prefix` bits of it its network's.
    pub fn address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Fault> {
        let [a, b, c, d] = index.to_ne_bytes();
        let header = vec![INET, prefix, 0, libc::RT_SCOPE_UNIVERSE, a, b, c, d]; // struct ifaddrmsg
        let octets = address.octets();
        let broadcast = (address | !mask(prefix)).octets();
        let attributes = Attributes::default().with(libc::IFA_LOCAL, octets).with(libc::IFA_ADDRESS, octets);
        let attributes = attributes.with(libc::IFA_BROADCAST, broadcast);
        let order = Order { kind: libc::RTM_NEWADDR, flags: NEW, header, attributes };
        self.0.order(&order).doing(|| format!("give an interface the address {address}/{prefix}"))
    }

    /// What no other route fits goes to `gateway`.
    pub fn default_route(&self, gateway: Ipv4Addr) -> Result<(), Fault> {
        let mut header = vec![INET, 0, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_BOOT]; // struct rtmsg
        header.extend([libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST, 0, 0, 0, 0]);
        let attributes = Attributes::default().with(libc::RTA_GATEWAY, gateway.octets());
        let order = Order { kind: libc::RTM_NEWROUTE, flags: NEW, header, attributes };
        self.0.order(&order).doing(|| format!("make {gateway} the gateway"))
    }

    fn link(&self, flags: i32, header: Vec<u8>, attributes: Attributes) -> Result<(), Errno> {
        self.0.order(&Order { kind: libc::RTM_NEWLINK, flags, header, attributes })
    }
}

/// AF_INET as headers have it.
const INET: u8 = 2;

/// The number of an interface of this thread's namespace.
pub fn index(name: &str) -> Result<u32, Fault> {
    let asked = socket(AddressFamily::INET, SocketType::DGRAM, None).doing(|| "open a socket".to_owned())?;
    name_to_index(asked, name).doing(|| format!("find the interface {name}"))
}

/// The bits of an address that are its network's.
pub fn mask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0))
}

/// struct ifinfomsg.
fn link(index: u32, up: bool) -> Vec<u8> {
    let flags = if up { libc::IFF_UP.cast_unsigned() } else { 0 };
    [&[0; 4], &index.to_ne_bytes(), &flags.to_ne_bytes(), &flags.to_ne_bytes()].map(|part: &[u8; 4]| *part).concat()
}

fn named(end: End<'_>, mtu: u32) -> Attributes {
    let attributes = Attributes::default().text(libc::IFLA_IFNAME, end.name);
    attributes.with(libc::IFLA_ADDRESS, end.mac).with(libc::IFLA_MTU, mtu.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cover_the_networks_bits() {
        for (prefix, text) in [(0, "0.0.0.0"), (1, "128.0.0.0"), (24, "255.255.255.0"), (32, "255.255.255.255")] {
            assert_eq!(mask(prefix).to_string(), text);
        }
    }
}
