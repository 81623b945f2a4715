//! The server: one thread, one poll(2) over all clients. A client that is slow, or gone, holds up nobody.
//!
//! Requests are carried out one after another, as the control thread answers them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{Builder, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use machine::journal::Journal;
use machine::listener::Listener;

use crate::connection::Connection;
use crate::message::{Request, Response};

/// Most clients at a time. One more takes the place of the one that was silent for longest.
const CLIENTS_MAX: usize = 256;
/// Stack of the thread, bytes.
const STACK: usize = 512 << 10;

/// A server at work. Dropping it ends it when the request at hand is answered, and takes its socket's name away.
pub struct Serving {
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

/// Serves clients at `listener` on a thread of its own.
pub fn serve(
    listener: Listener,
    body_max: usize,
    journal: Journal,
    serve: impl FnMut(&Request, &UnixStream) -> Response + Send + 'static,
) -> io::Result<Serving> {
    let quit = eventfd(0, EventfdFlags::CLOEXEC)?;
    let end = quit.try_clone()?;
    let run = move || run(&listener, &end, body_max, &journal, serve);
    let thread = Builder::new().name("api".into()).stack_size(STACK).spawn(run)?;
    Ok(Serving { quit, thread: Some(thread) })
}

fn run(
    listener: &Listener,
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
fn wait(listener: &Listener, quit: &OwnedFd, journal: &Journal, clients: &[Connection]) -> io::Result<Vec<bool>> {
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

fn accept(listener: &Listener, clients: &mut Vec<Connection>) {
    loop {
        match listener.accept().and_then(Connection::new) {
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
        let serving = super::serve(Listener::bind(&path).unwrap(), 100, Journal::new().unwrap(), serve).unwrap();
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
}
