//! What the VM's kernel does to packets (nf_tables): addresses of containers are hidden behind the VM's, ports of the VM
//! lead to containers, and nothing else comes in. Numbers are those of linux/netfilter/nf_tables.h; they are big-endian.
//!
//! Each container's ports are a table of their own, so they come and go as one.

use std::net::Ipv4Addr;

use protocol::network::Publish;
use rustix::io::Errno;

use super::netlink::{Attributes, Conversation, Order, Part};
use crate::{Doing, Fault};

/// NFNL_SUBSYS_NFTABLES.
const SUBSYSTEM: u8 = 10;
/// NFPROTO_IPV4.
const IPV4: u8 = 2;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u8 = 0;
const DELTABLE: u8 = 2;
const NEWCHAIN: u8 = 3;
const NEWRULE: u8 = 6;
/// Registers that expressions share.
const FIRST: u32 = 1;
const SECOND: u32 = 2;
/// Where in a packet's way a chain is (linux/netfilter_ipv4.h), and in which order.
const PREROUTING: (u32, i32) = (0, -100);
const FORWARD: (u32, i32) = (2, 0);
const POSTROUTING: (u32, i32) = (4, 100);
/// NFT_META_*.
const IIFNAME: u32 = 6;
const OIFNAME: u32 = 7;
const L4PROTO: u32 = 16;
/// NFT_CT_STATE, and the bits of established and related connections.
const CT_STATE: (u32, u32) = (0, 2 | 4);
/// NFT_CT_STATUS, and IPS_DST_NAT.
const CT_STATUS: (u32, u32) = (2, 1 << 5);
/// The table of what holds for all.
const ALL: &str = "vmm";

/// Hides containers behind the address of `interface`, and lets in only what belongs to their connections or their
/// published ports.
pub fn begin(interface: &str) -> Result<(), Fault> {
    let none_of = |(key, bits): (u32, u32)| [ct(key), and(bits), equal(0_u32.to_ne_bytes())];
    let hide = [meta(OIFNAME), equal(name(interface)), expression("masq", Attributes::default())];
    let mut shut = vec![meta(IIFNAME), equal(name(interface))];
    shut.extend(none_of(CT_STATE));
    shut.extend(none_of(CT_STATUS));
    shut.push(drop_it());
    let orders = [
        table(NEWTABLE, ALL),
        chain(ALL, "out", "nat", POSTROUTING),
        rule(ALL, "out", &hide),
        chain(ALL, "in", "filter", FORWARD),
        rule(ALL, "in", &shut),
    ];
    let done = follow(&orders).doing(|| "hide containers behind the VM's address".to_owned());
    done.map_err(|why| format!("{why} (has this kernel CONFIG_NF_TABLES_IPV4, CONFIG_NFT_MASQ and CONFIG_NFT_CT?)"))
}

/// Lets ports of the VM, at `interface`, lead to a container.
pub fn publish(table_name: &str, interface: &str, to: Ipv4Addr, ports: &[Publish]) -> Result<(), Fault> {
    let mut orders = vec![table(NEWTABLE, table_name), chain(table_name, "ports", "nat", PREROUTING)];
    orders.extend(ports.iter().map(|port| rule(table_name, "ports", &lead(interface, to, port))));
    let done = follow(&orders).doing(|| "publish a container's ports".to_owned());
    done.map_err(|why| format!("{why} (has this kernel CONFIG_NF_TABLES_IPV4 and CONFIG_NFT_NAT?)"))
}

/// Takes a table away. One that is not there is none.
pub fn remove(table_name: &str) -> Result<(), Fault> {
    match follow(&[table(DELTABLE, table_name)]) {
        Err(Errno::NOENT) => Ok(()),
        done => done.doing(|| "take a container's ports away".to_owned()),
    }
}

fn follow(orders: &[Order]) -> Result<(), Errno> {
    let bound = |kind| {
        let header = vec![0, 0, 0, SUBSYSTEM]; // struct nfgenmsg; here the number is the subsystem
        Order { kind, flags: 0, header, attributes: Attributes::default() }
    };
    Conversation::begin(Part::Netfilter)?.batch([&bound(BATCH_BEGIN), &bound(BATCH_END)], orders)
}

