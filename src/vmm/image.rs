//! `vmm image`: images of containers, from where they are into the store, and what can be done with them there.

mod come;
mod export;
mod list;
mod remove;
mod show;

pub use come::{bring, warn_of_latest};

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use container::store::Store;

/// Exit status when it could not be done.
const FAILED: u8 = 1;

/// What `vmm image` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct ImageArgs {
    #[command(subcommand)]
    verb: ImageVerb,
}

/// What to do with images.
#[derive(Debug, Clone, Subcommand)]
enum ImageVerb {
    /// Add an image from a registry to the store
    Pull(come::PullArgs),
    /// Add an image from a directory, an archive or standard input to the store
    Import(come::ImportArgs),
    /// List the images of the store
    Ls(list::LsArgs),
    /// Remove images: their names, and what no other image needs
    Rm(remove::RmArgs),
    /// Print configuration and manifest of images, as JSON
    Inspect(show::InspectArgs),
    /// Print how an image was built, the last step first
    History(show::HistoryArgs),
    /// Write an image to an archive
    Export(export::ExportArgs),
    /// Send an image to a registry
    Push(export::PushArgs),
    /// Remove what no image needs, and what commands that were killed have left
    Prune(remove::PruneArgs),
}

/// Does it.
pub fn run(args: &ImageArgs) -> ExitCode {
    let store = Store::of_this_user().map_err(|error| error.to_string());
    let done = store.and_then(|store| match &args.verb {
        ImageVerb::Pull(args) => come::pull(&store, args),
        ImageVerb::Import(args) => come::import(&store, args),
        ImageVerb::Ls(args) => list::run(&store, args),
        ImageVerb::Rm(args) => remove::run(&store, args),
        ImageVerb::Inspect(args) => show::inspect(&store, args),
        ImageVerb::History(args) => show::history(&store, args),
        ImageVerb::Export(args) => export::run(&store, args),
        ImageVerb::Push(args) => export::push(&store, args),
        ImageVerb::Prune(args) => remove::prune(&store, args),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            for line in why.lines() {
                eprintln!("vmm: {}", crate::table::shown(line));
            }
            ExitCode::from(FAILED)
        }
    }
}

/// Prints to standard output.
fn print(text: &str) -> Result<(), String> {
    io::stdout().write_all(text.as_bytes()).map_err(|error| format!("standard output: {error}"))
}

/// Prints JSON for programs and for people.
fn print_json(value: &serde_json::Value) -> Result<(), String> {
    print(&format!("{value:#}\n"))
}
