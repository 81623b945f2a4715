//! Ports of the host that lead to a container of a VM that ran before it: passt cannot be given ports later, so the
//! container's owner listens itself and calls the agent for each caller (`relay`).
//!
//! The sockets are taken before the container is made, and answered while it runs (serve.rs), by a thread of the owner's.

mod callers;
mod datagram;
mod serve;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use relay::Mailbox;
use rustix::net::listen;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;

use self::serve::{Said, Serving};
use crate::network::Port;

/// Most connections at a time of a container; who comes then waits.
const MOST: usize = 1024;
/// Callers who wait until it is their turn.
const BACKLOG: i32 = 1024;
/// How long a port may be in use: a VM that has just ended needs a moment to let it go.
const IN_USE: Duration = Duration::from_secs(1);
/// How long what a container has said may take to reach its callers, when it has gone.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why a port cannot be had.
#[derive(Debug, Error)]
pub enum PortsError {
    /// The host refuses it.
    #[error("publish port {port}{}: {why}", .address.map_or(String::new(), |address| format!(" of {address}")))]
    Refused {
        /// The host's port.
        port: u16,
        /// The host's address; none: all.
        address: Option<Ipv4Addr>,
        /// What is wrong.
        why: String,
    },
    /// Nobody would answer.
    #[error("serve the container's ports: {0}")]
    Io(#[from] io::Error),
}

/// A port that was taken.
#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(Arc<UdpSocket>),
}

/// Ports that were taken; who calls there waits.
#[derive(Debug)]
pub struct Ports(Vec<(Port, Socket)>);

/// Ports that lead to a container, until this is dropped: what the container has said then is carried to its callers
/// first, for a moment at most.
#[derive(Debug)]
pub struct Served {
    mailbox: Arc<Mailbox<Said>>,
    thread: Option<JoinHandle<()>>,
}

impl Ports {
    /// Takes them, where there are some.
    pub fn take(ports: Vec<Port>) -> Result<Option<Self>, PortsError> {
        let taken = ports.into_iter().map(|port| {
            let refused =
                |error: io::Error| PortsError::Refused { port: port.host, address: port.address, why: why(&error) };
            let socket = bind(&port).map_err(refused)?;
            Ok((port, socket))
        });
        let taken = taken.collect::<Result<Vec<_>, PortsError>>()?;
        Ok((!taken.is_empty()).then_some(Self(taken)))
    }

    /// Lets them lead to this container, of the VM whose agent is at the UNIX socket `agent`.
    pub fn serve(self, agent: PathBuf, id: String) -> Result<Served, PortsError> {
        allow_many_descriptors();
        let mailbox = Mailbox::new()?;
        let mut serving = Serving::new(self.0, MOST, agent, id, Arc::clone(&mailbox))?;
        let run = move || {
            if let Err(error) = serving.run() {
                eprintln!("vmm: serve the container's ports: {error}");
            }
        };
        let thread = thread::Builder::new().name("ports".to_owned()).spawn(run)?;
        Ok(Served { mailbox, thread: Some(thread) })
    }
}

impl Served {
    /// The container has ended and will be started again: its callers' connections end.
    pub fn restarts(&self) {
        self.mailbox.put(Said::Restarts);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.mailbox.put(Said::Ends);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn bind(port: &Port) -> io::Result<Socket> {
    let address = (port.address.unwrap_or(Ipv4Addr::UNSPECIFIED), port.host);
    let try_once = || -> io::Result<Socket> {
        if port.udp {
            let socket = UdpSocket::bind(address)?;
            datagram::tell_where_to(&socket)?;
            return Ok(Socket::Udp(Arc::new(socket)));
        }
        let socket = TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        listen(&socket, BACKLOG)?;
        Ok(Socket::Tcp(socket))
    };
    let since = Instant::now();
    loop {
        match try_once() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && since.elapsed() < IN_USE => {
                sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

/// As it is said of ports that passt takes.
fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program uses it".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this host has no such address".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "no permission (ports below net.ipv4.ip_unprivileged_port_start, mostly 1024, take root)".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Each connection is two descriptors: lets this process have as many as it may.
fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
