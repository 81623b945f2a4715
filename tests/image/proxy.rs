//! A registry that misbehaves: what a real one answers, changed on its way. One thread for each connection, which has one
//! request.

use std::collections::HashMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Changes a body.
pub type Edit = Arc<dyn Fn(&mut Vec<u8>) + Send + Sync>;

/// What is done with a request.
pub enum Act {
    /// The registry answers.
    Pass,
    /// It answers, and the connection breaks after so many bytes of the body.
    Cut(usize),
    /// It answers, and the body stands still after so many bytes.
    Stall(usize),
    /// It answers after a while.
    Slow,
    /// It answers as if nobody had asked for a range.
    WithoutRange,
    /// It answers with another body, and nobody says what its digest is.
    Edit(Edit),
    /// This is the answer: a head, and perhaps a body.
    Answer(String),
}

impl Act {
    /// An answer with an index, or a document like it.
    pub fn json(status: u16, body: &str) -> Self {
        let head = "content-type: application/vnd.oci.image.index.v1+json";
        Self::Answer(format!("HTTP/1.1 {status} X\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    }
}

/// The head of a request.
pub struct Request {
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A proxy that runs until the test ends.
pub struct Proxy {
    port: u16,
    log: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Before the registry on `upstream`. `rule` gets a request, and how often the same path was asked for before.
    pub fn start(upstream: u16, rule: impl Fn(&Request, usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its number").port();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (rule, seen, noted) = (Arc::new(rule), Arc::new(Mutex::new(HashMap::new())), log.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (rule, seen, noted) = (rule.clone(), seen.clone(), noted.clone());
                // What breaks here breaks for the client, which is looked at.
                thread::spawn(move || serve(stream.ok()?, upstream, &*rule, &seen, &noted));
            }
        });
        Self { port, log }
    }

    /// Requests so far, with their ranges.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("the log").clone()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "127.0.0.1:{}", self.port)
    }
}

fn serve(
    mut client: TcpStream,
    upstream: u16,
    rule: &dyn Fn(&Request, usize) -> Act,
    seen: &Mutex<HashMap<String, usize>>,
    log: &Mutex<Vec<String>>,
) -> Option<()> {
    let (head, rest) = head(&mut client)?;
    let request = request(&head)?;
    let range = request.header("range").unwrap_or_default();
    log.lock().ok()?.push(format!("{} {} {range}", request.method, request.path));
    let before = {
        let mut seen = seen.lock().ok()?;
        let count = seen.entry(request.path.clone()).or_insert(0usize);
        *count += 1;
        *count - 1
    };
    let act = rule(&request, before);
    if let Act::Answer(answer) = act {
        let answer = if answer.contains("\r\n\r\n") { answer } else { answer + "\r\n" };
        let answer = answer.replacen("\r\n", "\r\nconnection: close\r\n", 1);
        return client.write_all(answer.as_bytes()).ok();
    }
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).ok()?;
    let dropped: &[_] = if matches!(act, Act::WithoutRange) { &["connection", "range"] } else { &["connection"] };
    server.write_all(changed(&head, dropped, "connection: close\r\n").as_bytes()).ok()?;
    server.write_all(&rest).ok()?;
    send_body(&request, rest.len(), &mut client, &mut server)?;
    let (head, mut body) = self::head(&mut server)?;
    server.read_to_end(&mut body).ok()?;
    answer(&act, &head, body, &mut client)
}

fn answer(act: &Act, head: &str, mut body: Vec<u8>, client: &mut TcpStream) -> Option<()> {
    match act {
        Act::Cut(at) | Act::Stall(at) if body.len() > *at => {
            client.write_all(head.as_bytes()).ok()?;
            client.write_all(&body[..*at]).ok()?;
            if matches!(act, Act::Stall(_)) {
                // Until the client has gone: it sends nothing more.
                let _ = client.read(&mut [0]);
            }
            Some(())
        }
        Act::Edit(edit) => {
            edit(&mut body);
            let length = format!("content-length: {}\r\n", body.len());
            let head = changed(head, &["content-length", "docker-content-digest", "etag"], &length);
            client.write_all(head.as_bytes()).ok()?;
            client.write_all(&body).ok()
        }
        act => {
            if matches!(act, Act::Slow) {
                thread::sleep(Duration::from_millis(300));
            }
            client.write_all(head.as_bytes()).ok()?;
            client.write_all(&body).ok()
        }
    }
}

/// The rest of what a client sends.
fn send_body(request: &Request, sent: usize, client: &mut TcpStream, server: &mut TcpStream) -> Option<()> {
    let length: u64 = request.header("content-length").map_or(Some(0), |length| length.parse().ok())?;
    let rest = length.saturating_sub(sent as u64);
    std::io::copy(&mut client.take(rest), server).ok().map(drop)
}

/// Up to the empty line, and what came with it.
fn head(from: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let count = from.read(&mut buffer).ok().filter(|&count| count > 0)?;
        bytes.extend(&buffer[..count]);
        // RFC 8446, 5.1: a client that tries whether there is TLS. There is none.
        if bytes[0] == 22 {
            return None;
        }
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Some((String::from_utf8(bytes).ok()?, rest));
        }
    }
}

fn request(head: &str) -> Option<Request> {
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(key, value)| (key.to_lowercase(), value.trim().to_owned())).collect();
    Some(Request { method: first.next()?.to_owned(), path: first.next()?.to_owned(), headers })
}

/// A head without some lines, and with another.
fn changed(head: &str, dropped: &[&str], more: &str) -> String {
    let is_dropped = |line: &str| line.split_once(':').is_some_and(|(key, _)| dropped.contains(&&*key.to_lowercase()));
    let kept: String = head.split_inclusive("\r\n").filter(|line| !is_dropped(line) && *line != "\r\n").collect();
    format!("{kept}{more}\r\n")
}
