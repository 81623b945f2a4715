//! `vmm image pull` and `vmm image import`: images that come into the store.

use std::path::PathBuf;

use clap::Args;
use container::add::{Added, add};
use container::progress::Progress;
use container::reference::{Name, Reference, Selector};
use container::source::{self, Options, SourceError};
use container::store::Store;

/// How to speak to a registry.
#[derive(Debug, Clone, Args)]
pub struct RegistryArgs {
    /// Speak to the registry without TLS; one on loopback that has none is found out
    #[arg(long)]
    plain_http: bool,
    /// Trust the certificate authorities in this file (PEM), too. SSL_CERT_FILE names the host's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl RegistryArgs {
    pub fn options(&self) -> Options {
        Options { plain_http: self.plain_http, ca_file: self.ca_file.clone() }
    }
}

/// What `vmm image pull` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct PullArgs {
    /// NAME[:TAG], NAME@DIGEST, docker://NAME…, or what `vmm image import` takes
    #[arg(value_name = "IMAGE")]
    image: String,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print the name only
    #[arg(short, long)]
    quiet: bool,
}

/// What `vmm image import` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct ImportArgs {
    /// oci:DIR[:REF], oci-archive:FILE[:REF], docker-archive:FILE[:REF], or - for a tar of either kind on standard input
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Names for it, instead of those that it brings
    #[arg(value_name = "NAME", value_parser = tagged)]
    names: Vec<Name>,
    /// Print the names only
    #[arg(short, long)]
    quiet: bool,
}

/// A name that an image can be given.
fn tagged(text: &str) -> Result<Name, String> {
    let name: Name = text.parse().map_err(|error| format!("{error}"))?;
    match name.selector() {
        Selector::Tag(_) => Ok(name),
        Selector::Digest(_) => Err("an image has its digest by itself; a name ends with a tag".into()),
    }
}

/// Adds an image from wherever it is.
pub fn pull(store: &Store, args: &PullArgs) -> Result<(), String> {
    let reference: Reference = args.image.parse().map_err(|error| format!("{error}"))?;
    let Reference::Registry(name) = &reference else {
        return come(store, &reference, &args.image, &[], &args.registry.options(), args.quiet);
    };
    warn_of_latest(name);
    // What can not have changed is not asked for.
    if name.pin().is_some() && store.find(&name.to_string()).is_ok() {
        return super::print(&format!("{name}\n"));
    }
    come(store, &reference, &name.familiar(), &[], &args.registry.options(), args.quiet)
}

/// Says so where a name means another image tomorrow.
pub fn warn_of_latest(name: &Name) {
    if name.is_latest() {
        let name = name.familiar();
        eprintln!("vmm: warning: {name} is another image tomorrow; a version or @sha256:… stays the same");
    }
}

/// Adds an image from a directory, an archive or standard input.
pub fn import(store: &Store, args: &ImportArgs) -> Result<(), String> {
    let reference: Reference = args.source.parse().map_err(|error| format!("{error}"))?;
    if let Reference::Registry(name) = &reference {
        return Err(format!("{0} is a name in a registry: vmm image pull {0}", name.familiar()));
    }
    come(store, &reference, &args.source, &args.names, &Options::default(), args.quiet)
}

fn come(
    store: &Store,
    reference: &Reference,
    text: &str,
    names: &[Name],
    options: &Options,
    quiet: bool,
) -> Result<(), String> {
    told(&bring(store, reference, text, names, options, quiet)?, quiet)
}

/// Brings an image, which the user called `text`, into the store.
pub fn bring(
    store: &Store,
    reference: &Reference,
    text: &str,
    names: &[Name],
    options: &Options,
    quiet: bool,
) -> Result<Added, String> {
    let fault = |error: SourceError| format!("{text}: {error}");
    let source = source::open(store, reference, options).map_err(fault)?;
    let progress = if quiet { Progress::silent() } else { Progress::on_terminal() };
    add(store, &*source, names, &progress).map_err(fault)
}

/// The names that it was given, for scripts; what happened, for people.
fn told(added: &Added, quiet: bool) -> Result<(), String> {
    if !quiet {
        let state = if added.was_there { "is up to date" } else { "was added" };
        eprintln!("Digest: {}", added.image.descriptor.digest);
        eprintln!("The image {state}.");
    }
    super::print(&added.names.iter().map(|name| format!("{name}\n")).collect::<String>())
}
