//! Which layers of an image are seen: one whose root directory is opaque hides all lower ones, and overlayfs does not look
//! there (Documentation/filesystems/overlayfs.rst).

use std::path::{Path, PathBuf};

use rustix::fs::getxattr;

/// Mounted layers, the lowest first, without those that a higher one hides as a whole.
pub fn seen(layers: &[PathBuf]) -> &[PathBuf] {
    from_last(layers, is_opaque)
}

fn from_last(layers: &[PathBuf], opaque: impl Fn(&Path) -> bool) -> &[PathBuf] {
    let lowest = layers.iter().rposition(|layer| opaque(layer)).unwrap_or(0);
    layers.get(lowest..).unwrap_or_default()
}

fn is_opaque(layer: &Path) -> bool {
    let mut value = [0; 2];
    getxattr(layer, "trusted.overlay.opaque", &mut value[..]).is_ok_and(|len| value.get(..len) == Some(b"y"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_opaque_layer_is_the_lowest_that_is_seen() {
        let layers = ["0", "1", "2"].map(PathBuf::from);
        assert_eq!(from_last(&layers, |_| false), layers);
        assert_eq!(from_last(&layers, |layer| layer != Path::new("2")), &layers[1..]);
        assert_eq!(from_last(&layers, |_| true), &layers[2..]);
    }
}
