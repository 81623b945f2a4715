//! What goes into a guest that runs containers: the agent, as the initial RAM file system, and the container runtime, as
//! a partition. Both are programs that lie beside this one.
//!
//! They are made once for each build of the program and kept in the store's `guest` folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, ModeFileType, trailer};
use thiserror::Error;

use crate::layer::{self, Compression, Limits};

/// The folder of the programs, instead of that of this program.
const VARIABLE: &str = "VMM_LIB";
/// The programs.
const AGENT: &str = "vmm-agent";
const RUNTIME: &str = "vmm-runtime";

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
    /// Finds them in `kept`, or makes them there.
    pub fn ready(kept: &Path) -> Result<Self, PartsError> {
        fs::create_dir_all(kept).map_err(|error| PartsError::Io(format!("make {}", kept.display()), error))?;
        let initrd = initrd(AGENT, kept)?;
        let runtime = made(&program(RUNTIME)?, kept, "erofs", write_runtime)?;
        Ok(Self { initrd, runtime })
    }
}

/// An initial RAM file system whose init is the program `name`; found in `kept`, or made there.
pub fn initrd(name: &str, kept: &Path) -> Result<PathBuf, PartsError> {
    made(&program(name)?, kept, "cpio", |program, to| Ok(write_initrd(program, to)?))
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
    let stamp = format!("{:x}-{:x}-{:x}{:08x}", facts.ino(), facts.size(), facts.mtime(), facts.mtime_nsec());
    let path = kept.join(format!("{name}-{stamp}.{kind}"));
    if path.exists() {
        return Ok(path);
    }
    let failed = |error: io::Error| PartsError::Io(format!("write {}", path.display()), error);
    let mut file = tempfile::NamedTempFile::new_in(kept).map_err(failed)?;
    make(program, file.as_file_mut()).map_err(|error| match error {
        Making::Io(error) => failed(error),
        Making::Layer(error) => error.into(),
    })?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    Ok(path)
}

/// Why one could not be made.
enum Making {
    Io(io::Error),
    Layer(layer::LayerError),
}

impl From<io::Error> for Making {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// An archive with the program as /init, and the console that the kernel opens for it
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
fn write_initrd(program: &Path, to: &mut File) -> io::Result<()> {
    let mut from = File::open(program)?;
    let size = u32::try_from(from.metadata()?.len()).map_err(|_| io::Error::other("the program is too large"))?;
    let mut out = Builder::new("dev").mode(0o755).set_mode_file_type(ModeFileType::Directory).write(to, 0).finish()?;
    let console = Builder::new("dev/console").mode(0o600).set_mode_file_type(ModeFileType::Char);
    out = console.rdev_major(5).rdev_minor(1).write(out, 0).finish()?;
    let mut init = Builder::new("init").mode(0o755).set_mode_file_type(ModeFileType::Regular).write(out, size);
    io::copy(&mut from, &mut init)?;
    trailer(init.finish()?)?.flush()
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
