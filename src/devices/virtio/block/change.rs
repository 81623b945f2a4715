//! Another image behind a disk that the guest uses, and other limits. The control thread opens the image; the disk's
//! worker puts it in the old one's place when nothing is in flight.
//!
//! The guest hears of the new capacity by a change of the configuration space (virtio 1.2, 5.2.4 and 5.2.5.2).

use super::Block;
use super::config::{CacheType, DriveConfig};
use super::file::{DiskFile, SECTOR};
use crate::rate_limit::{RateLimiterConfig, Throttle};
use crate::virtio::UpdateError;
use crate::virtio::io::count;

/// What can be changed of a disk while the VM exists.
pub struct BlockChange {
    /// The new image, and what it was opened for.
    image: Option<Box<(DiskFile, DriveConfig)>>,
    limits: Option<RateLimiterConfig>,
}

impl BlockChange {
    /// Opens the image of `drive` if it is wanted. Its lock is taken later: a disk that is given its own image again, to
    /// see how large it is now, has that already.
    pub fn open(drive: &DriveConfig, image: bool, limits: Option<RateLimiterConfig>) -> Result<Self, UpdateError> {
        let image = match image {
            true => {
                let file = DiskFile::open_unlocked(drive).map_err(|error| UpdateError::new(error.to_string()))?;
                Some(Box::new((file, drive.clone())))
            }
            false => None,
        };
        Ok(Self { image, limits })
    }
}

impl Block {
    /// Carries a change out. Nothing of the driver's is in flight, unless the device is broken.
    pub(super) fn change(&mut self, change: BlockChange) -> Result<(), UpdateError> {
        self.drop_all();
        if let Some(image) = change.image {
            let (image, drive) = *image;
            self.swap(image, &drive)?;
            count(&self.tally.updates, 1);
        }
        if let Some(limits) = change.limits {
            Throttle::change(&mut self.throttle, &limits)
                .map_err(|error| UpdateError::new(format!("create the timer of its limits: {error}")))?;
        }
        Ok(())
    }

    fn swap(&mut self, image: DiskFile, drive: &DriveConfig) -> Result<(), UpdateError> {
        let unknown = |error| UpdateError::new(format!("compare the old image with the new one: {error}"));
        if self.file.is_same(&image).map_err(unknown)? {
            self.file.resize(&image);
        } else {
            image.lock(drive).map_err(|error| UpdateError::new(error.to_string()))?;
            // A flush that comes later goes to the new image; what the guest wrote to the old one is made safe now.
            if self.cache == CacheType::Writeback && !self.read_only {
                self.file.sync().map_err(|error| {
                    UpdateError::new(format!("the old image can not be flushed, and stays: {error}"))
                })?;
            }
            self.file = image;
        }
        let capacity = self.file.size().checked_div(SECTOR).unwrap_or(0);
        for (to, from) in self.config.iter_mut().zip(capacity.to_le_bytes()) {
            *to = from;
        }
        Ok(())
    }
}
