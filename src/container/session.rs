//! A conversation with a guest's agent, by the monitor's UNIX socket for vsock.
//!
//! What comes from the guest is not trusted: it is decoded with limits, and a guest that says nonsense gets its
//! connection closed.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use protocol::PORT;
use protocol::frame::{self, Decoder, Frame, FrameError, Kind};
use protocol::message::{Done, Order};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// How long an agent may take to accept a conversation. One of a VM that is paused, or whose kernel hangs, takes for ever.
const ACCEPTS: Duration = Duration::from_secs(20);

/// Why a conversation ended.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The agent cannot be reached.
    #[error("reach the agent in the VM by {0}: {1}")]
    Connect(String, #[source] io::Error),
    /// The connection broke.
    #[error("speak with the agent in the VM: {0}")]
    Io(#[from] io::Error),
    /// The agent does not speak as it should.
    #[error("the agent in the VM sent {0}")]
    Frame(#[source] FrameError),
    /// It does not answer.
    #[error("the agent in the VM does not answer; is the VM paused, or does its kernel hang?")]
    Silent,
    /// It is gone.
    #[error("the agent in the VM hung up")]
    Closed,
    /// It could not do what it was asked for.
    #[error("{0}")]
    Failed(String),
}

impl From<FrameError> for SessionError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) if is_late(&error) => Self::Silent,
            FrameError::Io(error) => Self::Io(error),
            error => Self::Frame(error),
        }
    }
}

/// One conversation.
#[derive(Debug)]
pub struct Session {
    speaker: Speaker,
    decoder: Decoder,
}

/// The side of a conversation that speaks.
#[derive(Debug)]
pub struct Speaker(UnixStream);

impl Session {
    /// Calls the agent of the VM whose socket this is.
    pub fn call(socket: &Path) -> Result<Self, SessionError> {
        let session = Self::call_within(socket, ACCEPTS)?;
        session.speaker.0.set_read_timeout(None)?;
        Ok(session)
    }

    /// The same; the agent may take so long to accept it, and for each frame.
    pub fn call_within(socket: &Path, most: Duration) -> Result<Self, SessionError> {
        let connecting = |error| match is_late(&error) {
            true => SessionError::Silent,
            false => SessionError::Connect(socket.display().to_string(), error),
        };
        let mut stream = UnixStream::connect(socket).map_err(connecting)?;
        stream.set_read_timeout(Some(most)).map_err(connecting)?;
        writeln!(stream, "CONNECT {PORT}").map_err(connecting)?;
        // The answer is `OK PORT` and a newline; not a byte more may be taken.
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n") {
            let mut byte = [0];
            let count = stream.read(&mut byte).map_err(connecting)?;
            if count == 0 || answer.len() > 64 {
                return Err(connecting(io::ErrorKind::ConnectionRefused.into()));
            }
            answer.extend_from_slice(&byte);
        }
        Ok(Self::new(stream))
    }

    /// Has the agent do something of which it says no more than how it went; it may take so long to accept it, and to answer.
    pub fn have_done(socket: &Path, order: &Order, most: Duration) -> Result<(), SessionError> {
        Self::done(socket, order, most).map(drop)
    }

    /// The same, where the conversation goes on as a stream ([`Order::Connect`]): that, and what was read of it already.
    pub fn connect(socket: &Path, order: &Order, most: Duration) -> Result<(OwnedFd, Vec<u8>), SessionError> {
        let Self { speaker, decoder } = Self::done(socket, order, most)?;
        Ok((speaker.0.into(), decoder.into_rest()))
    }

    fn done(socket: &Path, order: &Order, most: Duration) -> Result<Self, SessionError> {
        let mut session = Self::call_within(socket, most)?;
        session.say(order)?;
        match session.message()? {
            Done::Ok => Ok(session),
            Done::Failed(failure) => Err(SessionError::Failed(failure.why)),
        }
    }

    /// With a connection that the agent made.
    pub fn new(stream: UnixStream) -> Self {
        Self { speaker: Speaker(stream), decoder: Decoder::default() }
    }

    /// Says something.
    pub fn say(&mut self, message: &impl Serialize) -> Result<(), SessionError> {
        self.speaker.say(message)
    }

    /// A second mouth, for another thread.
    pub fn speaker(&self) -> Result<Speaker, SessionError> {
        self.speaker.again()
    }

    /// The next frame; none when the agent has closed.
    pub fn hear(&mut self) -> Result<Option<Frame>, SessionError> {
        Ok(self.decoder.read_frame(&mut self.speaker.0)?)
    }

    /// The next frame, which must be a message.
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<T, SessionError> {
        Ok(self.hear()?.ok_or(SessionError::Closed)?.open()?)
    }

    /// Nothing more will be heard or said: the other threads of this conversation find out.
    pub fn close(&self) {
        let _ = self.speaker.0.shutdown(Shutdown::Both);
    }
}

/// Whether somebody did not answer in time (SO_RCVTIMEO in socket(7)).
fn is_late(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

impl Speaker {
    /// Says something.
    pub fn say(&mut self, message: &impl Serialize) -> Result<(), SessionError> {
        Ok(self.0.write_all(&Frame::message(message)?.bytes()?)?)
    }

    /// Bytes for the process's standard input; none: there are no more.
    pub fn input(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.0.write_all(&frame::header(Kind::Stdin, bytes.len())?)?;
        Ok(self.0.write_all(bytes)?)
    }

    /// The same for one more thread.
    pub fn again(&self) -> Result<Self, SessionError> {
        Ok(Self(self.0.try_clone()?))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// An agent that answers the first words of a conversation as `answer` says.
    fn agent(answer: &'static [u8]) -> (tempfile::TempDir, thread::JoinHandle<Vec<u8>>) {
        let folder = tempfile::tempdir().unwrap();
        let listening = UnixListener::bind(folder.path().join("v.sock")).unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listening.accept().unwrap();
            let mut heard = vec![0; 13];
            stream.read_exact(&mut heard).unwrap();
            stream.write_all(answer).unwrap();
            let mut rest = Vec::new();
            let _ = stream.shutdown(Shutdown::Write);
            stream.read_to_end(&mut rest).unwrap();
            rest
        });
        (folder, thread)
    }

    #[test]
    fn an_order_is_answered() {
        let (folder, agent) = agent(b"OK 1073741824\n\x04\0\0\0\0\"ok\"");
        let mut session = Session::call(&folder.path().join("v.sock")).unwrap();
        session.say(&Order::List).unwrap();
        assert_eq!(session.message::<Done>().unwrap(), Done::Ok);
        assert!(matches!(session.message::<Done>(), Err(SessionError::Closed)));
        drop(session);
        assert_eq!(agent.join().unwrap(), Frame::message(&Order::List).unwrap().bytes().unwrap());
    }

    #[test]
    fn a_guest_without_an_agent_and_one_that_lies() {
        let (folder, _agent) = agent(b"");
        let refused = Session::call(&folder.path().join("v.sock")).unwrap_err().to_string();
        assert!(refused.contains("reach the agent") && refused.contains("v.sock"), "{refused}");
        let (folder, _agent) = agent(b"OK 1\n\xff\xff\xff\xff\x00");
        let mut session = Session::call(&folder.path().join("v.sock")).unwrap();
        assert!(matches!(session.hear(), Err(SessionError::Frame(FrameError::TooLong(_)))));
    }
}
