//! Which frames of the guest are for the metadata service: ARP that asks for its address, and TCP to it. Everything else
//! is for the network. Pure.

use std::net::Ipv4Addr;

/// So many bytes of a frame tell: an Ethernet header, and an ARP packet (RFC 826) or what is fixed of an IPv4 header.
pub const HEAD: usize = 42;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const PROTOCOL_TCP: u8 = 6;

/// Whether a frame that begins so is for the service at `address`. `head` is shorter where the frame is.
pub fn is_for(address: Ipv4Addr, head: &[u8]) -> bool {
    let is_at = |at: usize| head.get(at..).and_then(<[u8]>::first_chunk::<4>) == Some(&address.octets());
    match head.get(12..).and_then(<[u8]>::first_chunk::<2>) {
        Some(&ETHERTYPE_IPV4) => is_at(30) && head.get(23) == Some(&PROTOCOL_TCP),
        Some(&ETHERTYPE_ARP) => is_at(38), // the target's protocol address
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

    /// A frame of this type with these bytes at these places.
    fn frame(ethertype: [u8; 2], bytes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut frame = vec![0; 60];
        for (at, bytes) in [(12, &ethertype[..])].iter().chain(bytes) {
            frame[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        frame
    }

    #[test]
    fn arp_and_tcp_to_the_address_and_nothing_else() {
        let (us, other) = (&[169, 254, 169, 254][..], &[169, 254, 169, 253][..]);
        let is_for = |frame: &[u8]| is_for(ADDRESS, &frame[..frame.len().min(HEAD)]);
        for (frame, wanted) in [
            (frame([8, 6], &[(38, us)]), true),
            (frame([8, 6], &[(28, us), (38, other)]), false),
            (frame([8, 0], &[(23, &[6]), (30, us)]), true),
            (frame([8, 0], &[(23, &[6]), (26, us), (30, other)]), false),
            (frame([8, 0], &[(23, &[17]), (30, us)]), false),
            (frame([8, 0], &[(23, &[1]), (30, us)]), false),
            (frame([0x86, 0xdd], &[(23, &[6]), (30, us)]), false),
            (frame([0x81, 0], &[(23, &[6]), (30, us), (38, us)]), false),
        ] {
            assert_eq!(is_for(&frame), wanted, "{frame:x?}");
            for len in 0..34 {
                assert!(!is_for(&frame[..len]), "cut off at {len}");
            }
        }
    }
}
