//! Who calls by UDP: each address is a caller for as long as datagrams go to and fro. Plain data.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Bytes that wait for a caller's line to be there, unless they are one datagram.
const MOST_WAITING: usize = 8 << 10;

/// Which of the ports is called, by whom, at which address of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    /// The port's place in the list.
    pub door: usize,
    /// Who.
    pub from: SocketAddrV4,
    /// Where.
    pub to: Ipv4Addr,
}

/// Where a caller's datagrams go.
#[derive(Debug)]
enum Where {
    /// They wait.
    Waiting(Vec<Vec<u8>>),
    /// To this connection.
    Carried(u64),
}

/// All of them.
#[derive(Debug, Default)]
pub struct Callers {
    known: BTreeMap<Caller, Where>,
    by_id: BTreeMap<u64, Caller>,
    /// Those for whom nobody has called the agent yet.
    uncalled: VecDeque<Caller>,
}

impl Callers {
    /// How many wait for a line.
    pub fn waiting(&self) -> usize {
        self.known.len().saturating_sub(self.by_id.len())
    }

    /// Whether this one is known.
    pub fn knows(&self, caller: &Caller) -> bool {
        self.known.contains_key(caller)
    }

    /// One more.
    pub fn add(&mut self, caller: Caller) {
        self.known.insert(caller, Where::Waiting(Vec::new()));
        self.uncalled.push_back(caller);
    }

    /// The next one for whom the agent is to be called.
    pub fn next_uncalled(&mut self) -> Option<Caller> {
        self.uncalled.pop_front()
    }

    /// The connection that takes this datagram; none: it waits, or is lost.
    pub fn take(&mut self, caller: &Caller, datagram: &[u8]) -> Option<u64> {
        match self.known.get_mut(caller)? {
            Where::Carried(id) => Some(*id),
            Where::Waiting(waiting) => {
                let bytes: usize = waiting.iter().map(Vec::len).sum();
                if waiting.is_empty() || bytes.saturating_add(datagram.len()) <= MOST_WAITING {
                    waiting.push(datagram.to_vec());
                }
                None
            }
        }
    }

    /// A caller's line is there: what has waited for it.
    pub fn carried(&mut self, caller: Caller, id: u64) -> Vec<Vec<u8>> {
        self.by_id.insert(id, caller);
        match self.known.insert(caller, Where::Carried(id)) {
            Some(Where::Waiting(waiting)) => waiting,
            Some(Where::Carried(_)) | None => Vec::new(),
        }
    }

    /// A connection has ended.
    pub fn ended(&mut self, id: u64) {
        if let Some(caller) = self.by_id.remove(&id) {
            self.known.remove(&caller);
        }
    }

    /// There is no line for this caller.
    pub fn forget(&mut self, caller: &Caller) {
        self.known.remove(caller);
    }

    /// All that have lines, which are none any more.
    pub fn part(&mut self) -> Vec<u64> {
        self.by_id.values().for_each(|caller| _ = self.known.remove(caller));
        std::mem::take(&mut self.by_id).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_datagrams_wait_and_only_some() {
        let mut callers = Callers::default();
        let from = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);
        let caller = Caller { door: 0, from, to: Ipv4Addr::LOCALHOST };
        assert!(callers.take(&caller, b"nobody").is_none() && !callers.knows(&caller));
        callers.add(caller);
        let large = vec![1; 60_000];
        for datagram in [&large[..], b"lost"] {
            assert!(callers.take(&caller, datagram).is_none());
        }
        assert_eq!((callers.waiting(), callers.next_uncalled(), callers.next_uncalled()), (1, Some(caller), None));
        assert_eq!(callers.carried(caller, 7), [large]);
        assert_eq!((callers.waiting(), callers.take(&caller, b"x")), (0, Some(7)));
        callers.ended(7);
        assert!(!callers.knows(&caller));
        callers.add(caller);
        callers.forget(&caller);
        assert_eq!(callers.waiting(), 0);
    }
}
