//! What is wrong with network interfaces. Pure.

use devices::rate_limit::RateLimiterConfig;
use devices::virtio::net::config::{MAX_QUEUE_PAIRS, MTU_MIN, Mac, NetConfig, bad_name};
use devices::virtio::net::user::OwnNetwork;

use super::{Problem, VmConfig, bad_id};
use crate::config::path::JsonPath;

impl VmConfig {
    pub(super) fn check_interfaces(&self, problems: &mut Vec<Problem>) {
        let list = JsonPath::keys(["network-interfaces"]);
        for (index, net) in self.network_interfaces.iter().enumerate() {
            let path = list.index(index);
            let mut wrong = |key, text: String| problems.push(Problem::new(path.key(key), text));
            let earlier = self.network_interfaces.iter().take(index);
            let same = |like: &dyn Fn(&NetConfig) -> bool| earlier.clone().position(like);
            if let Some(text) = bad_id(&net.iface_id) {
                wrong("iface_id", text);
            } else if let Some(text) = self.reserved(&net.iface_id) {
                wrong("iface_id", text);
            } else if let Some(first) = same(&|other| other.iface_id == net.iface_id) {
                wrong("iface_id", format!("`{}` is network-interfaces[{first}]'s id already", net.iface_id));
            } else if self.drives.iter().any(|drive| drive.drive_id == net.iface_id) {
                wrong("iface_id", format!("`{}` is a drive's id already", net.iface_id));
            }
            match (&net.host_dev_name, net.host_fd) {
                (None, None) if net.user.is_some() => {}
                (None, None) => {
                    wrong("host_dev_name", "is missing (or host_fd, or user): the host's end of the interface".into())
                }
                (name, _) if net.user.is_some() => {
                    let other = if name.is_some() { "host_dev_name" } else { "host_fd" };
                    wrong("user", format!("is given beside {other}; one of them is enough"));
                }
                (Some(_), Some(_)) => wrong("host_fd", "is given beside host_dev_name; one of them is enough".into()),
                (None, Some(fd)) if fd < 0 => wrong("host_fd", format!("{fd} is no file descriptor")),
                (None, Some(fd)) if same(&|other| other.host_fd == Some(fd)).is_some() => {
                    wrong("host_fd", format!("{fd} is another interface's already"));
                }
                (None, Some(_)) => {}
                (Some(name), None) => {
                    if let Some(text) = bad_name(name) {
                        wrong("host_dev_name", text);
                    } else if let Some(first) = same(&|other| other.host_dev_name.as_ref() == Some(name)) {
                        wrong("host_dev_name", format!("`{name}` is network-interfaces[{first}]'s already"));
                    }
                }
            }
            match net.guest_mac.as_deref().map(|text| (text, Mac::parse(text))) {
                Some((text, Err(why))) => wrong("guest_mac", format!("`{text}`: {why}")),
                Some((text, Ok(mac))) => {
                    let has = |other: &NetConfig| {
                        other.guest_mac.as_deref().and_then(|text| Mac::parse(text).ok()) == Some(mac)
                    };
                    if let Some(first) = same(&has) {
                        wrong("guest_mac", format!("`{text}` is network-interfaces[{first}]'s already"));
                    }
                }
                None => {}
            }
            let address = net.user.as_ref().and_then(|user| user.address.as_deref());
            if let Some((text, Err(why))) = address.map(|text| (text, OwnNetwork::parse(text))) {
                problems.push(Problem::new(path.key("user").key("address"), format!("`{text}`: {why}")));
            }
            self.check_interface_options(net, |key, text| problems.push(Problem::new(path.key(key), text)));
        }
    }

    fn check_interface_options(&self, net: &NetConfig, mut wrong: impl FnMut(&'static str, String)) {
        match net.queue_pairs {
            Some(pairs) if !(1..=MAX_QUEUE_PAIRS).contains(&pairs) => {
                wrong("queue_pairs", format!("must be 1 to {MAX_QUEUE_PAIRS}, not {pairs}"));
            }
            Some(2..) if net.host_fd.is_some() || net.user.is_some() => {
                let end = if net.user.is_some() { "passt" } else { "a descriptor" };
                wrong("queue_pairs", format!("{end} is one pair; more take a TAP device by host_dev_name"));
            }
            _ => {}
        }
        if net.vhost {
            if net.user.is_some() {
                wrong("vhost", "takes a TAP device, and user has none".into());
            }
            if self.machine_config.track_dirty_pages {
                wrong("vhost", "does not note the pages that it writes; do without it or track_dirty_pages".into());
            }
            for (key, limits) in [("rx_rate_limiter", &net.rx_rate_limiter), ("tx_rate_limiter", &net.tx_rate_limiter)]
            {
                if limits.as_ref().is_some_and(RateLimiterConfig::is_limit) {
                    wrong(key, "the host's kernel moves the frames (vhost), and it has no limits".into());
                }
            }
        }
        if let Some(mtu) = net.mtu.filter(|mtu| *mtu < MTU_MIN) {
            wrong("mtu", format!("must be at least {MTU_MIN}, not {mtu}"));
        }
    }

    /// Each port of the host leads to one guest's port.
    pub(super) fn check_published(&self, problems: &mut Vec<Problem>) {
        let list = JsonPath::keys(["network-interfaces"]);
        let mut taken = Vec::new();
        for (index, net) in self.network_interfaces.iter().enumerate() {
            let Some(user) = &net.user else { continue };
            let path = list.index(index).key("user").key("publish");
            problems
                .extend(user.problems(&taken).into_iter().map(|(place, text)| Problem::new(path.index(place), text)));
            taken.extend(user.ports());
        }
    }
}
