//! `vmm image ls`.

use clap::Args;
use container::reference::{Name, Selector};
use container::store::{Image, Store};
use serde_json::json;

use crate::table::{shown, size, table};

/// What `vmm image ls` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110)]
pub struct LsArgs {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Print the images' digests only
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

/// Prints a line for each name.
pub fn run(store: &Store, args: &LsArgs) -> Result<(), String> {
    let mut images = Vec::new();
    let mut damaged = Vec::new();
    for (name, image) in store.images().map_err(|error| error.to_string())? {
        match image {
            Ok(image) => images.push(image),
            Err(error) => damaged.push(format!("{}: {error}", name.familiar())),
        }
    }
    if args.json {
        let all: Vec<_> = images.iter().map(document).collect();
        super::print_json(&json!(all))?;
    } else if args.quiet {
        super::print(&images.iter().map(|image| format!("{}\n", image.descriptor.digest)).collect::<String>())?;
    } else {
        let head = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"].map(str::to_owned).to_vec();
        let mut rows: Vec<_> =
            images.iter().flat_map(|image| image.names.iter().map(|name| row(name, image))).collect();
        rows.sort();
        rows.insert(0, head);
        super::print(&table(&rows, &[4]))?;
    }
    if damaged.is_empty() { Ok(()) } else { Err(damaged.join("\n")) }
}

fn row(name: &Name, image: &Image) -> Vec<String> {
    let whole = name.familiar();
    let (repository, tag) = match name.selector() {
        Selector::Tag(tag) => (whole.strip_suffix(tag).unwrap_or(&whole).trim_end_matches(':'), tag.clone()),
        Selector::Digest(digest) => (whole.split('@').next().unwrap_or_default(), format!("@{}", digest.short())),
    };
    let id = image.descriptor.digest.short();
    vec![repository.to_owned(), tag, id, created(image), size(image.size())]
}

/// The day.
fn created(image: &Image) -> String {
    let day = image.config.created.as_deref().and_then(|time| time.get(..10)).unwrap_or("-");
    shown(day)
}

fn document(image: &Image) -> serde_json::Value {
    json!({
        "names": image.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "digest": image.descriptor.digest,
        "config_digest": image.manifest.config.digest,
        "created": image.config.created,
        "size_bytes": image.size(),
        "layer_count": image.manifest.layers.len(),
    })
}
