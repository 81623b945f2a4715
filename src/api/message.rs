//! HTTP/1.1 messages (RFC 9112), as far as this interface needs them: requests with a length, answers with JSON. Pure.
//!
//! httparse reads the lines; what they mean for the length of a message is decided here.

use std::time::Duration;

/// Longest head of a request, bytes.
const HEAD_MAX: usize = 8 << 10;
/// Most header lines.
const HEADERS_MAX: usize = 64;

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// GET, PUT, PATCH, DELETE, or something else.
    pub method: String,
    /// The path, without its query.
    pub path: String,
    /// The body; empty where there is none.
    pub body: Vec<u8>,
    /// The client sends no more on this connection.
    pub is_last: bool,
    /// The protocol that the connection is to change to, as the client names it.
    pub upgrade: Option<String>,
}

/// What is in the bytes that came so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not enough yet; `wants_continue`: the client waits for "100 Continue" before it sends the body.
    Partial {
        /// See above.
        wants_continue: bool,
    },
    /// A request, and how many bytes it took.
    Whole(Request, usize),
    /// The connection cannot go on: the status and what is wrong.
    Bad(u16, String),
}

/// Looks for a request at the beginning of `bytes`. Its body may have `body_max` bytes.
pub fn parse(bytes: &[u8], body_max: usize) -> Parsed {
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut lines);
    let bad = |text: String| Parsed::Bad(400, text);
    let begin = match head.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Parsed::Partial { wants_continue: false },
        Ok(httparse::Status::Partial) => {
            return bad(format!("the head of the request is longer than {HEAD_MAX} bytes"));
        }
        Err(error) => return bad(format!("not an HTTP request: {error}")),
    };
    let (mut length, mut is_last, mut wants_continue) = (None, head.version == Some(0), false);
    let mut upgrade = None;
    for line in head.headers.iter() {
        let Ok(value) = std::str::from_utf8(line.value).map(str::trim) else {
            return bad(format!("the header {} is not text", line.name));
        };
        match line.name.to_ascii_lowercase().as_str() {
            // Only digits (RFC 9110, 8.6): a sign would be taken by parse().
            "content-length" => match value.parse::<usize>().ok().filter(|_| value.bytes().all(|b| b.is_ascii_digit()))
            {
                Some(len) if length.is_none_or(|known| known == len) => length = Some(len),
                _ => return bad(format!("Content-Length is not one number: {value}")),
            },
            "transfer-encoding" => {
                return Parsed::Bad(501, "Transfer-Encoding is not supported; send a Content-Length".into());
            }
            "connection" => {
                for word in value.split(',').map(str::trim) {
                    is_last =
                        (is_last || word.eq_ignore_ascii_case("close")) && !word.eq_ignore_ascii_case("keep-alive");
                }
            }
            "upgrade" => upgrade = Some(value.to_owned()),
            "expect" => wants_continue = value.eq_ignore_ascii_case("100-continue"),
            _ => {}
        }
    }
    let length = length.unwrap_or(0);
    if length > body_max {
        let text =
            format!("the body has {length} bytes; at most {body_max} are accepted (--http-api-max-payload-size)");
        return Parsed::Bad(413, text);
    }
    let end = begin + length; // both are small
    let Some(body) = bytes.get(begin..end) else {
        return Parsed::Partial { wants_continue: wants_continue && bytes.len() == begin };
    };
    let target = head.path.unwrap_or_default();
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        body: body.to_vec(),
        is_last,
        upgrade,
    };
    Parsed::Whole(request, end)
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// What the body is, as Content-Type says it.
    pub kind: &'static str,
    /// JSON, or a text; empty with 204.
    pub body: Vec<u8>,
    /// What comes after it.
    pub then: Then,
}

/// What becomes of a connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The next request.
    Next,
    /// The answer's body comes piece by piece ([`chunk`]), and the connection ends with it.
    Follow,
    /// It is another's from now on, who sends the answer, too.
    Leave,
}

const JSON: &str = "application/json";

impl Response {
    /// Done, and nothing to say.
    pub fn done() -> Self {
        Self { status: 204, kind: JSON, body: Vec::new(), then: Then::Next }
    }

    /// What was asked for.
    pub fn json(value: &serde_json::Value) -> Self {
        Self { status: 200, kind: JSON, body: value.to_string().into_bytes(), then: Then::Next }
    }

    /// A text in a form of its own.
    pub fn text(kind: &'static str, text: String) -> Self {
        Self { status: 200, kind, body: text.into_bytes(), then: Then::Next }
    }

    /// A stream of lines of JSON.
    pub fn stream() -> Self {
        Self { status: 200, kind: "application/x-ndjson", body: Vec::new(), then: Then::Follow }
    }

    /// The connection is another's.
    pub fn leave() -> Self {
        Self { status: 101, kind: JSON, body: Vec::new(), then: Then::Leave }
    }

    /// What is wrong, in Firecracker's shape.
    pub fn fault(status: u16, text: &str) -> Self {
        Self {
            status,
            kind: JSON,
            body: serde_json::json!({ "fault_message": text }).to_string().into_bytes(),
            then: Then::Next,
        }
    }

