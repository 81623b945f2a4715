//! `vmm image rm` and `vmm image prune`.

use std::collections::BTreeSet;

use clap::Args;
use container::digest::Digest;
use container::reference::Name;
use container::register::Containers;
use container::store::{Store, StoreError, Swept};

use crate::table::size;

/// What `vmm image rm` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct RmArgs {
    /// Name, digest, or the beginning of a digest
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// By a digest, remove all names of the image, however many; what is not there is no fault
    #[arg(short, long)]
    force: bool,
}

/// What `vmm image prune` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110)]
pub struct PruneArgs {
    /// Remove images that no container uses, too; one that has ended counts until `vmm rm`
    #[arg(short, long)]
    all: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Removes names, then what nobody refers to. One image that can not be removed does not keep the others.
pub fn run(store: &Store, args: &RmArgs) -> Result<(), String> {
    let mut faults = Vec::new();
    for text in &args.images {
        match remove(store, text, args.force) {
            Ok(names) => {
                for name in names {
                    super::print(&format!("Untagged: {name}\n"))?;
                }
            }
            Err(why) => faults.push(why),
        }
    }
    if faults.len() < args.images.len() {
        store.sweep().map_err(|error| error.to_string())?;
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

fn remove(store: &Store, text: &str, force: bool) -> Result<Vec<Name>, String> {
    let told = |error: StoreError| error.to_string();
    let digest = match store.find_digest(text) {
        Err(StoreError::Unknown(_)) if force => return Ok(Vec::new()),
        digest => digest.map_err(told)?,
    };
    let entries = store.entries().map_err(told)?.into_iter().filter(|entry| entry.manifest.digest == digest);
    let all: Vec<_> = entries.map(|entry| entry.name).collect();
    let named: Vec<_> = all.iter().filter(|name| text.parse().as_ref() == Ok(*name)).cloned().collect();
    let names = match () {
        () if !named.is_empty() => named,
        () if all.len() == 1 || force => all,
        () => {
            let names: Vec<_> = all.iter().map(Name::familiar).collect();
            return Err(format!(
                "`{text}` has several names: remove them by these, or all with --force: {}",
                names.join(", ")
            ));
        }
    };
    store.remove_names(&names, &digest).map_err(told)
}

/// The images that containers were made of. One that runs holds its own, by whatever name that came.
fn used(store: &Store) -> Result<BTreeSet<Digest>, String> {
    let containers = Containers::of(store.path()).list().map_err(|error| error.to_string())?;
    Ok(containers.iter().filter_map(|container| store.find_digest(&container.record.image).ok()).collect())
}

/// Removes what nobody refers to and what can be made again, and says how much it was.
pub fn prune(store: &Store, args: &PruneArgs) -> Result<(), String> {
    let told = |error: StoreError| error.to_string();
    let untagged = if args.all { store.remove_unused(&used(store)?).map_err(told)? } else { Vec::new() };
    let Swept { blobs, layers, leftovers, bytes } = store.sweep().map_err(told)?;
    let (templates, of_templates) = store.remove_templates().map_err(told)?;
    let bytes = bytes + of_templates;
    let mut untagged = untagged.iter().map(Name::to_string);
    if args.json {
        let untagged: Vec<_> = untagged.collect();
        let document = serde_json::json!({
            "untagged": untagged, "blobs": blobs, "layers": layers, "templates": templates, "leftovers": leftovers,
            "bytes": bytes
        });
        return super::print_json(&document);
    }
    untagged.try_for_each(|name| super::print(&format!("Untagged: {name}\n")))?;
    super::print(&format!(
        "Removed {blobs} blobs, {layers} layers, {templates} templates and {leftovers} leftovers: {} ({bytes} bytes)\n",
        size(bytes)
    ))
}
