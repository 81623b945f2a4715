//! `vmm cp`: files between the host and a container, as tars between this process and the agent.
//!
//! What comes from a container is not trusted: nothing of it is written outside of the place that the user named.

use std::fs;
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use ::container::register::Container;
use ::container::session::{Session, SessionError, Speaker};
use clap::Args;
use protocol::frame::{Kind, MOST_DATA};
use protocol::message::{Done, Order};

use super::run::failed;
use super::verbs::{find, order};

/// What `vmm cp` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct CopyArgs {
    /// CONTAINER:PATH, a path of the host, or - for a tar on standard input
    #[arg(value_name = "FROM")]
    from: String,
    /// CONTAINER:PATH, a path of the host, or - for a tar on standard output
    #[arg(value_name = "TO")]
    to: String,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// In a container: its name and a path from / on.
    Container(String, String),
    /// A path of this host.
    Host(PathBuf),
    /// A tar on a standard stream.
    Stream,
}

impl End {
    /// A path of the host with a colon is written with a / before it, as `./a:b`.
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            _ if text == "-" => Ok(Self::Stream),
            Some((name, path)) if !name.contains('/') && !name.is_empty() => {
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                Ok(Self::Container(name.to_owned(), path))
            }
            _ if text.is_empty() => Err("a path is expected".to_owned()),
            _ => Ok(Self::Host(text.into())),
        }
    }
}

/// Copies.
pub fn copy(args: &CopyArgs) -> ExitCode {
    let done = (|| match (End::parse(&args.from)?, End::parse(&args.to)?) {
        (End::Container(name, path), to) if !matches!(to, End::Container(..)) => get(&find(&name)?, path, &to),
        (from, End::Container(name, path)) if !matches!(from, End::Container(..)) => put(&from, &find(&name)?, path),
        _ => Err("one of FROM and TO is in a container: CONTAINER:PATH".to_owned()),
    })();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why),
    }
}

fn get(container: &Container, path: String, to: &End) -> Result<(), String> {
    let mut from = Pieces {
        session: order(container, &Order::Get { id: container.record.name.clone(), path })?,
        left: Cursor::default(),
        done: None,
    };
    let wrote = match to {
        End::Host(to) => unpack(&mut from, to).map_err(|error| format!("{}: {error}", to.display())),
        _ => io::copy(&mut from, &mut io::stdout().lock()).map(drop).map_err(|error| error.to_string()),
    };
    // What the agent says explains more.
    let rest = io::copy(&mut from, &mut io::sink());
    match from.done {
        Some(Done::Failed(failure)) => Err(failure.why),
        Some(Done::Ok) => wrote,
        None => Err(rest.err().map_or_else(|| "the agent hung up".to_owned(), |error| error.to_string())),
    }
}

/// Into a directory, or beside it under its name where there is none.
fn unpack(from: &mut Pieces, to: &Path) -> io::Result<()> {
    let name = if to.is_dir() { None } else { to.file_name() };
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let into = if name.is_some() { parent } else { to };
    let mut archive = tar::Archive::new(from);
    if let Some(name) = name {
        // Names begin with the path's last part, which becomes the one that is wanted: in a folder of its own, so that
        // nothing of the container leads out of it.
        let folder = tempfile::Builder::new().prefix(".vmm-cp-").tempdir_in(into)?;
        archive.unpack(folder.path())?;
        let Some(only) = fs::read_dir(folder.path())?.next() else { return Ok(()) };
        return fs::rename(only?.path(), into.join(name));
    }
    archive.unpack(into)
}

fn put(from: &End, container: &Container, path: String) -> Result<(), String> {
    let path = path.trim_end_matches('/');
    let path = if path.is_empty() { "/" } else { path }.to_owned();
    if let End::Host(from) = from {
        fs::symlink_metadata(from).map_err(|error| format!("{}: {error}", from.display()))?;
    }
    let mut session = order(container, &Order::Put { id: container.record.name.clone(), path })?;
    let speaker = session.speaker().map_err(|error| error.to_string())?;
    let sent = send(from, Frames(speaker));
    match session.message().map_err(|error: SessionError| error.to_string())? {
        Done::Failed(failure) => Err(failure.why),
        Done::Ok => sent.map_err(|error| error.to_string()),
    }
}

fn send(from: &End, mut to: Frames) -> io::Result<()> {
    let sent = match from {
        End::Host(from) => pack(from, &mut to),
        _ => io::copy(&mut io::stdin().lock(), &mut BufWriter::with_capacity(MOST_DATA, &mut to)).map(drop),
    };
    to.0.input(&[]).map_err(io::Error::other)?;
    sent
}

fn pack(from: &Path, to: &mut Frames) -> io::Result<()> {
    // `.` and what ends with it has no name of its own: what is in it is copied.
    let name = match from.components().next_back() {
        Some(Component::Normal(name)) => PathBuf::from(name),
        _ => PathBuf::from("."),
    };
    let mut archive = tar::Builder::new(BufWriter::with_capacity(MOST_DATA, to));
    archive.follow_symlinks(false);
    match fs::symlink_metadata(from)?.is_dir() {
        true => archive.append_dir_all(&name, from)?,
        false => archive.append_path_with_name(from, &name)?,
    }
    archive.into_inner()?.flush()
}

/// Writes go to the agent.
struct Frames(Speaker);

impl Write for Frames {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = bytes.get(..bytes.len().min(MOST_DATA)).unwrap_or_default();
        self.0.input(part).map_err(io::Error::other)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what the agent sends, until it says that it is done.
struct Pieces {
    session: Session,
    left: Cursor<Vec<u8>>,
    done: Option<Done>,
}

impl Read for Pieces {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.left.read(to)?;
            if count > 0 || self.done.is_some() || to.is_empty() {
                return Ok(count);
            }
            let frame = self.session.hear().map_err(io::Error::other)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            match frame.kind {
                Kind::Message => self.done = Some(frame.open().map_err(io::Error::other)?),
                Kind::Stdout => self.left = Cursor::new(frame.body),
                Kind::Stderr | Kind::Stdin => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let container = |name: &str, path: &str| Ok(End::Container(name.to_owned(), path.to_owned()));
        assert_eq!(End::parse("db:/etc/x"), container("db", "/etc/x"));
        assert_eq!(End::parse("db:etc"), container("db", "/etc"));
        assert_eq!(End::parse("./a:b"), Ok(End::Host("./a:b".into())));
        assert_eq!(End::parse("a"), Ok(End::Host("a".into())));
        assert_eq!(End::parse("-"), Ok(End::Stream));
        assert!(End::parse("").is_err());
    }
}
