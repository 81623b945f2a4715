//! HTTP/1.1 (RFC 9112) as the metadata service speaks it: bytes of a guest in, bytes of an answer out. Pure, but for the
//! store and the clock of its tokens.
//!
//! httparse reads the lines. What is asked and answered is Firecracker's, its words included.

use super::config::MmdsVersion;
use super::counts::add;
use super::store::{Form, Missing, Store};

/// Longest request, bytes, with its body (which nothing here reads).
pub const REQUEST_MAX: usize = 8 << 10;
/// Most header lines.
const HEADERS_MAX: usize = 32;
/// Where tokens are made.
const TOKEN_PATH: &str = "latest/api/token";
const TOKEN: [&str; 2] = ["X-metadata-token", "X-aws-ec2-metadata-token"];
const TTL: [&str; 2] = ["X-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token-ttl-seconds"];
/// Who passes a request on for others gets no token: it could be one that was tricked into it.
const FORWARDED: &str = "X-Forwarded-For";

/// What the user wants of the service.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Whether a guest must show a token.
    pub version: MmdsVersion,
    /// Answer as text also where JSON is asked for.
    pub imds_compat: bool,
}

/// What goes back to the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// To be sent.
    pub bytes: Vec<u8>,
    /// So many bytes were the request.
    pub taken: usize,
    /// The connection ends after it.
    pub is_last: bool,
}

/// A request, as far as it matters.
struct Request<'a> {
    method: &'a str,
    target: &'a str,
    headers: &'a [httparse::Header<'a>],
    /// Bytes with the body.
    len: usize,
    is_last: bool,
}

/// A status with its body.
struct Reply {
    status: u16,
    body: String,
    is_json: bool,
}

impl Reply {
    fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into(), is_json: false }
    }

    fn bytes(&self, is_last: bool) -> Vec<u8> {
        let connection = if is_last { "close" } else { "keep-alive" };
        let kind = if self.is_json { "application/json" } else { "text/plain" };
        let allow = if self.status == 405 { "Allow: GET, PUT\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {} {}\r\nServer: Firecracker API\r\nConnection: {connection}\r\n{allow}Content-Type: {kind}\r\n\
             Content-Length: {}\r\n\r\n",
            self.status,
            reason(self.status),
            self.body.len()
        );
        [head.as_bytes(), self.body.as_bytes()].concat()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Payload Too Large",
        501 => "Not Implemented",
        _ => "Bad Request",
    }
}

/// Answers the request at the beginning of `bytes`; nothing where more of it is to come.
pub fn answer(bytes: &[u8], rules: Rules, store: &Store) -> Option<Answer> {
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut lines);
    let parsed = match head.parse(bytes) {
        Ok(httparse::Status::Complete(begin)) => request(&head, begin),
        Ok(httparse::Status::Partial) if bytes.len() < REQUEST_MAX => return None,
        Ok(httparse::Status::Partial) => Err(Reply::text(413, "The request is too long.")),
        Err(error) => Err(Reply::text(400, format!("Invalid request: {error}."))),
    };
    if parsed.as_ref().is_ok_and(|request| request.len > bytes.len()) {
        return None;
    }
    add(&store.counts().requests, 1);
    match parsed {
        Ok(request) => {
            let reply = respond(&request, rules, store);
            // Other methods may bring a body, or want none back, by rules of their own.
            let is_last = request.is_last || reply.status == 405;
            Some(Answer { bytes: reply.bytes(is_last), taken: request.len, is_last })
        }
        Err(reply) => Some(Answer { bytes: reply.bytes(true), taken: bytes.len(), is_last: true }),
    }
}

