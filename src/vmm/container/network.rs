//! `vmm run --network` and `-p`: the network that the container's VM gets, and the container's end of it.

use std::net::{IpAddr, Ipv4Addr};

use ::container::network::{Choice, Port, VmNetwork, ports, published};
use clap::Args;
use protocol::message::File;
use protocol::network::Endpoint;

use super::interface::addresses;

/// Flags of networks.
#[derive(Debug, Clone, Args)]
pub struct NetworkArgs {
    /// none; user: by passt, without root; or tap:NAME[,address=IP/BITS][,gateway=IP][,dns=IP] [default: user]
    #[arg(long, value_name = "NETWORK")]
    network: Option<Choice>,
    /// A port of the container that is one of the host, too, or a range of as many; repeatable
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/udp]")]
    pub publish: Vec<String>,
    /// A name server of the container, instead of the network's; repeatable
    #[arg(long, value_name = "IP")]
    dns: Vec<Ipv4Addr>,
    /// A name that the container knows by /etc/hosts; repeatable
    #[arg(long, value_name = "NAME:IP", value_parser = known_host)]
    add_host: Vec<(String, IpAddr)>,
}

/// `NAME:IP`
fn known_host(text: &str) -> Result<(String, IpAddr), String> {
    let split = text.split_once([':', '=']).and_then(|(name, address)| Some((name, address.parse().ok()?)));
    let plain = |name: &str| !name.is_empty() && !name.contains(|sign: char| sign.is_whitespace() || sign == '#');
    let (name, address) = split.filter(|(name, _)| plain(name)).ok_or("a name and its address are written NAME:IP")?;
    Ok((name.to_owned(), address))
}

/// What becomes of the flags.
#[derive(Debug, Clone, Default)]
pub struct Planned {
    /// The VM's network.
    pub vm: Option<VmNetwork>,
    /// The container's end of it.
    pub endpoint: Option<Endpoint>,
    /// Its ports.
    ports: Vec<Port>,
}

impl Planned {
    /// The VM has no such ports of the host (as [`Port::to_vm`] writes them): these lead to the container otherwise.
    pub fn without(&mut self, lacking: &[String]) -> Vec<Port> {
        let (lacking, has) =
            std::mem::take(&mut self.ports).into_iter().partition(|port| lacking.contains(&port.to_vm()));
        self.ports = has;
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.publish = published(&self.ports);
        }
        lacking
    }
}

impl NetworkArgs {
    /// What they ask for, of a container with these names.
    pub fn plan(&self, names: [&str; 2]) -> Result<Planned, String> {
        let ports = ports(&self.publish).map_err(|error| error.to_string())?;
        let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let choice = self.network.as_ref().unwrap_or(&Choice::User);
        let on_tap = match choice {
            Choice::Tap(tap) if tap.address.is_none() => {
                addresses(&tap.name).map_err(|error| format!("look at the host's addresses: {error}"))?
            }
            Choice::Tap(_) | Choice::None | Choice::User => Vec::new(),
        };
        let vm = choice.network(&ports, &host, &on_tap).map_err(|error| error.to_string())?;
        let mut names = names.map(str::to_owned).to_vec();
        names.dedup();
        let endpoint = vm.as_ref().map(|_| Endpoint { names, publish: published(&ports) });
        Ok(Planned { vm, endpoint, ports })
    }

    /// Files that every container has, of one with this host name. What the network says of names the agent adds, and what
    /// it says of name servers, where the user does not.
    pub fn files(&self, hostname: &str, planned: &Planned) -> Vec<File> {
        let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n".to_owned();
        if planned.endpoint.is_none() {
            hosts += &format!("127.0.1.1\t{hostname}\n");
        }
        hosts.extend(self.add_host.iter().map(|(name, address)| format!("{address}\t{name}\n")));
        let search = planned.vm.iter().map(|vm| vm.told.search.join(" ")).filter(|names| !names.is_empty());
        let search = search.map(|names| format!("search {names}\n"));
        let servers: String = self.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
        let resolver = if servers.is_empty() { String::new() } else { search.chain([servers]).collect() };
        let file = |path: &str, content: String| File { path: path.to_owned(), content };
        vec![
            file("/etc/hostname", format!("{hostname}\n")),
            file("/etc/hosts", hosts),
            file("/etc/resolv.conf", resolver),
        ]
    }
}

#[cfg(test)]
mod tests {
    use devices::virtio::net::user::OwnNetwork;

    use super::*;

    fn plan(network: Option<&str>, publish: &[&str]) -> Result<Planned, String> {
        let network = network.map(|text| text.parse().unwrap());
        let publish = publish.iter().map(|text| (*text).to_owned()).collect();
        NetworkArgs { network, publish, dns: vec![], add_host: vec![] }.plan(["web", "web"])
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
    fn names_and_name_servers_of_the_user_are_in_files() {
        let args = |dns: Vec<Ipv4Addr>, hosts: &[&str]| {
            let add_host = hosts.iter().map(|text| known_host(text).unwrap()).collect();
            NetworkArgs { network: None, publish: vec![], dns, add_host }
        };
        let text =
            |args: &NetworkArgs, planned: &Planned, number: usize| args.files("h", planned)[number].content.clone();
        let (alone, plain) = (Planned::default(), args(vec![], &[]));
        assert!(text(&plain, &alone, 1).ends_with("127.0.1.1\th\n"));
        let mut joined = plan(None, &[]).unwrap();
        assert_eq!(text(&plain, &joined, 2), ""); // the agent writes it
        joined.vm.as_mut().unwrap().told.search = vec!["a.example".to_owned(), "b.example".to_owned()];
        let asked = args(vec![Ipv4Addr::new(192, 0, 2, 53)], &["db:192.0.2.7", "six=2001:db8::1"]);
        assert_eq!(text(&asked, &joined, 2), "search a.example b.example\nnameserver 192.0.2.53\n");
        assert_eq!(text(&asked, &alone, 2), "nameserver 192.0.2.53\n");
        assert!(text(&asked, &joined, 1).ends_with("ip6-localhost\n192.0.2.7\tdb\n2001:db8::1\tsix\n"));
        for wrong in ["", "db", "db:", ":192.0.2.1", "a b:192.0.2.1", "db:host-gateway"] {
            assert!(known_host(wrong).unwrap_err().contains("NAME:IP"), "{wrong}");
        }
    }

    #[test]
    fn a_port_is_the_vms_or_leads_to_the_container() {
        let mut planned = plan(None, &["8080:80", "8081:80", "8080:53/udp"]).unwrap();
        assert_eq!(planned.clone().without(&[]), []);
        let lacking = planned.without(&["8081:8081/tcp".to_owned(), "8080:8080/udp".to_owned()]);
        assert_eq!(lacking.iter().map(|port| port.host).collect::<Vec<_>>(), [8081, 8080]);
        let publish = planned.endpoint.unwrap().publish;
        assert_eq!(publish.iter().map(|port| (port.vm, port.udp)).collect::<Vec<_>>(), [(8080, false)]);
    }

    #[test]
    fn the_container_has_an_end_where_there_is_a_network() {
        assert_eq!(plan(None, &["8080:80"]).unwrap().endpoint.unwrap().names, ["web"]);
        assert!(plan(Some("none"), &[]).unwrap().endpoint.is_none());
        assert!(plan(Some("none"), &["8080:80"]).unwrap_err().contains("--network none"));
    }
}
