//! Who speaks to the guest's console: the monitor's own input, and one client of the API beside it. Control thread.

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::Duration;

use devices::legacy::console_out::ConsoleOut;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::mailbox::{Client, Refusal};
use super::{CLIENT, Control, End, INPUT};
use crate::input::{self, Input};

/// What a client sees last when another takes its place.
const TAKEN: &[u8] = b"\r\n[vmm: another client has the console now]\r\n";
/// How long it may take to read that.
const FAREWELL: Duration = Duration::from_millis(100);

/// An input, and whether epoll waits for it.
pub(super) struct Polled {
    pub(super) input: Input,
    is_polled: bool,
}

impl Polled {
    pub(super) fn new(input: Input) -> Self {
        Self { input, is_polled: false }
    }

    /// Waits for it exactly while the serial port has room for it.
    fn poll(&mut self, epoll: &Epoll, token: u64) {
        let event = EpollEvent::new(EventSet::IN, token);
        match (self.input.wants_more(), self.is_polled) {
            (true, false) => match epoll.ctl(ControlOperation::Add, self.input.as_raw_fd(), event) {
                Ok(()) => self.is_polled = true,
                // A regular file is always ready, and epoll refuses it.
                Err(_) => _ = self.input.read(),
            },
            (false, true) => self.end_poll(epoll),
            _ => {}
        }
    }

    fn end_poll(&mut self, epoll: &Epoll) {
        if std::mem::take(&mut self.is_polled) {
            let _ = epoll.ctl(ControlOperation::Delete, self.input.as_raw_fd(), EpollEvent::default());
        }
    }
}

impl Control<'_> {
    pub(super) fn read_input(&mut self) -> Option<End> {
        let request = self.input.as_mut()?.input.read();
        self.poll_inputs();
        request.map(|input::Request::Leave| End::Left)
    }

    /// The client says something, or is gone.
    pub(super) fn read_client(&mut self) -> Option<End> {
        self.client_input.as_mut()?.input.read();
        self.poll_inputs();
        None
    }

    /// The guest has read what it was given.
    pub(super) fn drained(&mut self) -> Option<End> {
        if let Some(drained) = self.machine.serial_drained() {
            let _ = drained.read();
        }
        for polled in [&mut self.input, &mut self.client_input].into_iter().flatten() {
            polled.input.feed();
        }
        self.poll_inputs();
        None
    }

    pub(super) fn poll_inputs(&mut self) {
        for (polled, token) in [(&mut self.input, INPUT), (&mut self.client_input, CLIENT)] {
            if let Some(polled) = polled {
                polled.poll(&self.epoll, token);
            }
        }
        if self.client_input.as_ref().is_some_and(|client| client.input.is_over()) {
            if let Some(console) = self.console {
                console.unfollow();
            }
            self.forget_client();
        }
    }

    /// Gives the console to `client`; who had it so far is told.
    pub(super) fn attach(&mut self, client: Client) -> Result<(), Refusal> {
        let Some(console) = self.console else {
            return Err(Refusal::WrongState("the VM has no serial port, and so no console"));
        };
        let failed = |error: std::io::Error| Refusal::Refused(format!("the console: {error}"));
        let follower = ConsoleOut::new(client.stream.try_clone().map_err(failed)?, None).map_err(failed)?;
        follower.push(&(client.greeting)(client.asked.elapsed()));
        if let Some(before) = console.follow(follower) {
            before.push(TAKEN);
            before.flush(FAREWELL);
        }
        self.forget_client();
        *self.client = Some(client.stream);
        self.listen_to_client();
        Ok(())
    }

    /// Reads from the client that has the console, one that it had before the guest was reset as well.
    pub(super) fn listen_to_client(&mut self) {
        let stream = self.client.as_ref().and_then(|stream| stream.try_clone().ok());
        if let (Some(stream), Some(serial)) = (stream, self.machine.serial()) {
            let file = std::fs::File::from(std::os::fd::OwnedFd::from(stream));
            self.client_input = Some(Polled::new(Input::new(file, serial, false)));
        }
        self.poll_inputs();
    }

    fn forget_client(&mut self) {
        if let Some(mut polled) = self.client_input.take() {
            polled.end_poll(&self.epoll);
        }
        if let Some(stream) = self.client.take() {
            // The thread that writes to it may still hold it.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
