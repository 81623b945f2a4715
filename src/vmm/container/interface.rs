//! The addresses that this host has on an interface (getifaddrs(3)).
#![allow(unsafe_code)] // getifaddrs(3)

use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;
use std::ptr;

/// The IPv4 addresses, with the bits of their networks; none where there is no such interface.
pub fn addresses(interface: &str) -> io::Result<Vec<(Ipv4Addr, u32)>> {
    let mut first = ptr::null_mut();
    // SAFETY: getifaddrs(3) writes a list to where it is told, which is freed below, or nothing when it fails.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (mut found, mut next) = (Vec::new(), first);
    // SAFETY: each entry of the list, which lives until it is freed, is null or whole.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: as above; a name ends with 0.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy();
        // An address may have a name of its own, behind a colon.
        if name.split(':').next() != Some(interface) {
            continue;
        }
        // SAFETY: as above.
        if let Some((address, mask)) = unsafe { ipv4(entry.ifa_addr).zip(ipv4(entry.ifa_netmask)) } {
            found.push((address, u32::from(mask).leading_ones()));
        }
    }
    // SAFETY: it is the list of above, and nothing of it is used any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

/// The address in it, where it is one of IPv4.
///
/// # Safety
///
/// It is null or points to an address as large as its family says.
unsafe fn ipv4(address: *const libc::sockaddr) -> Option<Ipv4Addr> {
    // SAFETY: the caller says so; every address begins with its family.
    let family = unsafe { address.as_ref() }?.sa_family;
    (i32::from(family) == libc::AF_INET).then(|| {
        // SAFETY: the caller says so; where it lies need not fit the larger type's alignment.
        let address = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
        Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_one() {
        assert!(addresses("lo").unwrap().contains(&(Ipv4Addr::LOCALHOST, 8)));
        assert_eq!(addresses("no-such-device").unwrap(), []);
    }
}