    /// The bytes to send; `close` tells the client that the connection ends, and `took` how long it took to find the answer.
    pub fn bytes(&self, close: bool, took: Duration) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\nServer: Firecracker API\r\n", self.status, reason(self.status));
        head.push_str(&timing(took));
        let follows = self.then == Then::Follow;
        if close || follows {
            head.push_str("Connection: close\r\n");
        } else {
            head.push_str("Connection: keep-alive\r\n");
        }
        // 204 has no body and no length of one (RFC 9110, 8.6).
        if follows {
            head.push_str(&format!("Content-Type: {}\r\nTransfer-Encoding: chunked\r\n", self.kind));
        } else if self.status != 204 {
            head.push_str(&format!("Content-Type: {}\r\nContent-Length: {}\r\n", self.kind, self.body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend(&self.body);
        bytes
    }
}

/// The header that says how long it took to find an answer (W3C, "Server Timing"): milliseconds.
fn timing(took: Duration) -> String {
    format!("Server-Timing: total;dur={:.3}\r\n", took.as_secs_f64() * 1e3)
}

/// The answer before a connection changes to another protocol (RFC 9110, 7.8), found in the time `took`.
pub fn switching(protocol: &str, took: Duration) -> Vec<u8> {
    let head = "HTTP/1.1 101 Switching Protocols\r\nServer: Firecracker API\r\n";
    format!("{head}{}Connection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n", timing(took)).into_bytes()
}

/// A piece of a body that comes piece by piece (RFC 9112, 7.1); an empty one ends it.
pub fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

/// What the client waits for before it sends a large body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        413 => "Payload Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Bad Request",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> (Request, usize) {
        match parse(text.as_bytes(), 100) {
            Parsed::Whole(request, len) => (request, len),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_seen_when_its_last_byte_is_there() {
        let text = "PUT /actions?x=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";
        for len in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..len], 100), Parsed::Partial { wants_continue: false }, "{len}");
        }
        let (request, len) = whole(text);
        let wanted = Request {
            method: "PUT".into(),
            path: "/actions".into(),
            body: b"{}".to_vec(),
            is_last: false,
            upgrade: None,
        };
        assert_eq!((request, len), (wanted, text.len()));
        assert_eq!(whole(&format!("{text}GET / HT")).1, text.len(), "the next one is not touched");
    }

    #[test]
    fn what_ends_the_connection() {
        for (head, last) in [
            ("GET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nconnection: Close\r\n\r\n", true),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nConnection: Upgrade, Close\r\nUpgrade: x\r\n\r\n", true),
        ] {
            assert_eq!(whole(head).0.is_last, last, "{head}");
            assert_eq!(whole(head).0.upgrade.as_deref(), head.contains("Upgrade: x").then_some("x"));
        }
    }

    #[test]
    fn a_client_may_wait_before_it_sends_the_body() {
        let head = "PUT / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
        assert_eq!(parse(head.as_bytes(), 100), Parsed::Partial { wants_continue: true });
        assert_eq!(parse(format!("{head}{{").as_bytes(), 100), Parsed::Partial { wants_continue: false });
    }

    #[test]
    fn bad_messages_have_a_status() {
        let put = |headers: &str| format!("PUT / HTTP/1.1\r\n{headers}\r\n\r\n");
        for (text, status) in [
            ("nonsense\r\n\r\n".to_owned(), 400),
            ("\0\0\0".to_owned(), 400),
            (put("Content-Length: x"), 400),
            (put("Content-Length: -1"), 400),
            (put("Content-Length: +1"), 400),
            (put("Content-Length: 99999999999999999999999"), 400),
            (put("Content-Length: 1\r\nContent-Length: 2"), 400),
            (put("Content-Length: 101"), 413),
            (put("Transfer-Encoding: chunked"), 501),
            (format!("GET /{}", "a".repeat(HEAD_MAX)), 400),
            (put(&"a: b\r\n".repeat(HEADERS_MAX + 1)), 400),
        ] {
            let parsed = parse(text.as_bytes(), 100);
            assert!(matches!(parsed, Parsed::Bad(found, _) if found == status), "{text}: {parsed:?}");
        }
    }

    #[test]
    fn answers_have_a_length_unless_they_have_no_body() {
        let text = |response: Response| String::from_utf8(response.bytes(false, Duration::from_micros(1234))).unwrap();
        assert!(!text(Response::done()).contains("Content-Length"));
        let switching = String::from_utf8(switching("x", Duration::from_micros(1234))).unwrap();
        for answer in [text(Response::done()), text(Response::stream()), switching] {
            assert!(answer.contains("\r\nServer-Timing: total;dur=1.234\r\n"), "{answer}");
        }
        let fault = text(Response::fault(400, "a \"b\""));
        assert!(fault.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{fault}");
        assert!(fault.ends_with("Content-Length: 27\r\n\r\n{\"fault_message\":\"a \\\"b\\\"\"}"), "{fault}");
    }

    proptest::proptest! {
        /// Whatever comes, in whatever pieces: no panic, no request longer than what is there, and no other answer to a
        /// beginning than to the whole.
        #[test]
        fn any_bytes_are_read(tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), head in 0..4_usize) {
            let heads = ["", "GET / HTTP/1.1\r\n", "PUT /a HTTP/1.1\r\nContent-Length: 3\r\n\r\n", "PUT /a HTTP/1.1\r\nExpect:"];
            let bytes = [heads[head].as_bytes(), &tail].concat();
            let whole = parse(&bytes, 100);
            if let Parsed::Whole(_, len) = &whole {
                proptest::prop_assert!(*len <= bytes.len());
            }
            for end in 0..bytes.len() {
                match parse(&bytes[..end], 100) {
                    Parsed::Partial { .. } => {}
                    early => proptest::prop_assert_eq!(&early, &whole),
                }
            }
        }
    }
}
