//! `vmm logs`: what a container has written, and what it writes.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use ::container::output::{Piece, Reader};
use ::container::register::{Container, State};
use clap::Args;

use super::run::failed;
use super::verbs::find;
use crate::log::timestamp;

/// How often one who follows looks.
const LOOK: Duration = Duration::from_millis(50);

/// What `vmm logs` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct LogsArgs {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// Begin so many lines before the end
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Prints a log.
pub fn logs(args: &LogsArgs) -> ExitCode {
    match find(&args.container).and_then(|container| print(args, &container).map_err(|error| error.to_string())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why),
    }
}

/// Pieces on this process's streams.
struct Printer {
    timestamps: bool,
    /// Of standard output and error: whether a line begins.
    begins: [bool; 2],
}

impl Printer {
    fn print(&mut self, piece: &Piece) -> io::Result<()> {
        let mut to: Box<dyn Write> =
            if piece.is_error { Box::new(io::stderr().lock()) } else { Box::new(io::stdout().lock()) };
        let [out, errors] = &mut self.begins;
        let begins = if piece.is_error { errors } else { out };
        for line in piece.bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.timestamps && *begins {
                write!(to, "{}Z ", timestamp(Duration::from_millis(piece.at_ms)))?;
            }
            to.write_all(line)?;
            *begins = line.ends_with(b"\n");
        }
        to.flush()
    }
}

fn print(args: &LogsArgs, container: &Container) -> io::Result<()> {
    let mut printer = Printer { timestamps: args.timestamps, begins: [true; 2] };
    let mut reader = Reader::open(container.folder());
    if let Some(lines) = args.tail {
        let mut pieces = Vec::new();
        while let Some(piece) = reader.next_piece()? {
            pieces.push(piece);
        }
        last(&mut pieces, lines);
        pieces.iter().try_for_each(|piece| printer.print(piece))?;
    }
    loop {
        // Before the last look: what was written before the end is there then.
        let ended = matches!(container.state(), State::Ended(_));
        while let Some(piece) = reader.next_piece()? {
            match printer.print(&piece) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                done => done?,
            }
        }
        if !args.follow || ended {
            return Ok(());
        }
        sleep(LOOK);
    }
}

/// Leaves the last lines of these.
fn last(pieces: &mut Vec<Piece>, lines: usize) {
    if lines == 0 {
        return pieces.clear();
    }
    let mut left = lines;
    let mut at_end = true;
    for (number, piece) in pieces.iter_mut().enumerate().rev() {
        for (at, _) in piece.bytes.clone().iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            // The newline at the very end begins no line.
            if std::mem::take(&mut at_end) && at + 1 == piece.bytes.len() {
                continue;
            }
            if left == 1 {
                piece.bytes.drain(..=at);
                pieces.drain(..number);
                return;
            }
            left -= 1;
        }
        at_end = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_pieces() {
        let of = |texts: &[&str], lines| {
            let piece = |text: &&str| Piece { at_ms: 0, is_error: false, bytes: text.as_bytes().to_vec() };
            let mut pieces: Vec<_> = texts.iter().map(piece).collect();
            last(&mut pieces, lines);
            let bytes: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(of(&["a\nb\n", "c\n"], 1), "c\n");
        assert_eq!(of(&["a\nb", "c\n"], 1), "bc\n");
        assert_eq!(of(&["a\nb\nc"], 1), "c");
        assert_eq!(of(&["a\n", "b\n", "c\n"], 2), "b\nc\n");
        assert_eq!(of(&["a\n", "b\n"], 9), "a\nb\n");
        assert_eq!(of(&["a\n", "b\n"], 0), "");
        assert_eq!(of(&[], 3), "");
    }
}
