//! Frames of one kind as they pass: their bodies piece by piece, of which nothing is kept. For who carries bytes on, and
//! must not keep whole frames of many connections.

use crate::frame::{FrameError, HEADER, Kind, length};

/// Where in a frame a connection is.
#[derive(Debug)]
pub struct Pieces {
    kind: Kind,
    header: [u8; HEADER],
    /// Bytes of the header that have come, and bytes of the body that have not.
    have: usize,
    left: usize,
}

/// A part of a frame's body. An empty one is an empty frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// The frame ends here.
    pub is_last: bool,
}

impl Pieces {
    /// Of frames of this kind; others are errors.
    pub fn of(kind: Kind) -> Self {
        Self { kind, header: [0; HEADER], have: 0, left: 0 }
    }

    /// The next piece, taken from `bytes`; none: more bytes are needed. After an error the connection is of no use any more.
    pub fn next_piece<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>, FrameError> {
        if self.have < HEADER {
            let head = split(bytes, HEADER.saturating_sub(self.have));
            for (to, from) in self.header.iter_mut().skip(self.have).zip(head) {
                *to = *from;
            }
            self.have = self.have.saturating_add(head.len());
            if self.have < HEADER {
                return Ok(None);
            }
            let (kind, len) = length(self.header)?;
            if kind != self.kind {
                return Err(FrameError::NotExpected);
            }
            self.left = len;
        }
        if self.left > 0 && bytes.is_empty() {
            return Ok(None);
        }
        let body = split(bytes, self.left);
        self.left = self.left.saturating_sub(body.len());
        let is_last = self.left == 0;
        if is_last {
            self.have = 0;
        }
        Ok(Some(Piece { bytes: body, is_last }))
    }
}

/// Takes up to `most` bytes from the front.
fn split<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (front, rest) = bytes.split_at_checked(most).unwrap_or((bytes, &[]));
    *bytes = rest;
    front
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Frame, MOST_DATA, header};

    proptest! {
        #[test]
        fn pieces_are_the_bodies(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..10), cut in 1_usize..50) {
            let frame = |body: &Vec<u8>| Frame { kind: Kind::Stdin, body: body.clone() }.bytes().unwrap();
            let bytes: Vec<u8> = bodies.iter().flat_map(frame).collect();
            let (mut pieces, mut whole, mut one) = (Pieces::of(Kind::Stdin), Vec::new(), Vec::new());
            for mut part in bytes.chunks(cut) {
                while let Some(piece) = pieces.next_piece(&mut part).unwrap() {
                    one.extend_from_slice(piece.bytes);
                    if piece.is_last {
                        whole.push(std::mem::take(&mut one));
                    }
                }
            }
            prop_assert_eq!(whole, bodies);
        }
    }

    #[test]
    fn what_does_not_belong_there_is_refused() {
        let next = |bytes: &[u8]| Pieces::of(Kind::Stdin).next_piece(&mut &*bytes).map(|piece| piece.is_some());
        assert!(matches!(next(&header(Kind::Stdout, 1).unwrap()), Err(FrameError::NotExpected)));
        assert!(matches!(next(&[0, 0, 0, 0, 9]), Err(FrameError::Kind(9))));
        assert!(matches!(next(&[1, 0, 1, 0, 1]), Err(FrameError::TooLong(_))));
        assert!(!next(&header(Kind::Stdin, MOST_DATA).unwrap()).unwrap());
    }
}
