//! The wire of vhost-user: messages to a back end over a UNIX socket, and its answers. Blocks, but never for long.
//!
//! Source: QEMU, docs/interop/vhost-user.rst ("Message Specification", "Front-end message types"). Numbers are in the
//! host's byte order. The `vhost` crate speaks the same protocol, but waits for an answer without end.

use std::io::{self, Read};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Header flags: the protocol's version; this is an answer; an answer is wanted.
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Bytes of a header: request, flags, size of what follows.
const HEADER: usize = 12;

/// VHOST_USER_F_PROTOCOL_FEATURES: the back end has features beside those of the device.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// VHOST_USER_PROTOCOL_F_REPLY_ACK: every message can be acknowledged.
pub const REPLY_ACK: u64 = 1 << 3;
/// VHOST_USER_PROTOCOL_F_DEVICE_STATE: the back end hands over what it knows, and takes it.
pub const DEVICE_STATE: u64 = 1 << 19;

/// VHOST_USER_* requests, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the specification's names
pub enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    SetVringEnable = 18,
    SetDeviceStateFd = 42,
    CheckDeviceState = 43,
}

/// A connection to a back end.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Longest that the back end may take to answer.
    patience: Duration,
    /// The back end acknowledges what is asked of it (REPLY_ACK).
    pub acknowledges: bool,
    /// The back end hands over what it knows (DEVICE_STATE).
    pub moves: bool,
}

impl Connection {
    /// Takes a connected socket, whose other end may take so long to answer.
    pub fn new(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream, patience, acknowledges: false, moves: false })
    }

    /// Longest that the back end may take to answer.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The socket, to hear when the other end is gone.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a request whose answer is one number of 64 bits.
    pub fn ask(&mut self, request: Request) -> io::Result<u64> {
        self.ask_with(request, &[], &[])
    }

    /// The same for a request that says something itself.
    pub fn ask_with(&mut self, request: Request, payload: &[u8], fds: &[RawFd]) -> io::Result<u64> {
        self.send(request, 0, payload, fds)?;
        self.answer(request).map(u64::from_ne_bytes)
    }

    /// Asks where ring `index` stands (VHOST_USER_GET_VRING_BASE), which stops it.
    pub fn ask_base(&mut self, index: u32) -> io::Result<u32> {
        self.send(Request::GetVringBase, 0, &words([index, 0]), &[])?;
        let [_, _, _, _, a, b, c, d] = self.answer(Request::GetVringBase)?;
        Ok(u32::from_ne_bytes([a, b, c, d]))
    }

    /// Sends a request that has no answer, but an acknowledgement where the back end knows them.
    pub fn tell(&mut self, request: Request, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
        if !self.acknowledges {
            return self.send(request, 0, payload, fds);
        }
        self.send(request, NEED_REPLY, payload, fds)?;
        match self.answer(request).map(u64::from_ne_bytes)? {
            0 => Ok(()),
            _ => Err(io::Error::other(format!("it refused {request:?}"))),
        }
    }

    fn send(&mut self, request: Request, flags: u32, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let len = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let header = words([request as u32, VERSION | flags, len]);
        let whole = [header.as_slice(), payload].concat();
        let sent = self.stream.send_with_fds(&[whole.as_slice()], fds).map_err(|error| self.slow(error.into()))?;
        if sent == whole.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Every answer that is waited for has 8 bytes.
    fn answer(&mut self, request: Request) -> io::Result<[u8; 8]> {
        let mut message = [0; HEADER + 8];
        self.receive(&mut message).map_err(|error| self.slow(error))?;
        let (header, payload) = message.split_at(HEADER);
        let wanted = words([request as u32, VERSION | REPLY, 8]);
        // A back end may leave NEED_REPLY set in its answer.
        let mut header = <[u8; HEADER]>::try_from(header).map_err(io::Error::other)?;
        if let Some(flags) = header.get_mut(4) {
            *flags &= !NEED_REPLY.to_ne_bytes()[0];
        }
        if header.as_slice() != wanted.as_slice() {
            return Err(io::Error::other(format!("its answer to {request:?} is none")));
        }
        payload.try_into().map_err(io::Error::other)
    }

    /// Fills `message`. The socket's time limit is one for each piece of it: however many there are, they come in time.
    fn receive(&self, message: &mut [u8]) -> io::Result<()> {
        let since = Instant::now();
        let mut rest = message;
        while !rest.is_empty() {
            let len = match (&self.stream).read(rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                done => done?,
            };
            rest = rest.get_mut(len..).unwrap_or_default();
            if !rest.is_empty() && since.elapsed() >= self.patience {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        Ok(())
    }

    /// A socket's time limit is WouldBlock to std.
    fn slow(&self, error: io::Error) -> io::Error {
        match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::other(format!("no answer for {:?}", self.patience)),
            io::ErrorKind::UnexpectedEof => io::Error::other("it hung up"),
            _ => error,
        }
    }
}

/// 32-bit numbers, one after the other.
pub fn words<const N: usize>(numbers: [u32; N]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

/// 64-bit numbers, one after the other.
pub fn quads<const N: usize>(numbers: [u64; N]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::RecvTimeoutError;

    use super::*;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(ours, Duration::from_millis(20)).unwrap(), theirs)
    }

    fn answer(theirs: &mut UnixStream, request: u32, flags: u32, value: u64) {
        let message = [words([request, flags, 8]), quads([value])].concat();
        theirs.write_all(&message).unwrap();
    }

    #[test]
    fn an_answer_is_that_to_the_question() {
        let (mut ours, mut theirs) = pair();
        answer(&mut theirs, 1, VERSION | REPLY, 77);
        assert_eq!(ours.ask(Request::GetFeatures).unwrap(), 77);
        let mut sent = [0; HEADER];
        theirs.read_exact(&mut sent).unwrap();
        assert_eq!(sent.as_slice(), words([1, 1, 0]));
        for (request, flags) in [(2, VERSION | REPLY), (1, VERSION), (1, 2 | REPLY)] {
            answer(&mut theirs, request, flags, 77);
            assert!(ours.ask(Request::GetFeatures).unwrap_err().to_string().contains("GetFeatures is none"));
        }
    }

    /// A back end that says one byte now and then does not keep the monitor waiting for all of them.
    #[test]
    fn an_answer_comes_in_time_or_not_at_all() {
        let (mut ours, mut theirs) = pair();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let trickle = std::thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(5)).is_err_and(|it| it == RecvTimeoutError::Timeout) {
                theirs.write_all(&[1]).unwrap();
            }
        });
        let said = ours.ask(Request::GetFeatures).unwrap_err().to_string();
        drop(stop);
        trickle.join().unwrap();
        assert_eq!(said, "no answer for 20ms");
    }

    #[test]
    fn a_refusal_and_a_hang_up_are_errors() {
        let (mut ours, mut theirs) = pair();
        ours.acknowledges = true;
        answer(&mut theirs, 3, VERSION | REPLY | NEED_REPLY, 0);
        ours.tell(Request::SetOwner, &[], &[]).unwrap();
        answer(&mut theirs, 3, VERSION | REPLY, 1);
        assert_eq!(ours.tell(Request::SetOwner, &[], &[]).unwrap_err().to_string(), "it refused SetOwner");
        drop(theirs);
        assert!(ours.ask(Request::GetFeatures).is_err());
    }
}
