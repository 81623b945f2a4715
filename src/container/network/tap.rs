//! A TAP device of the host: what `--network tap:…` says of it, and what the host's address on it says where that does not.
//! Pure.

use std::net::{IpAddr, Ipv4Addr};

use super::number;

/// How it is written.
const FORM: &str = "tap:NAME[,address=IP/BITS][,gateway=IP][,dns=IP] is expected, as tap:tap0 or tap:tap0,address=192.0.2.2/24,gateway=192.0.2.1";

/// A TAP device and what the host's user decided for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The device.
    pub name: String,
    /// The VM's address, with the bits of its network; none: one beside the host's.
    pub address: Option<String>,
    /// The gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers; none: the host's.
    pub nameservers: Vec<IpAddr>,
}

/// Reads what stands after `tap:`.
pub(super) fn read(text: &str) -> Result<Tap, String> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default().to_owned();
    let (mut address, mut gateway, mut nameservers) = (None, None, Vec::new());
    for part in parts {
        let wrong = || format!("{part}: {FORM}");
        match part.split_once('=').ok_or_else(wrong)? {
            ("address", text) if address.is_none() => address = Some(network(text).ok_or_else(wrong)?),
            ("gateway", text) if gateway.is_none() => gateway = Some(text.parse().map_err(|_| wrong())?),
            ("dns", text) => nameservers.push(text.parse().map_err(|_| wrong())?),
            _ => return Err(wrong()),
        }
    }
    if name.is_empty() { Err(FORM.to_owned()) } else { Ok(Tap { name, address, gateway, nameservers }) }
}

/// An address with the bits of its network, as it was written.
fn network(text: &str) -> Option<String> {
    let (address, bits) = text.split_once('/')?;
    let good = address.parse::<Ipv4Addr>().is_ok() && (1..=32).contains(&number(bits)?);
    good.then(|| text.to_owned())
}

impl Tap {
    /// The VM's address and gateway. Where the user gives no address, it is the one after the host's on the device (`hosts`
    /// are these, with the bits of their networks), and the host is the gateway.
    pub(super) fn addresses(&self, hosts: &[(Ipv4Addr, u32)]) -> Result<(String, Option<Ipv4Addr>), String> {
        if let Some(address) = &self.address {
            return Ok((address.clone(), self.gateway));
        }
        let say = |why: &str| {
            let name = &self.name;
            format!("{why}, so the VM's has to be given: tap:{name},address=IP/BITS[,gateway=IP][,dns=IP]")
        };
        let [(host, bits)] = hosts else {
            let how_many = if hosts.is_empty() { "no IPv4 address" } else { "several IPv4 addresses" };
            return Err(say(&format!("the host has {how_many} on this device")));
        };
        let own = beside(*host, *bits);
        let own =
            own.ok_or_else(|| say(&format!("there is no address beside the host's on this device, {host}/{bits}")))?;
        Ok((format!("{own}/{bits}"), self.gateway.or(Some(*host))))
    }
}

/// The next address that a host of this network may have; after the last one comes the first.
fn beside(host: Ipv4Addr, bits: u32) -> Option<Ipv4Addr> {
    let hosts = u32::MAX.checked_shr(bits).filter(|_| bits > 0)?; // the bits that are not the network's
    let host = u32::from(host);
    let (first, last) = match bits {
        31 => (host & !hosts, host | hosts), // RFC 3021
        _ => ((host & !hosts).checked_add(1)?, (host | hosts).checked_sub(1)?),
    };
    let next = if host < last { host.checked_add(1)? } else { first };
    (first < last).then(|| next.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_understood() {
        let tap = read("t,gateway=192.0.2.1,address=192.0.2.2/24,dns=192.0.2.9,dns=::2").unwrap();
        assert_eq!((tap.name.as_str(), tap.address.as_deref()), ("t", Some("192.0.2.2/24")));
        assert_eq!((tap.gateway, tap.nameservers.len()), (Some(Ipv4Addr::new(192, 0, 2, 1)), 2));
        assert_eq!(read("t").unwrap(), Tap { name: "t".to_owned(), address: None, gateway: None, nameservers: vec![] });
        for wrong in ["", ",address=1.2.3.4/5", "t,", "t,address=1.2.3.4", "t,address=1.2.3.4/5,x=1", "t,dns=x"] {
            assert!(read(wrong).unwrap_err().contains("tap:NAME[,address=IP/BITS]"), "{wrong}");
        }
    }

    #[test]
    fn the_host_s_address_says_the_vm_s() {
        let settled = |text: &str, host: &str, bits| {
            let (own, gateway) = read(text).unwrap().addresses(&[(host.parse().unwrap(), bits)])?;
            Ok::<_, String>((own, gateway.unwrap().to_string()))
        };
        for (host, bits, vm) in [
            ("192.0.2.1", 24, "192.0.2.2"),
            ("192.0.2.254", 24, "192.0.2.1"),
            ("192.0.2.255", 23, "192.0.3.0"),
            ("192.0.2.5", 30, "192.0.2.6"),
            ("192.0.2.6", 30, "192.0.2.5"),
            ("192.0.2.0", 31, "192.0.2.1"),
            ("192.0.2.1", 31, "192.0.2.0"),
            ("10.255.255.254", 8, "10.0.0.1"),
        ] {
            assert_eq!(settled("t", host, bits), Ok((format!("{vm}/{bits}"), host.to_owned())), "{host}/{bits}");
        }
        let (own, gateway) = settled("t,gateway=192.0.2.9", "192.0.2.1", 24).unwrap();
        assert_eq!((own.as_str(), gateway.as_str()), ("192.0.2.2/24", "192.0.2.9"));
        for bits in [0, 32] {
            let why = settled("t", "192.0.2.1", bits).unwrap_err();
            assert!(
                why.starts_with("there is no address beside the host's") && why.contains("tap:t,address="),
                "{why}"
            );
        }
    }

    #[test]
    fn what_the_user_gives_counts() {
        let host = |last| (Ipv4Addr::new(192, 0, 2, last), 24);
        let given = read("t,address=198.51.100.2/24").unwrap();
        assert_eq!(given.addresses(&[host(1)]), Ok(("198.51.100.2/24".to_owned(), None)));
        let none = read("t").unwrap();
        assert!(none.addresses(&[]).unwrap_err().starts_with("the host has no IPv4 address on this device, so"));
        let why = none.addresses(&[host(1), host(2)]).unwrap_err();
        assert!(why.starts_with("the host has several IPv4 addresses"), "{why}");
    }
}
