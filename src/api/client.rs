//! A client of the API: one request, one answer, one connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde_json::Value;

use crate::routes::CONSOLE_PROTOCOL;

/// How long the VM may take to answer: building a large one takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest head of an answer.
const HEAD_MAX: u64 = 8 << 10;
/// Longest answer, and what is read of it at once.
const ANSWER_MAX: usize = 16 << 20;
const PIECE: usize = 64 << 10;

/// Why there is no answer, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The VM says no.
    #[error("{0}")]
    Refused(String),
    /// Nobody answers.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The answer makes no sense.
    #[error("the answer is not understood")]
    Nonsense,
}

/// Sends a request and waits for the answer: JSON, or null where there is nothing to say. What is no JSON is a string.
pub fn call(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
    call_within(PATIENCE, socket, method, path, body)
}

/// The same, and all of it, the connection too, takes no longer than `limit`.
pub fn call_within(
    limit: Duration,
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, ClientError> {
    let until = Instant::now() + limit;
    let mut stream = connect(socket, limit)?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = vec![0; PIECE];
    while answer.len() < ANSWER_MAX {
        let left = until.saturating_duration_since(Instant::now());
        // A limit of zero is none to the kernel.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let len = stream.read(&mut piece)?;
        if len == 0 {
            break;
        }
        answer.extend_from_slice(piece.get(..len).unwrap_or_default());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
    }
    read(&answer)
}

/// Connects, and sends, within `limit` each. A server that does not accept any more makes a plain connect(2) wait for ever.
fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Follows what happens to the VM: `show` gets each line of JSON as it comes, until the VM ends.
pub fn follow(socket: &Path, mut show: impl FnMut(&str)) -> Result<(), ClientError> {
    let mut stream = connect(socket, PATIENCE)?;
    stream.write_all(b"GET /vm/events HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let head = read_head(&mut answer)?;
    if !head.starts_with(b"HTTP/1.1 200 ") {
        return Err(ClientError::Refused("the VM does not tell what happens to it".into()));
    }
    loop {
        let mut size = String::new();
        answer.by_ref().take(32).read_line(&mut size)?;
        let size = u64::from_str_radix(size.trim_end(), 16).map_err(|_| ClientError::Nonsense)?;
        let mut piece = Vec::new();
        answer.by_ref().take(size + 2).read_to_end(&mut piece)?;
        let text = piece.strip_suffix(b"\r\n").ok_or(ClientError::Nonsense)?;
        if text.is_empty() {
            return Ok(());
        }
        String::from_utf8_lossy(text).lines().for_each(&mut show);
    }
}

/// Takes the console: what is read from the connection is what the guest writes, what is written to it the guest reads.
pub fn console(socket: &Path) -> Result<UnixStream, ClientError> {
    let mut stream = connect(socket, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = "GET /vm/console HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\n";
    stream.write_all(format!("{head}Upgrade: {CONSOLE_PROTOCOL}\r\n\r\n").as_bytes())?;
    // Byte by byte: what comes behind it is the guest's.
    let head = read_head(&mut BufReader::with_capacity(1, &stream))?;
    if head.starts_with(b"HTTP/1.1 101 ") {
        stream.set_read_timeout(None)?;
        return Ok(stream);
    }
    let mut answer = head;
    stream.take(HEAD_MAX).read_to_end(&mut answer)?;
    Err(read(&answer).err().unwrap_or(ClientError::Nonsense))
}

/// Reads the lines before a body.
fn read_head(answer: &mut impl BufRead) -> Result<Vec<u8>, ClientError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if answer.by_ref().take(HEAD_MAX).read_until(b'\n', &mut head)? == 0 || head.len() as u64 > HEAD_MAX {
            return Err(ClientError::Nonsense);
        }
    }
    Ok(head)
}

fn read(answer: &[u8]) -> Result<Value, ClientError> {
    let mut lines = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut lines);
    let Ok(httparse::Status::Complete(len)) = head.parse(answer) else { return Err(ClientError::Nonsense) };
    let body = answer.get(len..).unwrap_or_default();
    let kind = head.headers.iter().find(|line| line.name.eq_ignore_ascii_case("content-type"));
    let value = match kind.is_some_and(|line| line.value.starts_with(b"text/plain")) {
        _ if body.is_empty() => Ok(Value::Null),
        true => Ok(String::from_utf8_lossy(body).into()),
        false => serde_json::from_slice(body),
    };
    let value: Value = value.map_err(|_| ClientError::Nonsense)?;
    match head.code {
        Some(200..=299) => Ok(value),
        Some(_) => {
            let fault = value.get("fault_message").and_then(Value::as_str);
            Err(ClientError::Refused(fault.unwrap_or("the request was refused").to_owned()))
        }
        None => Err(ClientError::Nonsense),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// One that never accepts, whose queue fills up, and one that answers a byte at a time and never ends.
    #[test]
    fn who_does_not_answer_is_not_waited_for() {
        const LIMIT: Duration = Duration::from_millis(200);
        let room = tempfile::TempDir::new().unwrap();
        let path = room.path().join("deaf");
        let _deaf = UnixListener::bind(&path).unwrap();
        let is_late = |error: ClientError| matches!(error, ClientError::Io(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind()));
        assert!(is_late(call_within(LIMIT, &path, "GET", "/", None).unwrap_err()));
        let mut queue = Vec::new();
        while let Ok(client) = connect(&path, Duration::from_millis(50)) {
            queue.push(client);
        }
        assert!(is_late(call_within(LIMIT, &path, "GET", "/", None).unwrap_err()));
        let path = room.path().join("slow");
        let slow = UnixListener::bind(&path).unwrap();
        let dripping = std::thread::spawn(move || {
            let mut client = slow.accept().unwrap().0;
            while client.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert!(is_late(call_within(LIMIT, &path, "GET", "/", None).unwrap_err()));
        dripping.join().unwrap();
    }

    #[test]
    fn answers_are_json_nothing_or_a_fault() {
        let head = |status: u16| format!("HTTP/1.1 {status} X\r\nServer: x\r\n\r\n");
        assert_eq!(read(format!("{}{{\"a\":1}}", head(200)).as_bytes()).unwrap(), serde_json::json!({ "a": 1 }));
        assert_eq!(read(head(204).as_bytes()).unwrap(), Value::Null);
        let text = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\r\na 1\n";
        assert_eq!(read(text.as_bytes()).unwrap(), "a 1\n");
        let fault = read(format!("{}{{\"fault_message\":\"no\"}}", head(400)).as_bytes()).unwrap_err();
        assert_eq!(fault.to_string(), "no");
        for bad in ["", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\n\r\n{"] {
            assert!(matches!(read(bad.as_bytes()), Err(ClientError::Nonsense)), "{bad}");
        }
    }
}
