//! The JSON documents of an image: index, manifest, configuration. What registries and archives say is not believed:
//! sizes are bounded, and [`Manifest::check`] asks for what the rest of the crate relies on.
//!
//! Source: OCI image specification 1.1 (image-index.md, manifest.md, config.md, descriptor.md); Docker's "Image Manifest
//! Version 2, Schema 2", which differs in the media types, and its configuration's `Healthcheck`. (The `oci-spec` crate
//! has no `Healthcheck`, and an index of the host's needs none of its builders.)

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::layer::Compression;

/// Longest index, manifest or configuration, bytes: what registries accept.
pub const DOCUMENT_MAX: u64 = 4 << 20;
/// Most layers of an image: Docker's limit, and what a disk's table of partitions has room for.
pub const LAYERS_MAX: usize = 127;

/// An image index's media type.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An image manifest's media type.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An image configuration's media type.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A layer that is not compressed.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// In an OCI layout's index: the image's name.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Points to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// In an index: what it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// What an image runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// As Go has it: `linux`.
    #[serde(default)]
    pub os: String,
    /// As Go has it: `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// Of the architecture: `v7`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Manifests of one image for several platforms, or of a layout's images.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// One of those above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What it lists.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

/// An image for one platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// One of those above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The [`Config`].
    pub config: Descriptor,
    /// From the lowest to the highest.
    pub layers: Vec<Descriptor>,
}

/// An image's configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Config {
    /// When it was built, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What it runs on.
    #[serde(flatten)]
    pub platform: Platform,
    /// How a container of it starts.
    pub config: Option<RunConfig>,
    /// Its layers.
    #[serde(default)]
    pub rootfs: RootFs,
    /// How it was built.
    pub history: Option<Vec<History>>,
}

/// The layers as they are when unpacked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RootFs {
    /// SHA-256 of each layer's tar, from the lowest to the highest.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

/// How a container of an image starts, if nothing else is asked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `user`, `uid`, `user:group`, …
    pub user: Option<String>,
    /// `80/tcp`, …
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    /// `NAME=value`.
    pub env: Option<Vec<String>>,
    /// What is always run.
    pub entrypoint: Option<Vec<String>>,
    /// What follows it, or is run if there is none.
    pub cmd: Option<Vec<String>>,
    /// Paths that are volumes.
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    /// Where it is run.
    pub working_dir: Option<String>,
    /// Free texts.
    pub labels: Option<BTreeMap<String, String>>,
    /// What asks it to end.
    pub stop_signal: Option<String>,
    /// Docker's check that it is well.
    pub healthcheck: Option<Healthcheck>,
}

/// Docker's check that a container is well.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", "…"]`.
    pub test: Option<Vec<String>>,
    /// Between checks, ns.
    pub interval: Option<i64>,
    /// Longest for one check, ns.
    pub timeout: Option<i64>,
    /// Before failures count, ns.
    pub start_period: Option<i64>,
    /// Between checks before that is over, ns.
    pub start_interval: Option<i64>,
    /// Failures in a row.
    pub retries: Option<i64>,
}

/// One step of building.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    pub created: Option<String>,
    /// The command.
    pub created_by: Option<String>,
    /// What the builder says of it.
    pub comment: Option<String>,
    /// It made no layer.
    #[serde(default)]
    pub empty_layer: bool,
}

/// Why a document is of no use.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not the JSON that it ought to be.
    #[error("the {what} is not understood: {fault}")]
    Json {
        /// Index, manifest or configuration.
        what: &'static str,
        /// With its place.
        fault: serde_json::Error,
    },
    /// Schema 1, without digests of what is unpacked.
    #[error("the manifest has schema version {0}; only 2 is supported (push the image anew with a current tool)")]
    Schema(u32),
    /// An artifact that is no image.
    #[error("this is no container image: its configuration is {0}")]
    Artifact(String),
    /// A layer that can not be had, or not be read.
    #[error("layer {number} is {media_type}, which is not supported")]
    Layer {
        /// From 1.
        number: usize,
        /// What it is.
        media_type: String,
    },
    /// Too many layers.
    #[error("the image has {0} layers; at most {LAYERS_MAX} are possible")]
    Layers(usize),
    /// The configuration speaks of another image.
    #[error("the manifest has {manifest} layers, its configuration {config}")]
    Count {
        /// In the manifest.
        manifest: usize,
        /// In the configuration.
        config: usize,
    },
    /// Not for this machine.
    #[error("the image is for {0}; this machine runs linux/amd64")]
    Platform(String),
    /// Longer than any is.
    #[error("a document of the image is longer than {DOCUMENT_MAX} bytes")]
    TooLong,
}

