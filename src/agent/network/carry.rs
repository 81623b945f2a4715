//! Ports of containers that the host publishes itself: it calls the agent for each of its callers, and one thread carries
//! their bytes between the host and the containers.
//!
//! A container sees the VM's end of its network as the caller.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use relay::{Line, Mailbox, Pair, Relay};

use crate::system::allow_many_descriptors;
use crate::{Doing, Fault};

/// Most connections at a time, of all containers: of each, two descriptors of those that a process may have at most, 4096.
const MOST: usize = 1500;
/// How long a container may take to accept one: it has many that wait. The host waits a little longer.
const ACCEPTS: Duration = Duration::from_secs(10);
/// The mailbox among the thread's files.
const MAILBOX: u64 = 0;

/// Who carries.
#[derive(Debug)]
pub struct Carrier {
    mailbox: Arc<Mailbox<Pair>>,
    /// Connections that were made and have not ended.
    taken: Arc<AtomicUsize>,
}

/// A connection to a container, which is to be carried.
#[derive(Debug)]
pub struct Called<'a> {
    carrier: &'a Carrier,
    socket: Option<OwnedFd>,
    udp: bool,
    /// The thread counts it from now on.
    is_carried: bool,
}

impl Carrier {
    /// Starts the thread.
    pub fn start() -> Result<Self, Fault> {
        let making = || "begin to carry connections".to_owned();
        let (mailbox, mut relay) = (Mailbox::new().doing(making)?, Relay::new().doing(making)?);
        relay.watch(&*mailbox, MAILBOX).doing(making)?;
        allow_many_descriptors();
        let taken = Arc::<AtomicUsize>::default();
        let (inside, ended) = (Arc::clone(&mailbox), Arc::clone(&taken));
        let run = move || {
            if let Err(error) = carry(&mut relay, &inside, &ended) {
                eprintln!("vmm-agent: carry connections: {error}");
            }
        };
        thread::Builder::new().name("carrier".to_owned()).spawn(run).doing(making)?;
        Ok(Self { mailbox, taken })
    }

    /// Connects to a container.
    pub fn call(&self, address: Ipv4Addr, port: u16, udp: bool) -> Result<Called<'_>, Fault> {
        let one_more = |taken: usize| (taken < MOST).then_some(taken.saturating_add(1));
        if self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            return Err(format!("there are {MOST} connections already, which is all that a VM carries"));
        }
        let mut called = Called { carrier: self, socket: None, udp, is_carried: false };
        let to = SocketAddr::from((address, port));
        let socket = if udp {
            let bound = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
            bound.and_then(|socket| socket.connect(to).map(|()| socket.into()))
        } else {
            TcpStream::connect_timeout(&to, ACCEPTS).map(OwnedFd::from)
        };
        called.socket = Some(socket.doing(|| format!("connect to {to}"))?);
        Ok(called)
    }
}

impl Called<'_> {
    /// Has it carried over this conversation, of which `rest` was heard already.
    pub fn carry(mut self, stream: OwnedFd, rest: Vec<u8>) {
        if let Some(socket) = self.socket.take() {
            let line = Line::of_guest(stream, rest);
            let pair = if self.udp { Pair::datagrams(socket, line) } else { Pair::stream(socket, line) };
            self.is_carried = true;
            self.carrier.mailbox.put(pair);
        }
    }
}

impl Drop for Called<'_> {
    fn drop(&mut self) {
        if !self.is_carried {
            self.carrier.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Carries, for ever.
fn carry(relay: &mut Relay, mailbox: &Mailbox<Pair>, taken: &AtomicUsize) -> io::Result<()> {
    loop {
        for _ in relay.wait(None)? {
            for pair in mailbox.take() {
                // One that cannot be watched is closed, as one that broke.
                if relay.add(pair).is_err() {
                    taken.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        taken.fetch_sub(relay.turn().len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_call_that_fails_and_one_that_ends_make_room() {
        let carrier = Carrier::start().unwrap();
        let taken = || carrier.taken.load(Ordering::Relaxed);
        let listening = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listening.local_addr().unwrap().port();
        let called = carrier.call(Ipv4Addr::LOCALHOST, port, false).unwrap();
        let (host, guest) = UnixStream::pair().unwrap();
        called.carry(guest.into(), vec![]);
        let (mut inside, _) = listening.accept().unwrap();
        assert_eq!(taken(), 1);
        drop(host);
        assert!(inside.read(&mut [0]).is_err(), "it is reset");
        drop(listening);
        let why = carrier.call(Ipv4Addr::LOCALHOST, port, false).map(|_| ()).unwrap_err();
        assert!(why.contains("Connection refused"), "{why}");
        while taken() > 0 {
            thread::yield_now();
        }
        carrier.taken.store(MOST, Ordering::Relaxed);
        let why = carrier.call(Ipv4Addr::LOCALHOST, port, true).map(|_| ()).unwrap_err();
        assert!(why.starts_with("there are 1500 connections already"), "{why}");
        assert_eq!(taken(), MOST);
    }
}
