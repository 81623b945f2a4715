//! What goes into a guest that runs containers: the agent, as the initial RAM file system, with modules of the kernel where
//! it needs some, and the container runtime, as a partition. Both are programs that lie beside this one.
//!
//! They are made once for each build of the program, and for each kernel with modules, and kept in the store's `guest` folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, ModeFileType, trailer};
use protocol::modules::{FOLDER, Line, ORDER};
use thiserror::Error;

use crate::kernel::{self, Kernel};
use crate::layer::{self, Compression, Limits};
use crate::modules::{Index, ModulesError, Needs, contents};

/// The folder of the programs, instead of that of this program.
const VARIABLE: &str = "VMM_LIB";
/// The programs: PID 1 of a guest, and what makes containers in it.
const AGENT: &str = "vmm-agent";
/// See above; also its name in the partition.
pub const RUNTIME: &str = "vmm-runtime";

/// Why a guest's parts cannot be had.
#[derive(Debug, Error)]
pub enum PartsError {
    /// A program is not there.
    #[error("{} is missing: it comes with vmm and lies beside it; {VARIABLE} names another folder", .0.display())]
    Missing(PathBuf),
    /// The host refuses something.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// The partition cannot be made.
    #[error("make the partition with the container runtime: {0}")]
    Layer(#[from] layer::LayerError),
    /// The kernel's modules cannot be had.
    #[error(transparent)]
    Modules(#[from] ModulesError),
}

/// Where the parts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The initial RAM file system.
    pub initrd: PathBuf,
    /// A file system with the runtime.
    pub runtime: PathBuf,
}

impl Parts {
    /// Finds them in `kept`, or makes them there, for a VM with this kernel.
    pub fn ready(kept: &Path, kernel: &Kernel, needs: Needs) -> Result<Self, PartsError> {
        fs::create_dir_all(kept).map_err(|error| PartsError::Io(format!("make {}", kept.display()), error))?;
        let initrd = match &kernel.modules {
            None => initrd(AGENT, kept)?,
            Some(folder) => initrd_with_modules(kept, kernel, folder, needs)?,
        };
        let runtime = made(&program(RUNTIME)?, kept, "erofs", write_runtime)?;
        Ok(Self { initrd, runtime })
    }
}

/// An initial RAM file system whose init is the program `name`; found in `kept`, or made there.
pub fn initrd(name: &str, kept: &Path) -> Result<PathBuf, PartsError> {
    made(&program(name)?, kept, "cpio", |program, to| Ok(write_initrd(program, &[], to)?))
}

/// The agent's, with the modules in `folder` that the kernel needs. It is another one when depmod(8) was run again.
fn initrd_with_modules(kept: &Path, kernel: &Kernel, folder: &Path, needs: Needs) -> Result<PathBuf, PartsError> {
    let list = folder.join(kernel::LIST);
    let facts = fs::metadata(&list).map_err(|error| ModulesError::Folder { path: list, error })?;
    let release = kernel::release(&kernel.path);
    let version = release.as_deref().unwrap_or("kernel");
    let kind = format!("{version}-{:x}-{}-{}.cpio", facts.dev(), stamp(&facts), needs.letters());
    made(&program(AGENT)?, kept, &kind, |program, to| {
        let mut files = Vec::new();
        let mut order = String::new();
        for module in needs.modules(&Index::read(folder)?)? {
            Line { name: &module.name, optional: module.optional }.add(&mut order);
            files.push((module.name, contents(&module.path, release.as_deref())?));
        }
        files.push((ORDER.to_owned(), order.into_bytes()));
        Ok(write_initrd(program, &files, to)?)
    })
}

/// A program that comes with this one.
pub fn program(name: &str) -> Result<PathBuf, PartsError> {
    Ok(folder()?.join(name))
}

fn folder() -> Result<PathBuf, PartsError> {
    if let Some(named) = std::env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        return Ok(named.into());
    }
    let own = std::env::current_exe().map_err(|error| PartsError::Io("find this program".to_owned(), error))?;
    Ok(own.parent().map(Path::to_owned).unwrap_or_default())
}

