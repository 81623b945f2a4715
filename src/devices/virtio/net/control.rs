//! Commands of the control queue (virtio 1.2, 5.1.6.5), read and checked. Pure; the interface's worker uses it.
//!
//! A request is a class, a command and what belongs to them; the device answers with one byte. Lengths must be exact,
//! and no table is longer than the request that holds it, so that the work for a request is bounded.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD,
    VIRTIO_NET_CTRL_VLAN_DEL, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_MQ,
};

use super::config::Mac;
use super::filter::{Mode, TABLE_MAX, Table};
use crate::virtio::Chain;

/// Bytes of class and command.
const HEADER: u64 = 2;

/// What the driver wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A mode of reception, on or off.
    Mode(Mode, bool),
    /// Unicast and multicast addresses to hear beside the interface's own.
    Tables(Table, Table),
    /// The interface's own address.
    Address(Mac),
    /// A VLAN, to be heard or no longer.
    Vlan(u16, bool),
    /// So many queue pairs are in use.
    Pairs(u16),
}

/// The request that is no command that was negotiated: the answer is VIRTIO_NET_ERR. The text says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub &'static str);

impl Command {
    /// Reads the request of `chain`; `features` are those that were negotiated.
    pub fn read(chain: &Chain<'_>, features: u64) -> Result<Self, Refused> {
        const UNKNOWN: Refused = Refused("no such command was negotiated");
        let [class, command] = bytes(chain, 0)?;
        let has = |bit: u32| if features & (1 << bit) != 0 { Ok(()) } else { Err(UNKNOWN) };
        match (u32::from(class), u32::from(command)) {
            (VIRTIO_NET_CTRL_RX, command) => {
                let (mode, feature) = mode(command).ok_or(UNKNOWN)?;
                has(feature)?;
                let [on] = all(chain)?;
                Ok(Self::Mode(mode, on != 0))
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                has(VIRTIO_NET_F_CTRL_RX)?;
                let (unicast, next) = table(chain, HEADER)?;
                let (multicast, end) = table(chain, next)?;
                if end != chain.readable_len() {
                    return Err(LENGTH);
                }
                Ok(Self::Tables(unicast, multicast))
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                has(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
                Mac::of_interface(all(chain)?).map(Self::Address).map_err(Refused)
            }
            (VIRTIO_NET_CTRL_VLAN, command @ (VIRTIO_NET_CTRL_VLAN_ADD | VIRTIO_NET_CTRL_VLAN_DEL)) => {
                has(VIRTIO_NET_F_CTRL_VLAN)?;
                Ok(Self::Vlan(u16::from_le_bytes(all(chain)?), command == VIRTIO_NET_CTRL_VLAN_ADD))
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                has(VIRTIO_NET_F_MQ)?;
                Ok(Self::Pairs(u16::from_le_bytes(all(chain)?)))
            }
            _ => Err(UNKNOWN),
        }
    }
}

const LENGTH: Refused = Refused("its length is not what its command needs");

/// The mode that a command of class VIRTIO_NET_CTRL_RX sets, and the feature that it belongs to.
fn mode(command: u32) -> Option<(Mode, u32)> {
    Some(match command {
        0 => (Mode::Promiscuous, VIRTIO_NET_F_CTRL_RX),
        1 => (Mode::AllMulticast, VIRTIO_NET_F_CTRL_RX),
        2 => (Mode::AllUnicast, VIRTIO_NET_F_CTRL_RX_EXTRA),
        3 => (Mode::NoMulticast, VIRTIO_NET_F_CTRL_RX_EXTRA),
        4 => (Mode::NoUnicast, VIRTIO_NET_F_CTRL_RX_EXTRA),
        5 => (Mode::NoBroadcast, VIRTIO_NET_F_CTRL_RX_EXTRA),
        _ => return None,
    })
}

fn bytes<const N: usize>(chain: &Chain<'_>, at: u64) -> Result<[u8; N], Refused> {
    let mut bytes = [0; N];
    chain.read(at, &mut bytes).map_err(|_| Refused("it is too short or not in RAM"))?;
    Ok(bytes)
}

/// Everything behind class and command.
fn all<const N: usize>(chain: &Chain<'_>) -> Result<[u8; N], Refused> {
    let len = u64::try_from(N).map_err(|_| LENGTH)?;
    if chain.readable_len().checked_sub(HEADER) != Some(len) {
        return Err(LENGTH);
    }
    bytes(chain, HEADER)
}

/// struct virtio_net_ctrl_mac at `at`, and where it ends. One that is longer than what is kept is not looked at.
fn table(chain: &Chain<'_>, at: u64) -> Result<(Table, u64), Refused> {
    let count = u32::from_le_bytes(bytes(chain, at)?);
    let first = at.checked_add(4).ok_or(LENGTH)?;
    let end = u64::from(count).checked_mul(6).and_then(|len| first.checked_add(len)).ok_or(LENGTH)?;
    if end > chain.readable_len() {
        return Err(LENGTH);
    }
    if usize::try_from(count).is_ok_and(|count| count > TABLE_MAX) {
        return Ok((Table::All, end));
    }
    let addresses = (first..end).step_by(6).map(|at| bytes(chain, at).map(Mac));
    Ok((Table::Only(addresses.collect::<Result<_, _>>()?), end))
}
