//! `vmm image import`: images that come into the store.

use clap::Args;
use container::add::{Added, add};
use container::progress::Progress;
use container::reference::{Name, Reference, Selector};
use container::source;
use container::store::Store;

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

/// Adds an image.
pub fn import(store: &Store, args: &ImportArgs) -> Result<(), String> {
    let reference: Reference = args.source.parse().map_err(|error| format!("{error}"))?;
    let fault = |error: source::SourceError| format!("{}: {error}", args.source);
    let source = source::open(store, &reference).map_err(fault)?;
    let added = add(store, &*source, &args.names, &progress(args.quiet)).map_err(fault)?;
    told(&added, args.quiet)
}

fn progress(quiet: bool) -> Progress {
    if quiet { Progress::silent() } else { Progress::on_terminal() }
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
