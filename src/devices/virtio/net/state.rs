//! What is kept of a network interface: what its driver asked for by the control queue (virtio 1.2, 5.1.6.5), and its limits.
//! Frames that are under way are not, as on any Ethernet, nor are connections to the metadata service. Worker thread.

use serde::{Deserialize, Serialize};

use super::Net;
use super::config::Mac;
use super::filter::FilterState;
use crate::rate_limit::{RateLimiterState, Throttle};
use crate::state::{StateError, check};

/// What is kept of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetState {
    /// The address in the configuration space, where the user chose one: the driver may have set another.
    pub mac: Option<[u8; 6]>,
    /// Queue pairs in use, the first ones.
    pub active_pairs: u16,
    /// Which frames the guest gets.
    pub filter: FilterState,
    /// Limits of what the guest receives.
    pub rx_rate_limiter: RateLimiterState,
    /// Limits of what the guest sends.
    pub tx_rate_limiter: RateLimiterState,
}

impl Net {
    pub(super) fn saved(&self) -> NetState {
        NetState {
            mac: self.mac.map(|mac| mac.0),
            active_pairs: u16::try_from(self.active).unwrap_or(u16::MAX),
            filter: self.gate.filter.save(),
            rx_rate_limiter: Throttle::save(self.gate.throttle.as_ref()),
            tx_rate_limiter: Throttle::save(self.transmit_throttle.as_ref()),
        }
    }

    pub(super) fn become_saved(&mut self, state: &NetState) -> Result<(), StateError> {
        let mac = state.mac.map(|mac| Mac::of_interface(mac).map_err(StateError::new)).transpose()?;
        check(mac.is_some() == self.chosen_mac.is_some(), || {
            "its guest_mac was chosen by the user and is no longer, or the other way round".to_owned()
        })?;
        let (wanted, most) = (usize::from(state.active_pairs), self.pairs.len());
        check((1..=most).contains(&wanted), || format!("{wanted} queue pairs were in use, and it has {most}"))?;
        let knows_pairs = self.control == Some(most.saturating_mul(2));
        check(wanted == 1 || knows_pairs, || format!("{wanted} queue pairs are in use by a driver that knows of one"))?;
        self.gate.filter.load(&state.filter)?;
        let limits =
            [(&mut self.gate.throttle, &state.rx_rate_limiter), (&mut self.transmit_throttle, &state.tx_rate_limiter)];
        for (throttle, limits) in limits {
            check(
                self.pairs.iter().all(|pair| pair.vhost.is_none()) || *limits == RateLimiterState::default(),
                || "it has limits, and the host's kernel, which moves its frames (vhost), has none".to_owned(),
            )?;
            Throttle::load(throttle, limits)?;
        }
        while self.active < wanted {
            let Some(pair) = self.pairs.get(self.active) else { break };
            pair.back_end.attach(true).map_err(|error| {
                StateError::new(format!("take queue pair {} of the host into use: {error}", self.active))
            })?;
            self.active = self.active.saturating_add(1);
        }
        self.mac = mac;
        Ok(())
    }
}
