//! Which frames of the host reach the guest (virtio 1.2, 5.1.6.5.1 to 5.1.6.5.3). Pure; the interface's worker uses it.

use serde::{Deserialize, Serialize};

use super::config::Mac;
use crate::state::{StateError, check};

/// Most addresses of one kind that are told apart; with more, all frames of that kind pass.
pub const TABLE_MAX: usize = 64;
/// Where the EtherType stands: behind two addresses. That of a VLAN tag (IEEE 802.1Q), and the bits of the identifier in
/// the two bytes behind it.
const TAG_AT: usize = 12;
const VLAN_TAG: [u8; 2] = [0x81, 0x00];
const VLAN_ID: u16 = 0x0fff;

/// Modes of reception, numbered as the commands of class VIRTIO_NET_CTRL_RX that set them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes.
    Promiscuous = 0,
    /// All multicast frames pass.
    AllMulticast = 1,
    /// All unicast frames pass.
    AllUnicast = 2,
    /// No multicast frame passes.
    NoMulticast = 3,
    /// No unicast frame passes.
    NoUnicast = 4,
    /// No broadcast frame passes.
    NoBroadcast = 5,
}

/// A bit for each mode.
const ALL_MODES: u8 = 0x3f;

/// What is kept of a filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterState {
    /// Modes of reception, a bit for each command of class VIRTIO_NET_CTRL_RX (virtio 1.2, 5.1.6.5.1).
    pub modes: u8,
    /// The interface's own address, where it is known.
    pub mac: Option<[u8; 6]>,
    /// Other addresses to hear; without a list, all.
    pub unicast: Option<Vec<[u8; 6]>>,
    /// Groups to hear; without a list, all.
    pub multicast: Option<Vec<[u8; 6]>>,
    /// VLANs to hear, ascending; nothing where the driver does not choose them.
    pub vlans: Option<Vec<u16>>,
}

/// Addresses that the driver wants to hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Table {
    /// These, at most [`TABLE_MAX`].
    Only(Vec<Mac>),
    /// More than are told apart: all.
    All,
}

impl Table {
    fn has(&self, address: Mac) -> bool {
        match self {
            Self::Only(some) => some.contains(&address),
            Self::All => true,
        }
    }
}

/// The filter of one interface. A new one lets everything through, for a driver that knows of none.
#[derive(Debug, Clone)]
pub struct Filter {
    /// A bit for each [`Mode`].
    modes: u8,
    /// The interface's own address, where it is known.
    mac: Option<Mac>,
    unicast: Table,
    multicast: Table,
    /// A bit for each VLAN; nothing where the driver does not choose them.
    vlans: Option<Box<[u64; 64]>>,
}

impl Filter {
    /// As after a reset: promiscuous, with empty tables. With `vlans`, no VLAN is chosen.
    pub fn new(mac: Option<Mac>, vlans: bool) -> Self {
        let none = || Table::Only(Vec::new());
        let vlans = vlans.then(|| Box::new([0; 64]));
        Self { modes: bit(Mode::Promiscuous), mac, unicast: none(), multicast: none(), vlans }
    }

    /// Switches a mode on or off.
    pub fn set_mode(&mut self, mode: Mode, on: bool) {
        match on {
            true => self.modes |= bit(mode),
            false => self.modes &= !bit(mode),
        }
    }

    /// The interface's own address from now on.
    pub fn set_mac(&mut self, mac: Mac) {
        self.mac = Some(mac);
    }

    /// Other addresses to hear, instead of those before.
    pub fn set_tables(&mut self, unicast: Table, multicast: Table) {
        (self.unicast, self.multicast) = (unicast, multicast);
    }

    /// Hears a VLAN (its low 12 bits count) or no longer does.
    pub fn set_vlan(&mut self, id: u16, member: bool) {
        let Some(vlans) = &mut self.vlans else { return };
        if let Some(word) = vlans.get_mut(usize::from((id & VLAN_ID) / 64)) {
            let bit = 1 << (id % 64);
            *word = if member { *word | bit } else { *word & !bit };
        }
    }

