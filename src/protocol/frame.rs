//! Frames: how messages and the bytes of standard streams share one connection.
//!
//! A frame is five bytes and its body: the body's length (32 bits, little-endian), the kind, the body. Any thread.

use std::collections::VecDeque;
use std::io::{self, Read};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Bytes before a frame's body.
pub const HEADER: usize = 5;
/// Most bytes of a standard stream in one frame.
pub const MOST_DATA: usize = 64 << 10;
/// Most bytes of a message.
pub const MOST_MESSAGE: usize = 4 << 20;

/// What a frame's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message, as JSON.
    Message = 0,
    /// Bytes for a process's standard input; no bytes: its end.
    Stdin = 1,
    /// Bytes of its standard output, or of its terminal.
    Stdout = 2,
    /// Bytes of its standard error.
    Stderr = 3,
}

/// Kind and body of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: Kind,
    /// At most [`MOST_DATA`] bytes, of a message [`MOST_MESSAGE`].
    pub body: Vec<u8>,
}

/// Why bytes are not a frame, or a frame not the message that was expected.
#[derive(Debug, Error)]
pub enum FrameError {
    /// No such kind.
    #[error("a frame of unknown kind {0}: is the other side of another version?")]
    Kind(u8),
    /// The body would be too long.
    #[error("a frame of {0} bytes, which is more than a frame may have")]
    TooLong(usize),
    /// The connection ended within a frame.
    #[error("the connection ended within a frame")]
    Cut,
    /// A message was expected.
    #[error("bytes of a stream where a message was expected")]
    NotMessage,
    /// Bytes of another stream were expected.
    #[error("a frame of a kind that does not belong there")]
    NotExpected,
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The message does not say what was expected.
    #[error("a message that does not fit: {0}")]
    Json(#[from] serde_json::Error),
}

impl Kind {
    fn from_byte(byte: u8) -> Result<Self, FrameError> {
        [Self::Message, Self::Stdin, Self::Stdout, Self::Stderr]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
            .ok_or(FrameError::Kind(byte))
    }

    fn most(self) -> usize {
        if self == Self::Message { MOST_MESSAGE } else { MOST_DATA }
    }
}

impl Frame {
    /// A message as a frame.
    pub fn message(message: &impl Serialize) -> Result<Self, FrameError> {
        let body = serde_json::to_vec(message)?;
        if body.len() > MOST_MESSAGE {
            return Err(FrameError::TooLong(body.len()));
        }
        Ok(Self { kind: Kind::Message, body })
    }

    /// The message in this frame.
    pub fn open<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        match self.kind {
            Kind::Message => Ok(serde_json::from_slice(&self.body)?),
            Kind::Stdin | Kind::Stdout | Kind::Stderr => Err(FrameError::NotMessage),
        }
    }

    /// The frame as it goes over the connection.
    pub fn bytes(&self) -> Result<Vec<u8>, FrameError> {
        let mut bytes = header(self.kind, self.body.len())?.to_vec();
        bytes.extend_from_slice(&self.body);
        Ok(bytes)
    }
}

/// The bytes before a body of `len` bytes.
pub fn header(kind: Kind, len: usize) -> Result<[u8; HEADER], FrameError> {
    let too_long = FrameError::TooLong(len);
    match u32::try_from(len) {
        Ok(short) if len <= kind.most() => {
            let [a, b, c, d] = short.to_le_bytes();
            Ok([a, b, c, d, kind as u8])
        }
        _ => Err(too_long),
    }
}

/// What a header says: the kind, and the body's length.
pub(crate) fn length([a, b, c, d, kind]: [u8; HEADER]) -> Result<(Kind, usize), FrameError> {
    let kind = Kind::from_byte(kind)?;
    let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if len > kind.most() {
        return Err(FrameError::TooLong(len));
    }
    Ok((kind, len))
}

/// Takes bytes as they come and gives frames. After an error the connection is of no use any more.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: VecDeque<u8>,
}

impl Decoder {
    /// Bytes that have come and that no frame has taken yet.
    pub fn into_rest(self) -> Vec<u8> {
        self.bytes.into()
    }

    /// More bytes have come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// The next whole frame; none: more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let mut header = [0_u8; HEADER];
        for (to, from) in header.iter_mut().zip(&self.bytes) {
            *to = *from;
        }
        if self.bytes.len() < HEADER {
            return Ok(None);
        }
        let (kind, len) = length(header)?;
        if self.bytes.len().saturating_sub(HEADER) < len {
            return Ok(None);
        }
        self.bytes.drain(..HEADER);
        Ok(Some(Frame { kind, body: self.bytes.drain(..len).collect() }))
    }

    /// The next whole frame, with as many bytes of `from` as it takes; none when `from` has ended after a whole one.
    pub fn read_frame(&mut self, from: &mut impl Read) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(Some(frame));
            }
            let mut bytes = vec![0; MOST_DATA];
            let count = match from.read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                done => done?,
            };
            if count == 0 {
                return self.finish().map(|()| None);
            }
            self.push(bytes.get(..count).unwrap_or_default());
        }
    }

    /// The connection ended: an error where that was within a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(FrameError::Cut) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let kind = prop::sample::select(vec![Kind::Message, Kind::Stdin, Kind::Stdout, Kind::Stderr]);
        let body = prop::collection::vec(any::<u8>(), 0..300);
        prop::collection::vec((kind, body).prop_map(|(kind, body)| Frame { kind, body }), 0..10)
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_however_the_bytes_are_cut(frames in frames(), cut in 1_usize..50) {
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes().unwrap()).collect();
            let mut decoder = Decoder::default();
            let mut arrived = Vec::new();
            for part in bytes.chunks(cut) {
                decoder.push(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    arrived.push(frame);
                }
            }
            prop_assert_eq!(arrived, frames);
            prop_assert!(decoder.finish().is_ok());
        }

        #[test]
        fn arbitrary_bytes_are_frames_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(frame)) = decoder.next_frame() {
                prop_assert!(frame.body.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn a_long_frame_is_refused_before_its_body_is_there() {
        let mut decoder = Decoder::default();
        decoder.push(&[1, 0, 1, 0, Kind::Stdout as u8]); // 65,537 bytes
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong(65_537))));
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0, 0, 0, 9]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::Kind(9))));
        assert!(header(Kind::Stdin, MOST_DATA).is_ok());
        assert!(header(Kind::Stdin, MOST_DATA + 1).is_err());
    }

    #[test]
    fn frames_are_read_until_the_end() {
        let frame = Frame { kind: Kind::Stdout, body: vec![1, 2, 3] };
        let bytes = frame.bytes().unwrap();
        let (mut decoder, mut from) = (Decoder::default(), bytes.as_slice());
        assert_eq!(decoder.read_frame(&mut from).unwrap(), Some(frame));
        assert_eq!(decoder.read_frame(&mut from).unwrap(), None);
        let mut cut = &bytes[..bytes.len() - 1];
        assert!(matches!(decoder.read_frame(&mut cut), Err(FrameError::Cut)));
    }

    #[test]
    fn a_cut_within_a_frame_is_not_an_end() {
        let mut decoder = Decoder::default();
        decoder.push(&[4, 0, 0, 0, 2, 1]);
        assert!(decoder.next_frame().unwrap().is_none());
        assert!(matches!(decoder.finish(), Err(FrameError::Cut)));
    }
}
