//! What the user may change of a device while the VM exists: which keys of its configuration, and what they become.
//!
//! The control thread reads and checks the change and opens the files that it names ([`DeviceConfig::change`]); the
//! device's worker carries it out ([`super::Device::update`]). Nothing here is in the specification: the guest sees at
//! most a change of the configuration space (virtio 1.2, 2.5).

use super::DeviceConfig;
use super::balloon::BalloonChange;
use super::block::change::BlockChange;
use super::fs::FsChange;
use super::net::config::NetChange;
use crate::rate_limit::RateLimiterConfig;

/// Why a device was not changed; it is as it was. The text follows the device's name and a colon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UpdateError(String);

impl UpdateError {
    /// The whole sentence, without a full stop.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// A change of one kind of device, with the files that it needs.
pub enum Change {
    /// Of a memory balloon.
    Balloon(BalloonChange),
    /// Of a disk.
    Block(BlockChange),
    /// Of a shared directory.
    Fs(FsChange),
    /// Of a network interface.
    Net(NetChange),
    /// Of a file as memory: its limits.
    Pmem(RateLimiterConfig),
    /// Of a random number generator: its limits.
    Rng(RateLimiterConfig),
}

impl DeviceConfig {
    /// The keys that can be changed while the VM exists. The name of a device is one of them: it says which device is
    /// meant.
    pub fn live_keys(&self) -> &'static [&'static str] {
        match self {
            Self::Balloon(_) => &["amount_mib", "stats_polling_interval_s"],
            Self::Block(drive) if !drive.partitions.is_empty() => &["drive_id", "partitions", "rate_limiter"],
            Self::Block(_) => &["drive_id", "path_on_host", "rate_limiter"],
            Self::Net(_) => &["iface_id", "rx_rate_limiter", "tx_rate_limiter"],
            Self::Pmem(_) => &["id", "rate_limiter"],
            Self::Rng(_) => &["rate_limiter"],
            Self::Fs(_) => &["tag", "path_on_host", "is_read_only", "virtiofsd"],
            Self::Vsock(_) => &[],
        }
    }

    /// What makes a device of this kind become what this configuration says, where only `keys` are new. Opens the files
    /// that they name.
    pub fn change(&self, keys: &[&str]) -> Result<Change, UpdateError> {
        refuse_fixed(keys.iter().copied(), self.live_keys())?;
        let is_new = |key| keys.contains(&key);
        let limits = |key, limits: &Option<RateLimiterConfig>| is_new(key).then(|| limits.unwrap_or_default());
        Ok(match self {
            Self::Balloon(balloon) => Change::Balloon(BalloonChange {
                amount_mib: is_new("amount_mib").then_some(balloon.amount_mib),
                stats_polling_interval_s: is_new("stats_polling_interval_s")
                    .then_some(balloon.stats_polling_interval_s),
                ..BalloonChange::default()
            }),
            Self::Block(drive) => Change::Block(BlockChange::open(
                drive,
                is_new("path_on_host") || is_new("partitions"),
                limits("rate_limiter", &drive.rate_limiter),
            )?),
            Self::Net(net) => Change::Net(NetChange {
                receive: limits("rx_rate_limiter", &net.rx_rate_limiter),
                transmit: limits("tx_rate_limiter", &net.tx_rate_limiter),
            }),
            Self::Pmem(pmem) => Change::Pmem(pmem.rate_limiter.unwrap_or_default()),
            Self::Rng(entropy) => Change::Rng(entropy.rate_limiter.unwrap_or_default()),
            Self::Fs(share) => Change::Fs(FsChange::open(share, keys.iter().any(|key| *key != "tag"))?),
            Self::Vsock(_) => return Err(UpdateError::new("nothing is to be changed")),
        })
    }
}

/// Refuses by name what is not among the `live` keys of a device.
pub fn refuse_fixed<'a>(keys: impl IntoIterator<Item = &'a str>, live: &[&str]) -> Result<(), UpdateError> {
    let Some(fixed) = keys.into_iter().find(|key| !live.contains(key)) else { return Ok(()) };
    let what_can = match live.is_empty() {
        true => ", and nothing else of this device".to_owned(),
        false => format!("; what can: {}", live.join(", ")),
    };
    Err(UpdateError::new(format!("{fixed} can not be changed while the VM exists{what_can}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::rng::EntropyConfig;
    use crate::virtio::vsock::VsockConfig;

    #[test]
    fn what_is_fixed_is_refused_by_name() {
        let refused = |config: DeviceConfig, key| config.change(&[key]).map(drop).unwrap_err().to_string();
        assert_eq!(
            refused(DeviceConfig::Rng(EntropyConfig::default()), "color"),
            "color can not be changed while the VM exists; what can: rate_limiter"
        );
        let vsock = VsockConfig { guest_cid: 3, uds_path: "/x".into(), vsock_id: None };
        assert_eq!(
            refused(DeviceConfig::Vsock(vsock), "guest_cid"),
            "guest_cid can not be changed while the VM exists, and nothing else of this device"
        );
    }
}
