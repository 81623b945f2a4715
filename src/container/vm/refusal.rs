//! Why a VM ended before its agent was there, of what its console shows and its monitor says. Pure.

use super::VmError;
use super::monitor::CONFIG;

/// What stands before what the monitor says, and the agent.
const MONITOR: &str = "vmm: ";
const AGENT: &str = "vmm-agent: ";

/// One sentence that says it; none: all that was said has to. `hint`: what may help where the kernel does not
/// do what the agent wants.
pub fn refusal(console: &str, errors: &str, hint: &str) -> Option<VmError> {
    if let Some(why) = console.lines().rev().find_map(|line| line.strip_prefix(AGENT)) {
        return Some(VmError::Agent(format!("{}{hint}", why.trim_end())));
    }
    let of_config = || errors.strip_prefix(CONFIG)?.split_once(": ").map(|(_line, why)| why);
    let why = errors.strip_prefix(MONITOR).or_else(of_config)?;
    console.is_empty().then(|| VmError::Refused(explained(why)))
}

/// Why there is no VM; where that is its network alone, with the way around it.
fn explained(why: &str) -> String {
    let networks = ["passt was not found", "passt ended"].iter().any(|words| why.contains(words));
    if networks { format!("{why}; without a network it goes by --network none") } else { why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_knows_why_says_it() {
        let says = |console: &str, errors: &str| refusal(console, errors, "; a hint").map(|error| error.to_string());
        let agent = says("[ 0.1] kernel\nvmm-agent: call the host: no\r\n[ 0.2] reboot", "vmm: the guest powered off");
        assert_eq!(agent.unwrap(), "the agent in the VM: call the host: no; a hint");
        assert_eq!(says("", "vmm: no /dev/kvm").unwrap(), "the VM was not started: no /dev/kvm");
        let fault = "/dev/stdin:1: network-interfaces[0].host_dev_name: too long";
        let told = "the VM was not started: network-interfaces[0].host_dev_name: too long";
        assert_eq!(says("", fault).unwrap(), told);
        let passt = says("", "vmm: connect 'eth0': passt ended: no").unwrap();
        assert!(passt.ends_with("it goes by --network none"), "{passt}");
        assert_eq!(says("Kernel panic", "vmm: the guest panicked"), None);
        assert_eq!(says("", "thread 'main' panicked"), None);
    }
}
