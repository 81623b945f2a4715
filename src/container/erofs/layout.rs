//! Where each inode goes in the metadata area, with what follows it: attributes, the end of a file, a chunk index.
//!
//! What follows an inode directly must end in the block in which the inode begins, and what is larger than a block
//! begins with one. Gaps that this leaves are filled with smaller inodes that come later.

use std::collections::VecDeque;

use super::format::{BLOCK, BLOCK_LEN, SLOT};

/// Blocks with room that are remembered.
const OPEN: usize = 64;

/// Hands out places in the metadata area.
pub struct Packer {
    /// Blocks with room at their ends, oldest first: the number, and bytes used.
    open: VecDeque<(u64, usize)>,
    blocks: u64,
}

impl Packer {
    /// The first `reserved` bytes of the area are used otherwise.
    pub fn new(reserved: usize) -> Self {
        Self { open: VecDeque::from([(0, reserved)]), blocks: 1 }
    }

    /// Bytes from the start of the area at which something of `len` bytes goes.
    pub fn place(&mut self, len: usize) -> u64 {
        let len = len.next_multiple_of(SLOT);
        if let Some(index) = self.open.iter().position(|(_, used)| used + len <= BLOCK_LEN) {
            let (block, used) = &mut self.open[index];
            let place = *block * BLOCK + *used as u64;
            *used += len;
            if *used == BLOCK_LEN {
                self.open.remove(index);
            }
            return place;
        }
        let place = self.blocks * BLOCK;
        self.blocks += len.div_ceil(BLOCK_LEN) as u64;
        let used = len % BLOCK_LEN;
        if used > 0 {
            if self.open.len() == OPEN {
                self.open.pop_front();
            }
            self.open.push_back((self.blocks - 1, used));
        }
        place
    }

    /// Blocks of the area so far.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_small_crosses_a_block_and_gaps_are_filled() {
        let mut packer = Packer::new(64);
        assert_eq!(packer.place(64), 64);
        assert_eq!(packer.place(4000), BLOCK);
        assert_eq!(packer.place(4090), 2 * BLOCK);
        assert_eq!(packer.place(97), 128); // back in the first block
        assert_eq!(packer.place(64), 256);
        assert_eq!(packer.blocks(), 3);
    }

    #[test]
    fn what_is_large_begins_with_a_block() {
        let mut packer = Packer::new(0);
        assert_eq!(packer.place(64), 0);
        assert_eq!(packer.place(3 * BLOCK_LEN + 1), BLOCK);
        assert_eq!(packer.place(BLOCK_LEN - SLOT), 4 * BLOCK + 32);
        assert_eq!(packer.blocks(), 5);
    }
}