/// What `make` makes of a program; kept under a name that changes when the program does.
fn made(
    program: &Path,
    kept: &Path,
    kind: &str,
    make: impl FnOnce(&Path, &mut File) -> Result<(), Making>,
) -> Result<PathBuf, PartsError> {
    let facts = match fs::metadata(program) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(PartsError::Missing(program.to_owned())),
        facts => facts.map_err(|error| PartsError::Io(format!("look at {}", program.display()), error))?,
    };
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let path = kept.join(format!("{name}-{}.{kind}", stamp(&facts)));
    if path.exists() {
        return Ok(path);
    }
    let failed = |error: io::Error| PartsError::Io(format!("write {}", path.display()), error);
    let mut file = tempfile::NamedTempFile::new_in(kept).map_err(failed)?;
    make(program, file.as_file_mut()).map_err(|error| match error {
        Making::Io(error) => failed(error),
        Making::Layer(error) => error.into(),
        Making::Modules(error) => error.into(),
    })?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    Ok(path)
}

/// Another one when the file is another one.
pub fn stamp(facts: &fs::Metadata) -> String {
    format!("{:x}-{:x}-{:x}{:08x}", facts.ino(), facts.size(), facts.mtime(), facts.mtime_nsec())
}

/// Why one could not be made.
enum Making {
    Io(io::Error),
    Layer(layer::LayerError),
    Modules(ModulesError),
}

impl From<io::Error> for Making {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ModulesError> for Making {
    fn from(error: ModulesError) -> Self {
        Self::Modules(error)
    }
}

/// An archive with the program as /init, the console that the kernel opens for it, and modules
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
fn write_initrd(program: &Path, modules: &[(String, Vec<u8>)], to: &mut File) -> io::Result<()> {
    let mut from = File::open(program)?;
    let size = u32::try_from(from.metadata()?.len()).map_err(|_| io::Error::other("the program is too large"))?;
    let mut out = Builder::new("dev").mode(0o755).set_mode_file_type(ModeFileType::Directory).write(to, 0).finish()?;
    let console = Builder::new("dev/console").mode(0o600).set_mode_file_type(ModeFileType::Char);
    out = console.rdev_major(5).rdev_minor(1).write(out, 0).finish()?;
    let mut init = Builder::new("init").mode(0o755).set_mode_file_type(ModeFileType::Regular).write(out, size);
    io::copy(&mut from, &mut init)?;
    out = init.finish()?;
    let folder = FOLDER.trim_start_matches('/');
    if !modules.is_empty() {
        out = Builder::new(folder).mode(0o700).set_mode_file_type(ModeFileType::Directory).write(out, 0).finish()?;
    }
    for (name, bytes) in modules {
        let size = u32::try_from(bytes.len()).map_err(|_| io::Error::other("a module is too large"))?;
        let name = format!("{folder}/{name}");
        let mut file = Builder::new(&name).mode(0o600).set_mode_file_type(ModeFileType::Regular).write(out, size);
        file.write_all(bytes)?;
        out = file.finish()?;
    }
    trailer(out)?.flush()
}

/// A file system with the runtime in its root.
fn write_runtime(program: &Path, to: &mut File) -> Result<(), Making> {
    let mut header = tar::Header::new_gnu();
    let mut from = File::open(program)?;
    header.set_size(from.metadata()?.len());
    header.set_mode(0o755);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, RUNTIME, &mut from)?;
    let bytes = archive.into_inner()?;
    layer::convert(bytes.as_slice(), Compression::None, to, &Limits::default()).map(|_| ()).map_err(Making::Layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initrd_has_the_program_and_the_modules() {
        let folder = tempfile::tempdir().unwrap();
        let (program, archive) = (folder.path().join("program"), folder.path().join("archive"));
        fs::write(&program, "a program").unwrap();
        let modules = [("erofs".to_owned(), b"\x7fELF".to_vec()), ("order".to_owned(), b"erofs\n".to_vec())];
        let read = |modules: &[(String, Vec<u8>)]| {
            write_initrd(&program, modules, &mut File::create(&archive).unwrap()).unwrap();
            let mut files = Vec::new();
            let mut rest = io::Cursor::new(fs::read(&archive).unwrap());
            loop {
                let mut entry = cpio::newc::Reader::new(rest).unwrap();
                let mut bytes = Vec::new();
                io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
                if entry.entry().is_trailer() {
                    return files;
                }
                files.push((entry.entry().name().to_owned(), String::from_utf8(bytes).unwrap()));
                rest = entry.finish().unwrap();
            }
        };
        let of = |files: &[(&str, &str)]| {
            files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect::<Vec<_>>()
        };
        let plain = [("dev", ""), ("dev/console", ""), ("init", "a program")];
        assert_eq!(read(&[]), of(&plain));
        let more = [("modules", ""), ("modules/erofs", "\x7fELF"), ("modules/order", "erofs\n")];
        assert_eq!(read(&modules), of(&[&plain[..], &more[..]].concat()));
    }
}
