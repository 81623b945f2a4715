//! Session tokens: random, and good until they expire. Any thread.
//!
//! A token tells when it expires and carries an authentication code (HMAC-SHA-256, RFC 2104) over that and a random
//! number, under a key that never leaves this process. So none is remembered, however many a guest asks for.

use std::io;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::Sha256;

/// Least and most lifetime, seconds.
const TTL_MIN: u32 = 1;
const TTL_MAX: u32 = 21_600;
/// Bytes of the expiry time, of the random number, of the authentication code, and of all.
const EXPIRY: usize = 8;
const NONCE: usize = 8;
const CODE: usize = 16;
const TOKEN: usize = EXPIRY + NONCE + CODE;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The lifetime is none.
    #[error(
        "Invalid time to live value provided for token: {0}. Please provide a value between {TTL_MIN} and {TTL_MAX}."
    )]
    Ttl(u32),
    /// The host has no random numbers.
    #[error("There are no random numbers: {0}.")]
    Random(io::Error),
}

/// Makes tokens and knows them again.
pub struct Tokens {
    key: [u8; 32],
    since: Instant,
}

impl Tokens {
    /// With a new key: no token of another one is good here.
    pub fn new() -> io::Result<Self> {
        Ok(Self { key: random()?, since: Instant::now() })
    }

    /// A token that is good for `ttl` seconds.
    pub fn issue(&self, ttl: u32) -> Result<String, TokenError> {
        self.issue_at(ttl, self.since.elapsed())
    }

    /// Whether a token is of this kind and has not expired.
    pub fn is_good(&self, token: &str) -> bool {
        self.is_good_at(token, self.since.elapsed())
    }

    fn issue_at(&self, ttl: u32, now: Duration) -> Result<String, TokenError> {
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            return Err(TokenError::Ttl(ttl));
        }
        let expiry = millis(now.saturating_add(Duration::from_secs(ttl.into()))).to_be_bytes();
        let nonce: [u8; NONCE] = random().map_err(TokenError::Random)?;
        let head = [expiry, nonce].concat();
        let code = self.code(&head).finalize().into_bytes();
        Ok(head.iter().chain(code.iter().take(CODE)).map(|byte| format!("{byte:02x}")).collect())
    }

    fn is_good_at(&self, token: &str, now: Duration) -> bool {
        let Some((head, code)) = parse(token) else { return false };
        // In constant time: how much of a code is right must not be seen from outside.
        let is_ours = self.code(&head).verify_truncated_left(&code).is_ok();
        is_ours && head.first_chunk::<EXPIRY>().is_some_and(|expiry| millis(now) < u64::from_be_bytes(*expiry))
    }

    #[allow(clippy::expect_used)] // the only error is a key of a wrong length, and every length is right
    fn code(&self, head: &[u8]) -> Hmac<Sha256> {
        let mut code = Hmac::<Sha256>::new_from_slice(&self.key).expect("a key of any length");
        code.update(head);
        code
    }
}

/// What the code is over, and the code.
fn parse(token: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let digits = token.as_bytes();
    if digits.len() != TOKEN.saturating_mul(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let bytes = digits.chunks_exact(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    let mut head = bytes.collect::<Option<Vec<u8>>>()?;
    let code = head.split_off(EXPIRY.saturating_add(NONCE).min(head.len()));
    Some((head, code))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Random bytes of the host's kernel.
pub fn random<const LEN: usize>() -> io::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    // Up to 256 bytes come whole (getrandom(2)).
    match getrandom(&mut bytes, GetRandomFlags::empty())? {
        len if len == LEN => Ok(bytes),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000);

    #[test]
    fn a_token_is_good_until_it_expires() {
        let tokens = Tokens::new().unwrap();
        for ttl in [1, 60, 21_600] {
            let token = tokens.issue_at(ttl, NOW).unwrap();
            let end = NOW + Duration::from_secs(ttl.into());
            assert!(tokens.is_good_at(&token, NOW) && tokens.is_good_at(&token, end - Duration::from_millis(1)));
            assert!(!tokens.is_good_at(&token, end) && !tokens.is_good_at(&token, Duration::MAX));
        }
        assert!(tokens.is_good(&tokens.issue(60).unwrap()));
    }

    #[test]
    fn lifetimes_have_limits() {
        let tokens = Tokens::new().unwrap();
        for ttl in [0, 21_601, u32::MAX] {
            let text = tokens.issue(ttl).unwrap_err().to_string();
            assert!(text.contains("between 1 and 21600") && text.contains(&ttl.to_string()), "{text}");
        }
    }

    #[test]
    fn no_two_are_alike_and_no_other_s_is_taken() {
        let (tokens, others) = (Tokens::new().unwrap(), Tokens::new().unwrap());
        let token = tokens.issue_at(60, NOW).unwrap();
        assert_ne!(token, tokens.issue_at(60, NOW).unwrap());
        assert!(!others.is_good_at(&token, NOW));
    }

    #[test]
    fn a_token_that_was_changed_anywhere_is_none() {
        let tokens = Tokens::new().unwrap();
        let token = tokens.issue_at(60, NOW).unwrap();
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            assert!(!tokens.is_good_at(std::str::from_utf8(&changed).unwrap(), NOW), "{at}");
        }
        for other in ["", "0", &token[1..], &format!("{token}00"), &"+".repeat(64), &"é".repeat(32)] {
            assert!(!tokens.is_good_at(other, NOW), "{other}");
        }
    }
}
