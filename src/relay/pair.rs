//! One connection: a socket, or a caller of one, and its line. Each turn moves what can be moved at once.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use protocol::frame::HEADER;
use protocol::pieces::Pieces;

use crate::line::{Line, receive_now, send_now};
use crate::stream::Stream;

/// Reads of each direction in one turn; then it is the others'.
const BUDGET: usize = 16;

/// How a datagram goes to a caller.
pub type Send = Box<dyn Fn(&[u8]) + std::marker::Send>;

/// A connection.
#[derive(Debug)]
pub struct Pair {
    line: Line,
    pieces: Pieces,
    plain: Plain,
    /// It is to end when what the other side says has ended.
    pub(crate) until: Option<Instant>,
    /// When something was carried last, of datagrams.
    pub(crate) carried: Instant,
}

/// The side without frames.
enum Plain {
    /// A TCP connection.
    Stream(Stream),
    /// Datagrams by a socket of its own, and the beginning of one that comes.
    Socket(OwnedFd, Vec<u8>),
    /// Datagrams by a socket that others share: what comes by it is given by [`Pair::say`].
    Caller(Send, Vec<u8>),
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// There may be more to do at once.
    More,
    /// Nothing, until something happens.
    Waits,
    /// Both directions have ended.
    Over,
}

impl Pair {
    /// Of a TCP connection.
    pub fn stream(socket: OwnedFd, line: Line) -> Self {
        Self::new(Plain::Stream(Stream::new(socket)), line)
    }

    /// Of a UDP socket that is connected.
    pub fn datagrams(socket: OwnedFd, line: Line) -> Self {
        Self::new(Plain::Socket(socket, Vec::new()), line)
    }

    /// Of one who calls a UDP socket that others call, too.
    pub fn caller(send: Send, line: Line) -> Self {
        Self::new(Plain::Caller(send, Vec::new()), line)
    }

    fn new(plain: Plain, line: Line) -> Self {
        Self { pieces: Pieces::of(line.hears()), line, plain, until: None, carried: Instant::now() }
    }

    /// The files that tell when there is something to do.
    pub(crate) fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let plain = match &self.plain {
            Plain::Stream(stream) => Some(stream.as_fd()),
            Plain::Socket(socket, _) => Some(socket.as_fd()),
            Plain::Caller(..) => None,
        };
        plain.into_iter().chain([self.line.as_fd()])
    }

    /// Whether it is of datagrams.
    pub(crate) fn is_of_datagrams(&self) -> bool {
        !matches!(self.plain, Plain::Stream(_))
    }

    /// A caller's datagram, behind [`HEADER`] bytes of `buffer`. When the line is full, it is lost, as datagrams are.
    pub fn say(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.carried = Instant::now();
        if self.line.flush()? { self.line.say(buffer) } else { Ok(()) }
    }

    /// Moves what can be moved. An error: the connection is broken.
    pub(crate) fn turn(&mut self, buffer: &mut [u8]) -> io::Result<Turn> {
        for _ in 0..BUDGET {
            let out = self.outward(buffer)?;
            let inward = self.inward(buffer)?;
            if self.is_over() {
                return Ok(Turn::Over);
            }
            if let Plain::Stream(stream) = &self.plain
                && stream.is_lost()
            {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if !out && !inward {
                return Ok(Turn::Waits);
            }
        }
        Ok(Turn::More)
    }

    /// What the line has lost, or will not say any more, is not to look like an end.
    pub(crate) fn reset(&self) {
        if let Plain::Stream(stream) = &self.plain {
            stream.reset();
        }
    }

    fn is_over(&self) -> bool {
        match &self.plain {
            Plain::Stream(stream) => {
                let all_said = stream.has_ended() && self.line.is_clear();
                stream.is_told() && (all_said || self.until.is_some())
            }
            Plain::Socket(..) | Plain::Caller(..) => false,
        }
    }

    /// From the socket to the line. True when something moved.
    fn outward(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        if !self.line.flush()? {
            return Ok(false);
        }
        let room = buffer.get_mut(HEADER..).unwrap_or_default();
        let got = match &mut self.plain {
            Plain::Stream(stream) if stream.has_ended() => None,
            Plain::Stream(stream) => stream.read(room)?,
            // An error of datagrams is of one of them: nobody listened there when it came.
            Plain::Socket(socket, _) => receive_now(socket, room).unwrap_or(None),
            Plain::Caller(..) => None,
        };
        let Some(len) = got else { return Ok(false) };
        if self.is_of_datagrams() {
            self.carried = Instant::now();
        }
        self.line.say(buffer.get_mut(..HEADER.saturating_add(len)).unwrap_or_default())?;
        Ok(true)
    }

    /// From the line to the socket. True when something moved.
    fn inward(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        // Where both have said all, the other side closes the line.
        if let Plain::Stream(stream) = &mut self.plain
            && (!stream.flush() || stream.is_to_end() && stream.has_ended())
        {
            return Ok(false);
        }
        let Some(len) = self.line.hear(buffer)? else { return Ok(false) };
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = buffer.get(..len).unwrap_or_default();
        while let Some(piece) = self.pieces.next_piece(&mut bytes).map_err(io::Error::other)? {
            match &mut self.plain {
                Plain::Stream(stream) if stream.is_to_end() => return Err(io::ErrorKind::InvalidData.into()),
                Plain::Stream(stream) if piece.bytes.is_empty() => stream.end(),
                Plain::Stream(stream) => stream.write(piece.bytes),
                Plain::Socket(socket, begun) => {
                    if let Some(whole) = whole(begun, piece.bytes, piece.is_last) {
                        let _ = send_now(&*socket, &whole); // as datagrams are lost
                    }
                }
                Plain::Caller(send, begun) => {
                    if let Some(whole) = whole(begun, piece.bytes, piece.is_last) {
                        send(&whole);
                    }
                }
            }
        }
        match &mut self.plain {
            Plain::Stream(stream) => _ = stream.flush(),
            Plain::Socket(..) | Plain::Caller(..) => self.carried = Instant::now(),
        }
        Ok(true)
    }
}

/// The datagram that ends with these bytes, if it ends.
fn whole(begun: &mut Vec<u8>, bytes: &[u8], is_last: bool) -> Option<Vec<u8>> {
    begun.extend_from_slice(bytes);
    is_last.then(|| std::mem::take(begun))
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream(_) => "Stream",
            Self::Socket(..) => "Socket",
            Self::Caller(..) => "Caller",
        })
    }
}
