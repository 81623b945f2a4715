//! Who sent a frame, so that the answer goes there without asking the guest by ARP. Pure.
//!
//! A guest may reach the service past a router, whose Ethernet address its frames then have, and need not answer ARP.

use smoltcp::time::Instant;
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Ipv4Address};

/// Microseconds that it counts on what smoltcp was told, which forgets it after a minute.
const GOOD_FOR: i64 = 30_000_000;
const ETHERNET_HEADER: usize = 14;
const ARP: usize = 28;

/// The sender of the last IPv4 packet, and since when smoltcp knows it.
#[derive(Default)]
pub struct Neighbor(Option<(EthernetAddress, Ipv4Address, Instant)>);

impl Neighbor {
    /// Looks at a frame for `us`, and addresses it to us where it was to a router. The frame by which the sender of an
    /// IPv4 packet says who it is, if smoltcp has to hear that first.
    pub fn introduce(&mut self, frame: &mut [u8], us: (EthernetAddress, Ipv4Address), now: Instant) -> Option<Vec<u8>> {
        let source = frame.get(26..).and_then(<[u8]>::first_chunk::<4>).copied().map(Ipv4Address::from)?;
        let mut frame = EthernetFrame::new_checked(frame).ok()?;
        if frame.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        frame.set_dst_addr(us.0);
        let sender = frame.src_addr();
        let is_known = self.0.is_some_and(|(mac, ip, since)| {
            (mac, ip) == (sender, source) && now.total_micros().saturating_sub(since.total_micros()) < GOOD_FOR
        });
        if is_known {
            return None;
        }
        self.0 = Some((sender, source, now));
        Some(arp(sender, source, us))
    }
}

/// An ARP reply (RFC 826): nothing answers it.
fn arp(sender: EthernetAddress, source: Ipv4Address, us: (EthernetAddress, Ipv4Address)) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET_HEADER + ARP];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(sender);
    frame.set_dst_addr(us.0);
    frame.set_ethertype(EthernetProtocol::Arp);
    let says = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: sender,
        source_protocol_addr: source,
        target_hardware_addr: us.0,
        target_protocol_addr: us.1,
    };
    says.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}
