//! Ports of the host that lead into the guest: `[IP:]HOST:GUEST[/tcp|/udp]`. Pure.

use std::fmt;
use std::net::IpAddr;

/// A port of the host that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// The host's address; all of its addresses without it.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// For TCP.
    pub tcp: bool,
    /// For UDP.
    pub udp: bool,
}

impl Publish {
    /// Reads `8080:80`, `127.0.0.1:8080:80/tcp`, `[::1]:53:53/udp`; what is wrong otherwise.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "[IP:]HOSTPORT:GUESTPORT[/tcp|/udp] is expected, as in 8080:80 or 127.0.0.1:5353:53/udp";
        let (ports, tcp, udp) = match text.rsplit_once('/') {
            None => (text, true, true),
            Some((ports, "tcp")) => (ports, true, false),
            Some((ports, "udp")) => (ports, false, true),
            Some(_) => return Err(FORM),
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or(FORM)?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, host)) => {
                let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
                let address: IpAddr = bare.unwrap_or(address).parse().map_err(|_| FORM)?;
                if address.is_ipv6() != bare.is_some() {
                    return Err("an IPv6 address stands in brackets, an IPv4 address without, as in [::1]:8080:80");
                }
                (Some(address), host)
            }
        };
        Ok(Self { address, host: port(host).ok_or(FORM)?, guest: port(guest).ok_or(FORM)?, tcp, udp })
    }

    /// Whether both want the same port of the host.
    pub fn overlaps(&self, other: &Self) -> bool {
        let everywhere = |address: Option<IpAddr>| address.is_none_or(|address| address.is_unspecified());
        let same = everywhere(self.address) || everywhere(other.address) || self.address == other.address;
        same && self.host == other.host && (self.tcp && other.tcp || self.udp && other.udp)
    }
}

/// As passt's options --tcp-ports and --udp-ports want it.
impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address}/")?;
        }
        write!(f, "{}:{}", self.host, self.guest)
    }
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0 && text.bytes().all(|digit| digit.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Publish {
        Publish::parse(text).unwrap()
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(read("8080:80"), Publish { address: None, host: 8080, guest: 80, tcp: true, udp: true });
        for (text, spec, tcp, udp) in [
            ("1:65535/tcp", "1:65535", true, false),
            ("127.0.0.1:53:5353/udp", "127.0.0.1/53:5353", false, true),
            ("[::1]:8080:80", "::1/8080:80", true, true),
        ] {
            assert_eq!((read(text).to_string(), read(text).tcp, read(text).udp), (spec.to_owned(), tcp, udp));
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for text in [
            "",
            "80",
            ":",
            "80:",
            ":80",
            "0:80",
            "80:0",
            "65536:80",
            "+1:80",
            "80:80/sctp",
            "80:80/",
            "a:80:80",
            "1.2.3:80:80",
            "80-90:80",
        ] {
            assert!(Publish::parse(text).unwrap_err().starts_with("[IP:]HOSTPORT:GUESTPORT"), "{text}");
        }
        for text in ["::1:8080:80", "[127.0.0.1]:80:80"] {
            assert!(Publish::parse(text).unwrap_err().contains("in brackets"), "{text}");
        }
    }

    #[test]
    fn one_port_has_one_owner() {
        for (one, other, both) in [
            ("80:1", "80:2", true),
            ("80:1", "81:1", false),
            ("80:1/tcp", "80:1/udp", false),
            ("80:1/tcp", "80:1", true),
            ("127.0.0.1:80:1", "80:1", true),
            ("127.0.0.1:80:1", "0.0.0.0:80:1", true),
            ("127.0.0.1:80:1", "127.0.0.2:80:1", false),
        ] {
            assert_eq!(
                (read(one).overlaps(&read(other)), read(other).overlaps(&read(one))),
                (both, both),
                "{one} {other}"
            );
        }
    }
}
