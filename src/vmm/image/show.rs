//! `vmm image inspect` and `vmm image history`.

use clap::Args;
use container::reference::Selector;
use container::store::{Image, Store};
use serde_json::{Value, json};

use crate::table::{shown, size, table};

/// Longest command in a table, characters.
const COMMAND_MAX: usize = 70;

/// What `vmm image inspect` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct InspectArgs {
    /// Name, digest, or the beginning of a digest
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

/// What `vmm image history` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct HistoryArgs {
    /// Name, digest, or the beginning of a digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Print commands in full
    #[arg(long)]
    no_trunc: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Prints an array with an object for each image.
pub fn inspect(store: &Store, args: &InspectArgs) -> Result<(), String> {
    let mut all = Vec::new();
    for text in &args.images {
        let image = store.find(text).map_err(|error| error.to_string())?;
        all.push(document(store, &image).map_err(|error| format!("{text}: {error}"))?);
    }
    super::print_json(&json!(all))
}

/// With Docker's keys where there are such.
fn document(store: &Store, image: &Image) -> Result<Value, String> {
    let read = |digest| -> Result<Value, String> {
        let bytes = store.read_document(digest).map_err(|error| error.to_string())?;
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())
    };
    let digest = &image.descriptor.digest;
    let mut config = read(&image.manifest.config.digest)?;
    let mut taken = |key: &str| config.get_mut(key).map(Value::take).unwrap_or_default();
    let tags = image.names.iter().filter(|name| matches!(name.selector(), Selector::Tag(_)));
    let mut digests: Vec<_> = image.names.iter().map(|name| name.pinned(*digest).to_string()).collect();
    digests.dedup();
    Ok(json!({
        "Id": digest,
        "RepoTags": tags.map(ToString::to_string).collect::<Vec<_>>(),
        "RepoDigests": digests,
        "Created": taken("created"),
        "Author": taken("author"),
        "Architecture": taken("architecture"),
        "Os": taken("os"),
        "Size": image.size(),
        "Config": taken("config"),
        "RootFS": {"Type": "layers", "Layers": image.config.rootfs.diff_ids},
        "Manifest": read(digest)?,
    }))
}

/// Prints the steps.
pub fn history(store: &Store, args: &HistoryArgs) -> Result<(), String> {
    let image = store.find(&args.image).map_err(|error| error.to_string())?;
    let mut layers = image.manifest.layers.iter();
    let mut steps = Vec::new();
    for step in image.config.history.iter().flatten() {
        let layer = if step.empty_layer { None } else { layers.next() };
        steps.push((step.clone(), layer));
    }
    // What no step speaks of.
    steps.extend(layers.map(|layer| (Default::default(), Some(layer))));
    steps.reverse();
    if args.json {
        let all = steps.iter().map(|(step, layer)| {
            json!({"created": step.created, "created_by": step.created_by, "comment": step.comment,
                "layer": layer.map(|layer| layer.digest), "size_bytes": layer.map_or(0, |layer| layer.size)})
        });
        return super::print_json(&json!(all.collect::<Vec<_>>()));
    }
    let mut rows = vec![["CREATED", "CREATED BY", "SIZE", "COMMENT"].map(str::to_owned).to_vec()];
    for (step, layer) in &steps {
        let day = step.created.as_deref().and_then(|time| time.get(..10)).unwrap_or("-");
        let command = step.created_by.as_deref().unwrap_or_default();
        let command = if args.no_trunc { command.to_owned() } else { shortened(command) };
        let size = size(layer.map_or(0, |layer| layer.size));
        rows.push(vec![shown(day), shown(&command), size, shown(step.comment.as_deref().unwrap_or_default())]);
    }
    super::print(&table(&rows, &[2]))
}

fn shortened(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(COMMAND_MAX - 1) {
        Some((at, _)) if words.chars().count() > COMMAND_MAX => format!("{}…", words.get(..at).unwrap_or_default()),
        _ => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_cut() {
        assert_eq!(shortened("RUN  a &&\n   b"), "RUN a && b");
        assert_eq!(shortened(&"ä".repeat(70)).chars().count(), 70);
        let cut = shortened(&"ä".repeat(71));
        assert!(cut.ends_with("ä…") && cut.chars().count() == 70);
    }
}
