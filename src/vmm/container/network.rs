//! `vmm run --network` and `-p`: the network that the container's VM gets, and the container's end of it.

use ::container::network::{Choice, VmNetwork, ports, published};
use clap::Args;
use protocol::message::Endpoint;

/// Flags of networks.
#[derive(Debug, Clone, Args)]
pub struct NetworkArgs {
    /// none; user: by passt, without root; or tap:NAME,address=IP/BITS[,gateway=IP][,dns=IP] [default: user]
    #[arg(long, value_name = "NETWORK")]
    network: Option<Choice>,
    /// A port of the container that is one of the host, too, or a range of as many; repeatable
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/udp]")]
    pub publish: Vec<String>,
}

/// What becomes of the flags.
#[derive(Debug, Clone, Default)]
pub struct Planned {
    /// The VM's network.
    pub vm: Option<VmNetwork>,
    /// The container's end of it.
    pub endpoint: Option<Endpoint>,
}

impl NetworkArgs {
    /// What they ask for, of a container with these names.
    pub fn plan(&self, names: [&str; 2]) -> Result<Planned, String> {
        let ports = ports(&self.publish).map_err(|error| error.to_string())?;
        let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let choice = self.network.as_ref().unwrap_or(&Choice::User);
        let vm = choice.network(&ports, &host).map_err(|error| error.to_string())?;
        let mut names = names.map(str::to_owned).to_vec();
        names.dedup();
        let endpoint = vm.as_ref().map(|_| Endpoint { names, publish: published(&ports) });
        Ok(Planned { vm, endpoint })
    }
}

#[cfg(test)]
mod tests {
    use devices::virtio::net::user::OwnNetwork;

    use super::*;

    fn plan(network: Option<&str>, publish: &[&str]) -> Result<Planned, String> {
        let network = network.map(|text| text.parse().unwrap());
        let publish = publish.iter().map(|text| (*text).to_owned()).collect();
        NetworkArgs { network, publish }.plan(["web", "web"])
    }

    /// Three programs speak of these addresses: the agent, the monitor and passt.
    #[test]
    fn the_agent_is_told_what_the_monitor_does() {
        let vm = plan(None, &[]).unwrap().vm.unwrap();
        let own = OwnNetwork::parse(vm.interface["user"]["address"].as_str().unwrap()).unwrap();
        assert_eq!(vm.told.address, format!("{}/{}", own.address, own.prefix));
        assert_eq!(vm.told.gateway, Some(own.gateway.to_string()));
        assert_eq!(vm.told.nameservers, [own.nameserver.to_string()]);
    }

    #[test]
    fn the_container_has_an_end_where_there_is_a_network() {
        assert_eq!(plan(None, &["8080:80"]).unwrap().endpoint.unwrap().names, ["web"]);
        assert!(plan(Some("none"), &[]).unwrap().endpoint.is_none());
        assert!(plan(Some("none"), &["8080:80"]).unwrap_err().contains("--network none"));
    }
}
