//! `vmm image export` and `vmm image push`: images that leave the store.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use container::export::{Kind, export};
use container::progress::Progress;
use container::reference::Name;
use container::source::Registry;
use container::store::Store;

use super::come::RegistryArgs;

/// What `vmm image export` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct ExportArgs {
    /// Name, digest, or the beginning of a digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The file, which is replaced when all is written [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A tar of an OCI layout, or as `docker save` writes it
    #[arg(long, value_name = "FORMAT", default_value = "oci-archive")]
    format: Format,
}

/// What `vmm image push` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct PushArgs {
    /// Name, digest, or the beginning of a digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The name in the registry [default: IMAGE]
    #[arg(value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print the name only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    OciArchive,
    DockerArchive,
}

/// Writes the archive.
pub fn run(store: &Store, args: &ExportArgs) -> Result<(), String> {
    let (image, _lease) = store.hold(&args.image).map_err(|error| error.to_string())?;
    // By a name, that one; by a digest, all.
    let named: Vec<Name> =
        image.names.iter().filter(|name| args.image.parse().as_ref() == Ok(*name)).cloned().collect();
    let names = if named.is_empty() { &image.names } else { &named };
    let kind = if args.format == Format::OciArchive { Kind::Oci } else { Kind::Docker };
    let Some(path) = &args.output else {
        if io::stdout().is_terminal() {
            return Err("an archive is not for a terminal: write it with --output FILE, or into a pipe".into());
        }
        return export(store, &image, names, kind, BufWriter::new(io::stdout())).map_err(|error| error.to_string());
    };
    let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let part = beside(path);
    let written = File::create(&part).map_err(|error| fault(&error)).and_then(|file| {
        export(store, &image, names, kind, file_writer(&file)).map_err(|error| fault(&error))?;
        file.sync_all().and_then(|()| std::fs::rename(&part, path)).map_err(|error| fault(&error))
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// Pushes to a registry.
pub fn push(store: &Store, args: &PushArgs) -> Result<(), String> {
    let (image, _lease) = store.hold(&args.image).map_err(|error| error.to_string())?;
    let text = args.name.as_ref().unwrap_or(&args.image);
    let name: Name = text.strip_prefix("docker://").unwrap_or(text).parse().map_err(|error| format!("{error}"))?;
    let progress = if args.quiet { Progress::silent() } else { Progress::on_terminal() };
    let registry = Registry::to_push(&name, &args.registry.options());
    let pushed = registry.and_then(|registry| registry.push(store, &image, &progress));
    pushed.map_err(|error| format!("{}: {error}", name.familiar()))?;
    if !args.quiet {
        eprintln!("Digest: {}", image.descriptor.digest);
    }
    super::print(&format!("{name}\n"))
}

fn file_writer(file: &File) -> impl Write {
    BufWriter::with_capacity(256 << 10, file)
}

/// Where it is written until it is whole.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".part-{}", std::process::id()));
    name.into()
}
