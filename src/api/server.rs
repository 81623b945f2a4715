//! The server: one thread, one poll(2) over all clients. A client that is slow, or gone, holds up nobody.
//!
//! Requests are carried out one after another, as the control thread answers them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use machine::journal::Journal;
use machine::lock;

use crate::connection::Connection;
use crate::message::{Request, Response};

/// Most clients at a time. One more takes the place of the one that was silent for longest.
const CLIENTS_MAX: usize = 256;
/// Stack of the thread, bytes.
const STACK: usize = 512 << 10;

/// A socket that clients can connect to. Dropping it takes its name away.
pub struct Socket {
    listener: UnixListener,
    name: Name,
}

/// A server at work. Dropping it ends it when the request at hand is answered, and takes its socket's name away.
pub struct Serving {
    _name: Name,
    quit: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.quit, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take().filter(|_| told.is_ok()) {
            let _ = thread.join();
        }
    }
}

/// The name of a socket in the file system.
struct Name {
    path: PathBuf,
    inode: Option<u64>,
}

impl Drop for Name {
    fn drop(&mut self) {
        // It may be another's by now.
        if inode(&self.path).is_some() && inode(&self.path) == self.inode {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    Some(path.symlink_metadata().ok()?.ino())
}

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("--api-sock {}: {why}", path.display())]
pub struct SocketError {
    path: PathBuf,
    why: String,
}

/// Holds the directory of `path` (flock(2)) for as long as the file lives. Nothing where it can not be read: who can not list
/// it can still make a socket there.
fn lock_directory(path: &Path) -> io::Result<Option<File>> {
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(directory) = File::open(directory) else { return Ok(None) };
    match lock::lock(&directory) {
        Ok(true) => Ok(Some(directory)),
        Ok(false) => Err(io::Error::other(format!("another process has held it for {:?}", lock::PATIENCE))),
        // A file system without locks.
        Err(_) => Ok(None),
    }
}

impl Socket {
    /// Listens at `path`. A socket that nobody listens at any more is replaced: under a lock on its directory, so that of
    /// several who find it so one gets it.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |why: String| SocketError { path: path.to_owned(), why };
        let _lock = lock_directory(path).map_err(|error| failed(format!("lock its directory: {error}")))?;
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                match UnixStream::connect(path) {
                    Ok(_) => return Err(failed("another process listens there".into())),
                    Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => {
                        return Err(failed(format!("something is there that is no socket to replace ({error})")));
                    }
                    Err(_) => {}
                }
                let removed = std::fs::remove_file(path).and_then(|()| UnixListener::bind(path));
                removed.map_err(|error| failed(format!("replace the socket of a process that has ended: {error}")))?
            }
            made => made.map_err(|error| failed(error.to_string()))?,
        };
        listener.set_nonblocking(true).map_err(|error| failed(error.to_string()))?;
        Ok(Self { listener, name: Name { path: path.to_owned(), inode: inode(path) } })
    }

    /// Serves clients on a thread of its own.
    pub fn serve(
        self,
        body_max: usize,
        journal: Journal,
        serve: impl FnMut(&Request, &UnixStream) -> Response + Send + 'static,
    ) -> io::Result<Serving> {
        let Self { listener, name } = self;
        let quit = eventfd(0, EventfdFlags::CLOEXEC)?;
        let end = quit.try_clone()?;
        let run = move || run(&listener, &end, body_max, &journal, serve);
        let thread = Builder::new().name("api".into()).stack_size(STACK).spawn(run)?;
        Ok(Serving { _name: name, quit, thread: Some(thread) })
    }
}

fn run(
    listener: &UnixListener,
    quit: &OwnedFd,
    body_max: usize,
    journal: &Journal,
    mut serve: impl FnMut(&Request, &UnixStream) -> Response,
) {
    let mut clients: Vec<Connection> = Vec::new();
    loop {
        let ready = match wait(listener, quit, journal, &clients) {
            Ok(ready) => ready,
            Err(error) => return tracing::error!(%error, "the API has ended"),
        };
        let [quits, knocks, news, ready @ ..] = ready.as_slice() else { return };
        if *quits {
            for client in &mut clients {
                client.follow(journal, true);
            }
            return;
        }
        let mut turn = ready.iter();
        clients.retain_mut(|client| turn.next() != Some(&true) || client.turn(body_max, journal, &mut serve));
        if *news && journal.hear() {
            clients.retain_mut(|client| client.follow(journal, false));
        }
        if *knocks {
            accept(listener, &mut clients);
        }
    }
}