impl Platform {
    /// Whether it runs in a guest of this machine.
    pub fn fits(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }

    /// As Docker writes it: `linux/arm/v7`.
    pub fn text(&self) -> String {
        let part = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
        let variant = self.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
        format!("{}/{}{variant}", part(&self.os), part(&self.architecture))
    }
}

impl Index {
    /// From its JSON.
    pub fn read(bytes: &[u8]) -> Result<Self, DocumentError> {
        serde_json::from_slice(bytes).map_err(|fault| DocumentError::Json { what: "index", fault })
    }

    /// The manifest for linux/amd64, the one for every such processor first.
    pub fn for_this_machine(&self) -> Result<&Descriptor, DocumentError> {
        let fits = |one: &&Descriptor| one.platform.as_ref().is_some_and(Platform::fits);
        let mut fitting: Vec<_> = self.manifests.iter().filter(fits).collect();
        fitting.sort_by_key(|one| one.platform.as_ref().and_then(|platform| platform.variant.clone()));
        // One that says nothing is looked at: its configuration will tell.
        let silent = self.manifests.first().filter(|one| self.manifests.len() == 1 && one.platform.is_none());
        fitting.first().copied().or(silent).ok_or_else(|| {
            // Attestations are listed as unknown/unknown.
            let real = self.manifests.iter().filter_map(|one| one.platform.as_ref()).filter(|one| one.os != "unknown");
            let mut all: Vec<_> = real.map(Platform::text).collect();
            all.sort();
            all.dedup();
            DocumentError::Platform(if all.is_empty() { "no platform".into() } else { all.join(", ") })
        })
    }
}

impl Manifest {
    /// From its JSON, checked.
    pub fn read(bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            schema_version: u32,
        }
        let json = |fault| DocumentError::Json { what: "manifest", fault };
        // Schema 1 has none of the rest.
        let version = serde_json::from_slice::<Version>(bytes).map_err(json)?.schema_version;
        if version != 2 {
            return Err(DocumentError::Schema(version));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(json)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), DocumentError> {
        if !matches!(self.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            return Err(DocumentError::Artifact(self.config.media_type.chars().take(120).collect()));
        }
        if self.layers.len() > LAYERS_MAX {
            return Err(DocumentError::Layers(self.layers.len()));
        }
        for (index, layer) in self.layers.iter().enumerate() {
            if layer.compression().is_none() {
                let media_type = layer.media_type.chars().take(120).collect();
                return Err(DocumentError::Layer { number: index + 1, media_type });
            }
        }
        Ok(())
    }

    /// The configuration that this manifest names, held against it.
    pub fn config(&self, bytes: &[u8]) -> Result<Config, DocumentError> {
        let json = |fault| DocumentError::Json { what: "configuration", fault };
        let config: Config = serde_json::from_slice(bytes).map_err(json)?;
        if !config.platform.fits() {
            return Err(DocumentError::Platform(config.platform.text()));
        }
        let (manifest, config_layers) = (self.layers.len(), config.rootfs.diff_ids.len());
        if manifest != config_layers {
            return Err(DocumentError::Count { manifest, config: config_layers });
        }
        Ok(config)
    }
}

impl Descriptor {
    /// How this layer is compressed; nothing if it is no layer that can be read.
    pub fn compression(&self) -> Option<Compression> {
        Compression::of_media_type(&self.media_type)
    }

    /// Whether it points to an index.
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }

    /// The name that a layout's index gives it.
    pub fn ref_name(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(REF_NAME).map(String::as_str)
    }
}

#[cfg(test)]
mod tests;
