//! Digests: what names content. Only SHA-256, which every registry and tool writes; others are refused by their name.
//!
//! Source: OCI image specification 1.1, descriptor.md ("Digests").

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The algorithm that is understood.
const ALGORITHM: &str = "sha256";
/// Hexadecimal digits of a digest.
const DIGITS: usize = 64;

/// The SHA-256 of something; written `sha256:` and 64 small hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// It does not say which algorithm.
    #[error("`{0}` is no digest: it has the form sha256:… with {DIGITS} hexadecimal digits")]
    Form(String),
    /// Another algorithm.
    #[error("digests by {0} are not supported, only by sha256")]
    Algorithm(String),
    /// Not the digits of a SHA-256.
    #[error("`{0}` is not {DIGITS} small hexadecimal digits")]
    Digits(String),
}

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Of all that this has seen.
    pub(crate) fn finished(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }

    /// The digits, without the algorithm: the name of a blob's file.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// From the digits alone.
    pub fn from_hex(hex: &str) -> Result<Self, DigestError> {
        let wrong = || DigestError::Digits(shortened(hex));
        if hex.len() != DIGITS || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }

    /// The first twelve digits, as tables show them.
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }
}

/// Text of others, short enough for a message.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text.split_once(':') {
            Some((ALGORITHM, hex)) => Self::from_hex(hex),
            Some((other, _)) if !other.is_empty() => Err(DigestError::Algorithm(shortened(other))),
            _ => Err(DigestError::Form(shortened(text))),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<[u8; 32]> for Digest {
    fn from(sum: [u8; 32]) -> Self {
        Self(sum)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{ALGORITHM}:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{self}")
    }
}

/// A reader that knows the digest and the size of what went through it.
pub struct Digesting<R> {
    inner: R,
    hash: Sha256,
    size: u64,
}

impl<R> Digesting<R> {
    /// Around `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Digest and size of what was read.
    pub fn finish(self) -> (Digest, u64) {
        (Digest::finished(self.hash), self.size)
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.hash.update(into.get(..count).unwrap_or_default());
        self.size += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_what_others_write() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
        let json = serde_json::to_string(&Digest::of(b"")).unwrap();
        assert_eq!(json, format!("\"{EMPTY}\""));
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), Digest::of(b""));
    }

    #[test]
    fn what_is_no_digest_is_named() {
        let long = format!("sha512:{}", "0".repeat(128));
        assert_eq!(long.parse::<Digest>(), Err(DigestError::Algorithm("sha512".into())));
        for text in ["", "e3b0", ":e3b0"] {
            assert_eq!(text.parse::<Digest>(), Err(DigestError::Form(text.into())));
        }
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for text in ["sha256:", "sha256:e3", &upper, "sha256:../../../etc/passwd", &format!("{EMPTY}0")] {
            assert!(matches!(text.parse::<Digest>(), Err(DigestError::Digits(_))), "{text}");
        }
    }

    #[test]
    fn a_reader_counts_what_went_through() {
        let mut reader = Digesting::new(&b"some bytes"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.finish(), (Digest::of(b"some bytes"), 10));
    }
}