/// Waits until the end, the listener, the journal or a client is ready, and says for each, in this order, whether it is.
fn wait(listener: &UnixListener, quit: &OwnedFd, journal: &Journal, clients: &[Connection]) -> io::Result<Vec<bool>> {
    let mut waits = vec![
        PollFd::new(quit, PollFlags::IN),
        PollFd::new(listener, PollFlags::IN),
        PollFd::new(journal, PollFlags::IN),
    ];
    waits.extend(clients.iter().map(|client| PollFd::from_borrowed_fd(client.as_fd(), client.waits_for())));
    match poll(&mut waits, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(waits.iter().map(|wait| !wait.revents().is_empty()).collect())
}

fn accept(listener: &UnixListener, clients: &mut Vec<Connection>) {
    loop {
        match listener.accept().and_then(|(stream, _)| Connection::new(stream)) {
            Ok(client) => {
                if clients.len() >= CLIENTS_MAX
                    && let Some((oldest, _)) = clients.iter().enumerate().min_by_key(|(_, client)| client.active)
                {
                    clients.swap_remove(oldest);
                }
                clients.push(client);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                // Too many open files, say. The client stays in the queue and poll would return at once: one is let go.
                tracing::warn!(%error, "a client of the API could not be served");
                if clients.is_empty() {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                } else {
                    clients.remove(0);
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use super::*;

    /// Who has it then has it alone: the server neither sends nor reads any more.
    #[test]
    fn a_connection_can_be_handed_over() {
        let room = tempfile::TempDir::new().unwrap();
        let path = room.path().join("api.sock");
        let taken = Arc::new(Mutex::new(None));
        let mine = taken.clone();
        let serve = move |request: &Request, client: &UnixStream| match request.path.as_str() {
            "/take" => {
                *mine.lock().unwrap() = client.try_clone().ok();
                Response::leave()
            }
            _ => Response::done(),
        };
        let serving = Socket::bind(&path).unwrap().serve(100, Journal::new().unwrap(), serve).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"GET /x HTTP/1.1\r\n\r\nGET /take HTTP/1.1\r\nUpgrade: vmm-console\r\n\r\n").unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        let mut mine = loop {
            if let Some(stream) = taken.lock().unwrap().take() {
                break stream;
            }
            assert!(Instant::now() < until, "it was not handed over");
            std::thread::sleep(Duration::from_millis(1));
        };
        mine.set_nonblocking(false).unwrap();
        drop(serving); // with all its connections
        client.write_all(b"GET /x HTTP/1.1\r\n\r\n").unwrap();
        let mut heard = [0; 19];
        mine.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"GET /x HTTP/1.1\r\n\r\n");
        mine.write_all(b"mine").unwrap();
        drop(mine);
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap();
        let (answer, rest) = all.split_once("\r\n\r\n").unwrap();
        assert!(answer.starts_with("HTTP/1.1 204 ") && rest == "mine", "{all}");
    }

    /// Many find the socket of a process that has ended: one gets it, and none takes it away from who has it already.
    #[test]
    fn a_stale_socket_is_taken_over_by_one() {
        let room = tempfile::TempDir::new().unwrap();
        let path = room.path().join("api.sock");
        for _ in 0..50 {
            drop(UnixListener::bind(&path).unwrap());
            let start = std::sync::Barrier::new(4);
            let bound: Vec<_> = std::thread::scope(|scope| {
                let bind = || {
                    start.wait();
                    Socket::bind(&path)
                };
                let binding: Vec<_> = (0..4).map(|_| scope.spawn(bind)).collect();
                binding.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let held: Vec<_> = bound.iter().flatten().collect();
            assert_eq!(held.len(), 1);
            assert_eq!(held.first().unwrap().name.inode, inode(&path));
            drop(bound);
            assert!(!path.exists());
        }
    }
}
