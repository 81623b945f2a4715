//! What a container wrote, kept: a line of JSON for each piece, in the order in which it came.
//!
//! Two files of a limited size: `log`, and `log.1` with what came before it. A container that writes without an end does
//! not fill the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use protocol::frame::Kind;
use serde::{Deserialize, Serialize};

use crate::register::now_ms;

/// The files' names.
const NAME: &str = "log";
const OLDER: &str = "log.1";
/// Most bytes of one of them.
pub const MOST: u64 = 16 << 20;

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// When it came, ms since the epoch.
    pub at_ms: u64,
    /// Whether it is of the standard error.
    pub is_error: bool,
    /// What was written.
    pub bytes: Vec<u8>,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    at_ms: u64,
    stream: Stream,
    /// What was written, where it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// The same in base 64, where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Stream {
    Stdout,
    Stderr,
}

/// The log of a container of this process.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    file: File,
    size: u64,
    most: u64,
}

impl Log {
    /// A new one in this folder.
    pub fn create(folder: &Path) -> io::Result<Self> {
        Self::with_limit(folder, MOST)
    }

    fn with_limit(folder: &Path, most: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(folder.join(NAME))?;
        Ok(Self { folder: folder.to_owned(), size: file.metadata()?.len(), file, most })
    }

    /// Notes what came.
    pub fn write(&mut self, kind: Kind, bytes: &[u8]) -> io::Result<()> {
        let text = str::from_utf8(bytes).ok().map(str::to_owned);
        let base64 = text.is_none().then(|| STANDARD.encode(bytes));
        let stream = if kind == Kind::Stderr { Stream::Stderr } else { Stream::Stdout };
        let mut line = serde_json::to_vec(&Line { at_ms: now_ms(), stream, text, base64 })?;
        line.push(b'\n');
        if self.size > 0 && self.size.saturating_add(line.len() as u64) > self.most {
            fs::rename(self.folder.join(NAME), self.folder.join(OLDER))?;
            *self = Self::with_limit(&self.folder, self.most)?;
        }
        self.file.write_all(&line)?;
        self.size = self.size.saturating_add(line.len() as u64);
        Ok(())
    }
}

/// Reads a log, also one that still grows.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    file: Option<BufReader<File>>,
    /// The beginning of a line whose end is not written yet.
    partial: Vec<u8>,
}

impl Reader {
    /// From the oldest piece that there is.
    pub fn open(folder: &Path) -> Self {
        let older = File::open(folder.join(OLDER)).ok();
        Self { folder: folder.to_owned(), file: older.map(BufReader::new), partial: Vec::new() }
    }

    /// The next piece; none when nothing more is there at the moment.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        loop {
            if self.file.is_none() {
                self.file = File::open(self.folder.join(NAME)).ok().map(BufReader::new);
            }
            let Some(file) = &mut self.file else { return Ok(None) };
            let count = file.read_until(b'\n', &mut self.partial)?;
            if self.partial.ends_with(b"\n") {
                let line: Line = serde_json::from_slice(&std::mem::take(&mut self.partial))?;
                return Ok(Some(line.piece()?));
            }
            if count == 0 && !self.moved_on()? {
                return Ok(None);
            }
        }
    }

    /// Whether another file has taken this one's place; it is read from then on.
    fn moved_on(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(false) };
        let id = |facts: fs::Metadata| (facts.dev(), facts.ino());
        let now = match File::open(self.folder.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            now => now?,
        };
        let facts = file.get_ref().metadata()?;
        if id(now.metadata()?) == id(facts.clone()) || file.stream_position()? < facts.len() {
            return Ok(false);
        }
        (self.file, self.partial) = (Some(BufReader::new(now)), Vec::new());
        Ok(true)
    }
}

impl Line {
    fn piece(self) -> io::Result<Piece> {
        let bytes = match (self.text, self.base64) {
            (Some(text), _) => text.into_bytes(),
            (None, base64) => STANDARD.decode(base64.unwrap_or_default()).map_err(io::Error::other)?,
        };
        Ok(Piece { at_ms: self.at_ms, is_error: self.stream == Stream::Stderr, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_comes_back_also_while_it_grows() {
        let room = tempfile::tempdir().unwrap();
        let mut reader = Reader::open(room.path());
        assert_eq!(reader.next_piece().unwrap(), None);
        let mut log = Log::create(room.path()).unwrap();
        log.write(Kind::Stdout, b"one\n").unwrap();
        let piece = reader.next_piece().unwrap().unwrap();
        assert_eq!((piece.is_error, piece.bytes.as_slice()), (false, &b"one\n"[..]));
        assert_eq!(reader.next_piece().unwrap(), None);
        log.write(Kind::Stderr, b"\xff\0").unwrap();
        let piece = reader.next_piece().unwrap().unwrap();
        assert_eq!((piece.is_error, piece.bytes.as_slice()), (true, &b"\xff\0"[..]));
    }

    #[test]
    fn an_endless_log_takes_two_files_and_is_followed_through_both() {
        let room = tempfile::tempdir().unwrap();
        let mut log = Log::with_limit(room.path(), 1000).unwrap();
        let mut follower = Reader::open(room.path());
        let mut followed = Vec::new();
        for number in 0..100_u32 {
            log.write(Kind::Stdout, format!("{number} ").as_bytes()).unwrap();
            while let Some(piece) = follower.next_piece().unwrap() {
                followed.extend(piece.bytes);
            }
        }
        let all: String = (0..100).map(|number| format!("{number} ")).collect();
        assert_eq!(String::from_utf8(followed).unwrap(), all);
        let size = |name: &str| fs::metadata(room.path().join(name)).unwrap().len();
        assert!(size("log") <= 1000 && size("log.1") <= 1000);
        let mut late = Reader::open(room.path());
        let mut kept = Vec::new();
        while let Some(piece) = late.next_piece().unwrap() {
            kept.extend(piece.bytes);
        }
        assert!(all.as_bytes().ends_with(&kept) && kept.len() > 20, "{}", String::from_utf8_lossy(&kept));
    }
}
