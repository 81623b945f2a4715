//! A connection to the host: frames both ways over vsock. Each connection has a thread of its own that reads; any
//! thread may write, one frame at a time.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use protocol::PORT;
use protocol::frame::{self, Decoder, Frame, Kind};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

use crate::{Doing, Fault};

/// Where the host's orders arrive.
pub fn listen() -> Result<VsockListener, Fault> {
    VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT)
        .doing(|| "listen for the host's orders (has this kernel CONFIG_VIRTIO_VSOCKETS?)".to_owned())
}

/// A connection that the agent makes.
pub fn call() -> Result<Connection, Fault> {
    let stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, PORT)
        .doing(|| "call the host (has this kernel CONFIG_VIRTIO_VSOCKETS?)".to_owned())?;
    Connection::new(stream)
}

/// A connection, either way.
pub struct Connection {
    from: VsockStream,
    to: Mutex<VsockStream>,
}

/// The side that reads.
pub struct Incoming<'a> {
    from: &'a VsockStream,
    decoder: Decoder,
}

impl Connection {
    /// With this stream.
    pub fn new(stream: VsockStream) -> Result<Self, Fault> {
        let to = stream.try_clone().doing(|| "duplicate a connection".to_owned())?;
        Ok(Self { from: stream, to: Mutex::new(to) })
    }

    /// What comes. To be asked for once.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming { from: &self.from, decoder: Decoder::default() }
    }

    /// The stream alone, for who speaks by it otherwise.
    pub fn into_stream(self) -> OwnedFd {
        self.from.into()
    }

    /// Sends a message.
    pub fn say(&self, message: &impl ToFrame) -> Result<(), Fault> {
        self.send(message.frame()?)
    }

    /// Sends bytes of a stream.
    pub fn data(&self, kind: Kind, bytes: &[u8]) -> Result<(), Fault> {
        let header = frame::header(kind, bytes.len()).doing(|| "make a frame".to_owned())?;
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        to.write_all(&header).and_then(|()| to.write_all(bytes)).doing(|| "write to the host".to_owned())
    }

    fn send(&self, frame: Frame) -> Result<(), Fault> {
        self.data(frame.kind, &frame.body)
    }
}

/// What can be sent as a message.
pub trait ToFrame {
    /// As a frame.
    fn frame(&self) -> Result<Frame, Fault>;
}

impl<T: serde::Serialize> ToFrame for T {
    fn frame(&self) -> Result<Frame, Fault> {
        Frame::message(self).doing(|| "say something to the host".to_owned())
    }
}

impl Incoming<'_> {
    /// The next frame; none when the host has closed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Fault> {
        self.decoder.read_frame(&mut self.from).doing(|| "read from the host".to_owned())
    }

    /// What was read and belongs to no frame yet.
    pub fn into_rest(self) -> Vec<u8> {
        self.decoder.into_rest()
    }
}
