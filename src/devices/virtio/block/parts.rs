//! A disk that is made of several files of the host: each is a partition, which the guest may only read.
//!
//! The control thread opens the files and makes the table; the disk's worker splits the requests. What is in no file, the
//! partition table and the gaps, is in one of memory that is as large as the disk and nearly all hole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::config::DriveConfig;
use super::file::{self, DiskFile};
use super::gpt::{Gpt, Partition};
use super::transfer::move_all;
use crate::memory::GuestRam;
use crate::virtio::OpenError;
use crate::virtio::chain::{Segment, part};
use crate::virtio::pieces::Direction;

/// One file's place on the disk.
struct Part {
    /// Where it begins, bytes.
    start: u64,
    /// Bytes of the file as it was opened.
    len: u64,
    file: File,
}

/// The files, in the order of their places; none of them is empty.
pub struct Parts(Vec<Part>);

/// Bytes of the disk that lie in one file.
struct Span<'a> {
    /// The file; none: the one of the table and the gaps.
    file: Option<&'a File>,
    /// Where in it.
    offset: u64,
    /// How many: at least one.
    len: u64,
}

impl Parts {
    /// Opens the files of `config`, and makes the file that has everything else; the latter's size is the disk's.
    pub fn open(config: &DriveConfig) -> Result<(Self, File, u64), OpenError> {
        let mut files = Vec::new();
        for partition in &config.partitions {
            let opening = file::opening(&config.drive_id, &partition.path_on_host);
            let (file, _, len) = file::open_image(&opening, config)?;
            if len == 0 {
                return Err(opening.error("the file is empty; a partition has at least one byte"));
            }
            files.push((file, len));
        }
        let names = config.partitions.iter().map(|it| it.name.as_deref().unwrap_or_default());
        let partitions: Vec<_> = names.zip(&files).map(|(name, (_, len))| Partition { name, len: *len }).collect();
        let failed = |why: String| OpenError::new(format!("open disk '{}': {why}", config.drive_id));
        let gpt = Gpt::of(&partitions).ok_or_else(|| failed("its partitions are too large for one disk".to_owned()))?;
        let frame = frame(&gpt).map_err(|error| failed(format!("create its partition table: {error}")))?;
        let placed = gpt.starts.into_iter().zip(files);
        let parts = placed.map(|(start, (file, len))| Part { start, len, file }).collect();
        Ok((Self(parts), frame, gpt.size))
    }

    /// Takes the files' locks.
    pub fn lock(&self, config: &DriveConfig) -> Result<(), OpenError> {
        config.partitions.iter().zip(&self.0).try_for_each(|(partition, part)| {
            file::opening(&config.drive_id, &partition.path_on_host).lock(&part.file, config.is_read_only)
        })
    }

    /// The first of the `len` bytes at `offset`: those that lie in one file.
    fn span(&self, offset: u64, len: u64) -> Span<'_> {
        let next = self.0.partition_point(|part| part.start <= offset);
        let part = next.checked_sub(1).and_then(|place| self.0.get(place));
        if let Some(part) = part {
            let inside = offset.saturating_sub(part.start);
            let left = part.len.saturating_sub(inside);
            if left > 0 {
                return Span { file: Some(&part.file), offset: inside, len: len.min(left) };
            }
        }
        let gap = self.0.get(next).map_or(u64::MAX, |next| next.start.saturating_sub(offset));
        Span { file: None, offset, len: len.min(gap) }
    }
}

/// A file of memory with the table of `gpt` and holes, which read as zeros and take no memory.
fn frame(gpt: &Gpt) -> io::Result<File> {
    let file = File::from(memfd_create("partition-table", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(gpt.size)?;
    file.write_all_at(&gpt.primary, 0)?;
    let backup = u64::try_from(gpt.backup.len()).unwrap_or(u64::MAX);
    file.write_all_at(&gpt.backup, gpt.size.saturating_sub(backup))?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(file)
}

impl DiskFile {
    /// Moves all bytes of `segments` from the files of `parts` at `offset`, or fails. The requests of a disk that is only
    /// read are reads; a write would fail, as no file is open for it.
    pub(super) fn move_parts(
        &mut self,
        direction: Direction,
        memory: &GuestRam,
        segments: impl Iterator<Item = Segment> + Clone,
        offset: u64,
    ) -> io::Result<()> {
        let Self { file, pieces, parts: Some(parts), .. } = self else { return Err(io::ErrorKind::Unsupported.into()) };
        let len: u64 = segments.clone().map(|segment| u64::from(segment.len)).sum();
        let mut done = 0_u64;
        while done < len {
            let span = parts.span(offset.saturating_add(done), len.saturating_sub(done));
            let end = done.saturating_add(span.len);
            pieces.clear();
            pieces.add(direction, memory, part(segments.clone(), done..end))?;
            move_all(span.file.unwrap_or(file), pieces, direction, span.offset)?;
            done = end;
        }
        Ok(())
    }
}