/// To `to`, what arrives at this port.
fn lead(interface: &str, to: Ipv4Addr, port: &Publish) -> Vec<Attributes> {
    let protocol = if port.udp { libc::IPPROTO_UDP } else { libc::IPPROTO_TCP };
    let nat = Attributes::default()
        .with(1, 1_u32.to_be_bytes()) // NFTA_NAT_TYPE: NFT_NAT_DNAT
        .with(2, u32::from(IPV4).to_be_bytes())
        .with(3, FIRST.to_be_bytes()) // NFTA_NAT_REG_ADDR_MIN
        .with(5, SECOND.to_be_bytes()); // NFTA_NAT_REG_PROTO_MIN
    vec![
        meta(IIFNAME),
        equal(name(interface)),
        meta(L4PROTO),
        equal([u8::try_from(protocol).unwrap_or_default()]),
        destination_port(),
        equal(port.vm.to_be_bytes()),
        immediate(FIRST, value(to.octets())),
        immediate(SECOND, value(port.container.to_be_bytes())),
        expression("nat", nat),
    ]
}

fn order(message: u8, flags: i32, attributes: Attributes) -> Order {
    Order { kind: u16::from_be_bytes([SUBSYSTEM, message]), flags, header: vec![IPV4, 0, 0, 0], attributes }
}

fn table(message: u8, name: &str) -> Order {
    let flags = if message == NEWTABLE { libc::NLM_F_CREATE } else { 0 };
    order(message, flags, Attributes::default().text(1, name))
}

fn chain(table: &str, name: &str, kind: &str, (hook, priority): (u32, i32)) -> Order {
    let hook = Attributes::default().with(1, hook.to_be_bytes()).with(2, priority.to_be_bytes());
    let attributes = Attributes::default().text(1, table).text(3, name).nest(4, hook).text(7, kind);
    order(NEWCHAIN, libc::NLM_F_CREATE, attributes)
}

fn rule(table: &str, chain: &str, expressions: &[Attributes]) -> Order {
    let list = expressions.iter().fold(Attributes::default(), |list, one| list.nest(1, one.clone()));
    let attributes = Attributes::default().text(1, table).text(2, chain).nest(4, list);
    order(NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, attributes)
}

fn expression(name: &str, data: Attributes) -> Attributes {
    Attributes::default().text(1, name).nest(2, data)
}

/// What is known of the packet, into the first register.
fn meta(key: u32) -> Attributes {
    expression("meta", Attributes::default().with(1, FIRST.to_be_bytes()).with(2, key.to_be_bytes()))
}

/// What is known of its connection, into the first register.
fn ct(key: u32) -> Attributes {
    expression("ct", Attributes::default().with(1, FIRST.to_be_bytes()).with(2, key.to_be_bytes()))
}

/// The bits `bits` of the first register, which is in this CPU's byte order.
fn and(bits: u32) -> Attributes {
    let data = Attributes::default().with(1, FIRST.to_be_bytes()).with(2, FIRST.to_be_bytes());
    let data = data.with(3, 4_u32.to_be_bytes());
    expression("bitwise", data.nest(4, value(bits.to_ne_bytes())).nest(5, value([0; 4])))
}

/// Goes on if the first register has this value.
fn equal(wanted: impl AsRef<[u8]>) -> Attributes {
    let data = Attributes::default().with(1, FIRST.to_be_bytes()).with(2, 0_u32.to_be_bytes());
    expression("cmp", data.nest(3, value(wanted)))
}

/// The destination's port of a TCP or UDP packet, into the first register.
fn destination_port() -> Attributes {
    let data = Attributes::default().with(1, FIRST.to_be_bytes());
    let data = data.with(2, 2_u32.to_be_bytes()); // NFT_PAYLOAD_TRANSPORT_HEADER
    expression("payload", data.with(3, 2_u32.to_be_bytes()).with(4, 2_u32.to_be_bytes()))
}

fn immediate(register: u32, data: Attributes) -> Attributes {
    expression("immediate", Attributes::default().with(1, register.to_be_bytes()).nest(2, data))
}

/// The packet goes no further.
fn drop_it() -> Attributes {
    let verdict = Attributes::default().nest(2, Attributes::default().with(1, 0_u32.to_be_bytes())); // NF_DROP
    immediate(0, verdict)
}

fn value(bytes: impl AsRef<[u8]>) -> Attributes {
    Attributes::default().with(1, bytes)
}

/// An interface's name as registers have it: IFNAMSIZ bytes.
fn name(interface: &str) -> Vec<u8> {
    let mut bytes = interface.as_bytes().to_vec();
    bytes.resize(libc::IFNAMSIZ, 0);
    bytes
}