/// What the head of a request, of `begin` bytes, says.
fn request<'a>(head: &'a httparse::Request<'_, 'a>, begin: usize) -> Result<Request<'a>, Reply> {
    let headers: &[httparse::Header<'_>] = head.headers;
    if value(headers, &["Transfer-Encoding"]).is_some() {
        return Err(Reply::text(501, "Transfer-Encoding is not supported."));
    }
    let mut len = begin;
    for line in headers.iter().filter(|line| line.name.eq_ignore_ascii_case("Content-Length")) {
        // Only digits (RFC 9110, 8.6): a sign would be taken by parse().
        let digits = std::str::from_utf8(line.value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let body = digits.and_then(|digits| digits.parse::<usize>().ok());
        let end = body.and_then(|body| begin.checked_add(body)).ok_or(Reply::text(400, "Invalid Content-Length."))?;
        if len != begin && len != end {
            return Err(Reply::text(400, "Invalid Content-Length."));
        }
        len = end;
    }
    if len > REQUEST_MAX {
        return Err(Reply::text(413, "The request is too long."));
    }
    let is_last = match value(headers, &["Connection"]) {
        Some(word) if word.eq_ignore_ascii_case("close") => true,
        Some(word) if word.eq_ignore_ascii_case("keep-alive") => false,
        _ => head.version == Some(0),
    };
    let (method, target) = (head.method.unwrap_or_default(), head.path.unwrap_or_default());
    Ok(Request { method, target, headers, len, is_last })
}

/// The value of the first header that has one of these names; none where it is no text.
fn value<'a>(headers: &'a [httparse::Header<'_>], names: &[&str]) -> Option<&'a str> {
    let named = |line: &&httparse::Header<'_>| names.iter().any(|name| line.name.eq_ignore_ascii_case(name));
    headers.iter().find(named).and_then(|line| std::str::from_utf8(line.value).ok()).map(str::trim)
}

fn respond(request: &Request<'_>, rules: Rules, store: &Store) -> Reply {
    let Some(path) = path(request.target) else { return Reply::text(400, "Invalid URI.") };
    match request.method {
        "GET" => get(request, path, rules, store),
        "PUT" => put(request, path, store),
        _ => Reply::text(405, "Not allowed HTTP method."),
    }
}

/// The path of a request target: of `/path`, or of `http://host/path`.
fn path(target: &str) -> Option<&str> {
    match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').and_then(|at| rest.get(at..)),
        None => target.starts_with('/').then_some(target),
    }
}

fn get(request: &Request<'_>, path: &str, rules: Rules, store: &Store) -> Reply {
    // With V1 it does not matter, so that clients of V2 work with both.
    if let Some(refusal) = refuse(request, store).filter(|_| rules.version == MmdsVersion::V2) {
        return refusal;
    }
    let is_json = !rules.imds_compat && wants_json(request.headers);
    match store.read(path, if is_json { Form::Json } else { Form::Text }) {
        Ok(body) => Reply { status: 200, body, is_json },
        Err(Missing::Nothing) => Reply::text(404, format!("Resource not found: {path}.")),
        Err(Missing::NoText) => Reply::text(501, "Cannot retrieve value. The value has an unsupported type."),
    }
}

/// What a request without a good token is told.
fn refuse(request: &Request<'_>, store: &Store) -> Option<Reply> {
    match value(request.headers, &TOKEN) {
        None => {
            add(&store.counts().rx_no_token, 1);
            let [ours, other] = TOKEN;
            Some(Reply::text(
                401,
                format!("No MMDS token provided. Use `{ours}` or `{other}` header to specify the session token."),
            ))
        }
        Some(token) if !store.tokens().is_good(token) => {
            add(&store.counts().rx_invalid_token, 1);
            Some(Reply::text(401, "MMDS token not valid."))
        }
        Some(_) => None,
    }
}

/// Whether the client names JSON among what it accepts. Whatever else it names, it gets text.
fn wants_json(headers: &[httparse::Header<'_>]) -> bool {
    let kinds = value(headers, &["Accept"]).into_iter().flat_map(|value| value.split(','));
    let mut kinds = kinds.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    kinds.any(|kind| kind.eq_ignore_ascii_case("application/json"))
}

fn put(request: &Request<'_>, path: &str, store: &Store) -> Reply {
    if request.headers.iter().any(|line| line.name.eq_ignore_ascii_case(FORWARDED)) {
        return Reply::text(400, format!("Invalid header. Reason: Unsupported header name. Key: {FORWARDED}"));
    }
    if !path.split('/').filter(|part| !part.is_empty()).eq(TOKEN_PATH.split('/')) {
        return Reply::text(404, format!("Resource not found: {path}."));
    }
    let Some(ttl) = value(request.headers, &TTL) else {
        let text = format!(
            "Token time to live value not found. Use `{}` or `{}` header to specify the token's lifetime.",
            TTL[0], TTL[1]
        );
        return Reply::text(400, text);
    };
    match ttl.parse().map(|ttl| store.tokens().issue(ttl)) {
        Ok(Ok(token)) => Reply::text(200, token),
        Ok(Err(error)) => Reply::text(400, error.to_string()),
        Err(_) => Reply::text(400, format!("Invalid header. Reason: Invalid value. Key: {}; Value: {ttl}", TTL[0])),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use serde_json::json;

    use super::*;

    const V1: Rules = Rules { version: MmdsVersion::V1, imds_compat: false };
    const V2: Rules = Rules { version: MmdsVersion::V2, imds_compat: false };

    fn store() -> Store {
        let store = Store::new(1000).unwrap();
        store.put(json!({ "name": { "first": "J" }, "age": 4 })).unwrap();
        store
    }

    /// Status and body of the answer to a whole request.
    fn ask(request: &str, rules: Rules, store: &Store) -> (u16, String) {
        let answer = answer(request.as_bytes(), rules, store).expect("an answer");
        let text = String::from_utf8(answer.bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head}");
        assert_eq!(head.contains("Connection: close"), answer.is_last);
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    fn lines(first: &str, headers: &[&str]) -> String {
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        format!("{first} HTTP/1.1\r\n{headers}\r\n")
    }

    #[test]
    fn json_and_text() {
        let store = store();
        let get = |path: &str, accept: &str| ask(&lines(&format!("GET {path}"), &[accept]), V1, &store);
        let (any, json) = ("Accept: */*", "accept: Application/JSON;q=1, */*");
        assert_eq!(get("/name", any), (200, "first".into()));
        assert_eq!(get("/name", json), (200, "{\"first\":\"J\"}".into()));
        assert_eq!(get("http://169.254.169.254/name/first", json), (200, "\"J\"".into()));
        assert_eq!((get("/age", json), get("/age", any).0), ((200, "4".into()), 501));
        assert_eq!(get("/none", any), (404, "Resource not found: /none.".into()));
        let compat = Rules { imds_compat: true, ..V1 };
        assert_eq!(ask(&lines("GET /name", &[json]), compat, &store), (200, "first".into()));
        let answer = answer(lines("GET /name", &[json]).as_bytes(), V1, &store).unwrap();
        assert!(String::from_utf8(answer.bytes).unwrap().contains("Content-Type: application/json\r\n"));
    }

    #[test]
    fn a_token_is_wanted_by_v2_and_given_by_both() {
        let store = store();
        for rules in [V1, V2] {
            for (ttl, with) in TTL.into_iter().zip(TOKEN) {
                let (status, token) = ask(&lines("PUT /latest/api/token", &[&format!("{ttl}: 60")]), rules, &store);
                assert_eq!(status, 200);
                let good = lines("GET /name/first", &[&format!("{}: {token}", with.to_uppercase())]);
                assert_eq!(ask(&good, rules, &store), (200, "J".into()));
            }
        }
        let wrong = lines("GET /name/first", &["X-metadata-token: 00"]);
        assert_eq!(ask(&wrong, V1, &store).0, 200);
        assert_eq!(ask(&wrong, V2, &store), (401, "MMDS token not valid.".into()));
        let (status, text) = ask(&lines("GET /name/first", &[]), V2, &store);
        assert!(status == 401 && text.starts_with("No MMDS token provided."), "{text}");
        let counts = store.counts();
        let counted = [&counts.requests, &counts.rx_invalid_token, &counts.rx_no_token];
        assert_eq!(counted.map(|count| count.load(Ordering::Relaxed)), [11, 2, 1]);
    }

    #[test]
    fn tokens_are_not_given_to_anyone() {
        let store = store();
        let put = |path: &str, headers: &[&str]| ask(&lines(&format!("PUT {path}"), headers), V2, &store);
        let (path, ttl) = ("/latest/api/token", "X-metadata-token-ttl-seconds: 60");
        assert_eq!(put("//latest/api//token/", &[ttl]).0, 200);
        assert_eq!(put(path, &[ttl, "x-forwarded-for: 10.0.0.1"]).0, 400);
        assert_eq!(put("/latest/api", &[ttl]), (404, "Resource not found: /latest/api.".into()));
        for (header, part) in [
            ("Host: x", "time to live value not found"),
            ("X-metadata-token-ttl-seconds: 0", "between 1 and 21600"),
            ("X-aws-ec2-metadata-token-ttl-seconds: 21601", "between 1 and 21600"),
            ("X-metadata-token-ttl-seconds: -1", "Invalid value"),
            ("X-metadata-token-ttl-seconds: \u{e9}", "Invalid value"),
        ] {
            let (status, text) = put(path, &[header]);
            assert!(status == 400 && text.contains(part), "{header}: {text}");
        }
    }

    #[test]
    fn what_is_no_request_of_this_service() {
        let store = store();
        for (request, status) in [
            (lines("POST /name", &[]), 405),
            (lines("HEAD /name", &[]), 405),
            (lines("GET http://", &[]), 400),
            (lines("GET name", &[]), 400),
            (lines("GET /name", &["Content-Length: x"]), 400),
            (lines("GET /name", &["Content-Length: 1", "Content-Length: 2"]), 400),
            (lines("GET /name", &["Content-Length: 18446744073709551615"]), 400),
            (lines("GET /name", &["Content-Length: 9000"]), 413),
            (lines("GET /name", &["Transfer-Encoding: chunked"]), 501),
            (lines("GET /name", &[&"a: b\r\n".repeat(40)]), 400),
            ("\u{1}\r\n\r\n".into(), 400),
            (format!("GET /{} ", "x".repeat(REQUEST_MAX)), 413),
        ] {
            assert_eq!(ask(&request, V1, &store).0, status, "{request}");
        }
        let answer = answer(lines("POST /name", &[]).as_bytes(), V1, &store).unwrap();
        assert!(answer.is_last && String::from_utf8(answer.bytes).unwrap().contains("Allow: GET, PUT\r\n"));
    }

    #[test]
    fn a_request_is_answered_when_it_is_whole() {
        let store = store();
        let request = lines("GET /name", &["Content-Length: 3"]) + "abc";
        for len in 0..request.len() {
            assert_eq!(answer(&request.as_bytes()[..len], V1, &store), None, "{len}");
        }
        let two = request.clone() + &request;
        let first = answer(two.as_bytes(), V1, &store).unwrap();
        assert!(first.taken == request.len() && !first.is_last);
        assert!(answer(b"GET / HTTP/1.0\r\n\r\n", V1, &store).unwrap().is_last);
        assert!(answer(lines("GET /", &["connection: close"]).as_bytes(), V1, &store).unwrap().is_last);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), request in ".{0,40}") {
            let store = store();
            for bytes in [bytes, lines(&format!("GET {request}"), &[&request]).into_bytes()] {
                if let Some(answer) = answer(&bytes, V2, &store) {
                    proptest::prop_assert!(answer.taken <= bytes.len() && answer.taken > 0);
                }
            }
        }
    }
}