    /// Whether the guest shall have this Ethernet frame.
    pub fn passes(&self, frame: &[u8]) -> bool {
        if self.has(Mode::Promiscuous) {
            return true;
        }
        let Some(to) = frame.first_chunk::<6>().copied().map(Mac) else { return false };
        if !self.hears_vlan_of(frame) {
            return false;
        }
        match to {
            Mac([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => !self.has(Mode::NoBroadcast),
            Mac([first, ..]) if first & 1 != 0 => {
                !self.has(Mode::NoMulticast) && (self.has(Mode::AllMulticast) || self.multicast.has(to))
            }
            // An address that the guest made up and did not tell can be any.
            _ if self.has(Mode::NoUnicast) => false,
            _ => self.has(Mode::AllUnicast) || self.mac.is_none_or(|own| own == to) || self.unicast.has(to),
        }
    }

    /// What is to be kept of it.
    pub fn save(&self) -> FilterState {
        let table = |table: &Table| match table {
            Table::Only(some) => Some(some.iter().map(|mac| mac.0).collect()),
            Table::All => None,
        };
        let heard = |vlans: &[u64; 64]| {
            let numbered = (0_u16..).step_by(64).zip(vlans);
            let of_word = numbered.flat_map(|(first, word)| {
                (0..64).filter(move |id| word >> id & 1 != 0).map(move |id| first.saturating_add(id))
            });
            of_word.collect()
        };
        FilterState {
            modes: self.modes,
            mac: self.mac.map(|mac| mac.0),
            unicast: table(&self.unicast),
            multicast: table(&self.multicast),
            vlans: self.vlans.as_deref().map(heard),
        }
    }

    /// Becomes what was saved of another one. This one was made for a driver with the same features.
    pub fn load(&mut self, state: &FilterState) -> Result<(), StateError> {
        check(state.modes <= ALL_MODES, || format!("there are no modes of reception {:#x}", state.modes))?;
        let table = |table: &Option<Vec<[u8; 6]>>| {
            let Some(some) = table else { return Ok(Table::All) };
            check(some.len() <= TABLE_MAX, || format!("its filter has {} addresses", some.len()))?;
            Ok(Table::Only(some.iter().copied().map(Mac).collect()))
        };
        check(state.vlans.is_some() == self.vlans.is_some(), || {
            "its driver can not filter by VLANs, or must".to_owned()
        })?;
        let (unicast, multicast) = (table(&state.unicast)?, table(&state.multicast)?);
        let mac = state.mac.map(|mac| Mac::of_interface(mac).map_err(StateError::new)).transpose()?;
        *self =
            Self { modes: state.modes, mac, unicast, multicast, vlans: self.vlans.as_ref().map(|_| Box::new([0; 64])) };
        for id in state.vlans.iter().flatten() {
            check(*id <= VLAN_ID, || format!("there is no VLAN {id}"))?;
            self.set_vlan(*id, true);
        }
        Ok(())
    }

    fn has(&self, mode: Mode) -> bool {
        self.modes & bit(mode) != 0
    }

    /// Frames without a tag, and those that only have a priority (identifier 0), belong to no VLAN.
    fn hears_vlan_of(&self, frame: &[u8]) -> bool {
        let Some(vlans) = &self.vlans else { return true };
        let Some((tag, rest)) = frame.get(TAG_AT..).and_then(<[u8]>::split_first_chunk::<2>) else { return true };
        let Some(id) = rest.first_chunk::<2>() else { return true };
        let id = u16::from_be_bytes(*id) & VLAN_ID;
        *tag != VLAN_TAG || id == 0 || vlans.get(usize::from(id / 64)).is_some_and(|word| word >> (id % 64) & 1 != 0)
    }
}

fn bit(mode: Mode) -> u8 {
    1 << mode as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const GROUP: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
    const EVERYONE: Mac = Mac([0xff; 6]);

    fn to(mac: Mac) -> Vec<u8> {
        [&mac.0[..], &[2, 0, 0, 0, 0, 9], &[8, 0], &[0; 46]].concat()
    }

    /// Which of own, other, group and broadcast address are heard.
    fn heard(filter: &Filter) -> [bool; 4] {
        [OWN, OTHER, GROUP, EVERYONE].map(|mac| filter.passes(&to(mac)))
    }

    fn plain() -> Filter {
        let mut filter = Filter::new(Some(OWN), false);
        assert_eq!(heard(&filter), [true; 4]);
        filter.set_mode(Mode::Promiscuous, false);
        filter
    }

    #[test]
    fn each_mode_does_what_it_says() {
        for (mode, wanted) in [
            (None, [true, false, false, true]),
            (Some(Mode::Promiscuous), [true; 4]),
            (Some(Mode::AllMulticast), [true, false, true, true]),
            (Some(Mode::AllUnicast), [true, true, false, true]),
            (Some(Mode::NoMulticast), [true, false, false, true]),
            (Some(Mode::NoUnicast), [false, false, false, true]),
            (Some(Mode::NoBroadcast), [true, false, false, false]),
        ] {
            let mut filter = plain();
            if let Some(mode) = mode {
                filter.set_mode(mode, true);
            }
            assert_eq!(heard(&filter), wanted, "{mode:?}");
            if let Some(mode) = mode {
                filter.set_mode(mode, false);
                assert_eq!(heard(&filter), [true, false, false, true], "no longer {mode:?}");
            }
        }
    }

    #[test]
    fn what_is_forbidden_does_not_pass_by_a_table() {
        let mut filter = plain();
        filter.set_tables(Table::Only(vec![OTHER]), Table::Only(vec![GROUP]));
        assert_eq!(heard(&filter), [true; 4]);
        filter.set_mode(Mode::NoMulticast, true);
        assert_eq!(heard(&filter), [true, true, false, true]);
        filter.set_mode(Mode::NoUnicast, true);
        assert_eq!(heard(&filter), [false, false, false, true]);
        filter.set_mode(Mode::Promiscuous, true);
        assert_eq!(heard(&filter), [true; 4]);
    }

    #[test]
    fn tables_replace_each_other_and_may_be_too_long() {
        let mut filter = plain();
        filter.set_tables(Table::All, Table::Only(Vec::new()));
        assert_eq!(heard(&filter), [true, true, false, true]);
        filter.set_tables(Table::Only(Vec::new()), Table::All);
        assert_eq!(heard(&filter), [true, false, true, true]);
    }

    #[test]
    fn the_own_address_may_change_or_be_unknown() {
        let mut filter = plain();
        filter.set_mac(OTHER);
        assert_eq!(heard(&filter), [false, true, false, true]);
        let mut filter = Filter::new(None, false);
        filter.set_mode(Mode::Promiscuous, false);
        assert_eq!(heard(&filter), [true, true, false, true]);
    }

    #[test]
    fn vlans_are_heard_when_chosen() {
        let tagged = |id: u16| {
            let mut frame = to(OWN);
            frame.splice(12..12, [0x81, 0, (id >> 8) as u8 | 0xe0, id as u8]);
            frame
        };
        let mut filter = Filter::new(Some(OWN), true);
        assert!(filter.passes(&tagged(5)), "promiscuous");
        filter.set_mode(Mode::Promiscuous, false);
        for id in [1, 63, 64, 4095] {
            assert!(!filter.passes(&tagged(id)));
            filter.set_vlan(id, true);
            assert!(filter.passes(&tagged(id)) && !filter.passes(&tagged(id ^ 2)), "{id}");
            filter.set_vlan(id, false);
            assert!(!filter.passes(&tagged(id)));
        }
        assert!(filter.passes(&tagged(0)) && filter.passes(&to(OWN)));
        filter.set_vlan(u16::MAX, true);
        assert!(filter.passes(&tagged(4095)), "bits above the twelfth are no part of the identifier");
        let mut filter = Filter::new(Some(OWN), false);
        filter.set_mode(Mode::Promiscuous, false);
        assert!(filter.passes(&tagged(7)), "nobody chooses");
    }

    #[test]
    fn what_is_too_short_for_an_address_is_for_nobody() {
        assert!(!plain().passes(&[2, 0, 0, 0, 0]) && !plain().passes(&[]));
        assert!(plain().passes(&OWN.0));
        assert!(Filter::new(Some(OWN), true).passes(&[]), "promiscuous");
    }
}
