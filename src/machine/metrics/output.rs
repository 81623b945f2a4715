//! Where lines of metrics go: a file, or a FIFO whose reader may be slow or gone. Nothing here waits, and no line is cut in
//! two by another. The control thread writes.

use std::fs::File;
use std::io::{ErrorKind, Write};

/// What became of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is written, or its beginning is and the rest comes first next time.
    Whole,
    /// There is no room for it.
    Missed,
    /// The file takes no lines.
    Failed,
}

/// A file that does not block.
pub struct Output {
    file: File,
    /// The end of a line whose beginning is written.
    rest: Vec<u8>,
}

impl Output {
    /// Writes to `file`, which was opened with O_NONBLOCK.
    pub fn new(file: File) -> Self {
        Self { file, rest: Vec::new() }
    }

    /// Writes a line.
    pub fn write(&mut self, line: &[u8]) -> Written {
        let rest = std::mem::take(&mut self.rest);
        match self.some(&rest) {
            Ok(done) if done == rest.len() => {}
            Ok(done) => {
                self.rest = rest.get(done..).unwrap_or_default().to_vec();
                return Written::Missed;
            }
            Err(_) => return Written::Failed,
        }
        match self.some(line) {
            Ok(0) => Written::Missed,
            Ok(done) => {
                self.rest = line.get(done..).unwrap_or_default().to_vec();
                Written::Whole
            }
            Err(_) => Written::Failed,
        }
    }

    /// Writes what can be written now, and says how much that was.
    fn some(&self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match (&self.file).write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(now) => done += now,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn a_full_pipe_holds_nobody_up_and_gets_whole_lines() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let mut output = Output::new(File::from(writer));
        let line = |letter: u8| [vec![letter; 30_000], vec![b'\n']].concat();
        let before = (0..1000).take_while(|_| output.write(&line(b'a')) == Written::Whole).count();
        assert!((1..1000).contains(&before), "{before}");
        assert_eq!(output.write(&line(b'b')), Written::Missed);
        // The reader comes, and the next line finds room; who writes it goes away then.
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        while output.write(&line(b'c')) != Written::Whole || !output.rest.is_empty() {
            std::thread::yield_now();
        }
        drop(output);
        let text = reading.join().unwrap();
        let lines: Vec<_> = text.lines().map(|line| (&line[..1], line.len())).collect();
        assert_eq!(lines[..before], vec![("a", 30_000); before]);
        assert!(lines[before..].iter().all(|line| *line == ("c", 30_000)) && lines.len() > before);
    }

    #[test]
    fn a_pipe_without_a_reader_fails() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(Output::new(File::from(OwnedFd::from(writer))).write(b"x\n"), Written::Failed);
    }
}
