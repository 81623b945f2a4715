//! The addresses of containers: a network that is none of those the VM speaks to, and who has which place in it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use super::links::mask;
use crate::{Doing, Fault};

/// Bits of an address that are the network's.
pub const PREFIX: u8 = 24;
/// The bridge's place.
pub const BRIDGE: u8 = 1;
/// The last place that a container may have.
const LAST: u8 = 254;

/// The containers' network.
#[derive(Debug)]
pub struct Subnet {
    /// Its own address.
    network: Ipv4Addr,
    places: Mutex<Places>,
}

#[derive(Debug)]
struct Places {
    taken: BTreeSet<u8>,
    /// The one given last. The next is another, so that what a container leaves behind for a moment is in nobody's way.
    last: u8,
}

impl Subnet {
    /// One that the VM's own, with `address` and its `prefix`, is not in, nor any of `others`.
    pub fn choose(address: Ipv4Addr, prefix: u8, others: impl Iterator<Item = Ipv4Addr>) -> Result<Self, Fault> {
        let others: Vec<Ipv4Addr> = others.collect();
        let apart = |network: &Ipv4Addr| {
            let shared = mask(prefix.min(PREFIX));
            *network & shared != address & shared && others.iter().all(|other| *other & mask(PREFIX) != *network)
        };
        let private = (17..32).map(|part| Ipv4Addr::new(172, part, 0, 0));
        let more = (88..96).map(|part| Ipv4Addr::new(10, part, 0, 0));
        let network = private.chain(more).find(apart).ok_or("every private network is used by the VM's own")?;
        Ok(Self { network, places: Mutex::new(Places { taken: BTreeSet::new(), last: BRIDGE }) })
    }

    /// Takes a free place.
    pub fn take(&self) -> Result<u8, Fault> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let all = || BRIDGE.saturating_add(1)..=LAST;
        let later = all().filter(|place| *place > places.last);
        let place = later.chain(all()).find(|place| !places.taken.contains(place));
        let place = place.ok_or("all addresses for containers are taken")?;
        places.taken.insert(place);
        places.last = place;
        Ok(place)
    }

    /// Gives a place back.
    pub fn free(&self, place: u8) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).taken.remove(&place);
    }

    /// The address of a place.
    pub fn address(&self, place: u8) -> Ipv4Addr {
        self.network | Ipv4Addr::new(0, 0, 0, place)
    }

    /// Its hardware address: always the same one, so that nobody who remembers it is wrong.
    pub fn mac(&self, place: u8) -> [u8; 6] {
        let [a, b, c, d] = self.address(place).octets();
        [0x02, 0x42, a, b, c, d]
    }

    /// The same for the bridge's end of its pair.
    pub fn mac_here(&self, place: u8) -> [u8; 6] {
        let [a, b, c, d] = self.address(place).octets();
        [0x02, 0x43, a, b, c, d]
    }
}

/// Reads `192.0.2.2/24`.
pub fn parse(text: &str) -> Result<(Ipv4Addr, u8), Fault> {
    let wrong = || format!("{text} is no address with the bits of its network, as 192.0.2.2/24");
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let prefix = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix)).ok_or_else(wrong)?;
    Ok((address.parse().doing(wrong)?, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(address: &str, others: &[&str]) -> Result<String, Fault> {
        let (address, prefix) = parse(address).unwrap();
        let others = others.iter().map(|text| text.parse().unwrap());
        Subnet::choose(address, prefix, others).map(|subnet| subnet.network.to_string())
    }

    #[test]
    fn the_containers_network_is_none_of_the_vms() {
        assert_eq!(chosen("10.0.2.15/24", &["10.0.2.1"]).unwrap(), "172.17.0.0");
        assert_eq!(chosen("172.17.0.9/24", &[]).unwrap(), "172.18.0.0");
        assert_eq!(chosen("172.17.0.9/16", &["172.18.0.53"]).unwrap(), "172.19.0.0");
        assert_eq!(chosen("172.17.3.9/16", &[]).unwrap(), "172.18.0.0");
        assert_eq!(chosen("172.20.0.9/12", &[]).unwrap(), "10.88.0.0");
        assert_eq!(chosen("172.17.0.128/25", &[]).unwrap(), "172.18.0.0");
        assert!(chosen("64.0.0.1/1", &[]).is_ok());
    }

    #[test]
    fn places_are_had_once_and_come_back_late() {
        let subnet = Subnet::choose(Ipv4Addr::LOCALHOST, 8, std::iter::empty()).unwrap();
        assert_eq!((subnet.take(), subnet.take()), (Ok(2), Ok(3)));
        subnet.free(2);
        assert_eq!(subnet.take(), Ok(4));
        for place in 5..=254 {
            assert_eq!(subnet.take(), Ok(place));
        }
        assert_eq!(subnet.take(), Ok(2));
        assert!(subnet.take().unwrap_err().contains("taken"));
        assert_eq!(subnet.address(254).to_string(), "172.17.0.254");
        assert_eq!(subnet.mac(2), [2, 0x42, 172, 17, 0, 2]);
    }

    #[test]
    fn addresses_have_the_bits_of_their_network() {
        assert_eq!(parse("192.0.2.2/24"), Ok((Ipv4Addr::new(192, 0, 2, 2), 24)));
        for wrong in ["", "192.0.2.2", "192.0.2.2/33", "192.0.2.2/0", "::1/64", "x/24"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
