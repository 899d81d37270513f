//! The pprof labels of goroutines, read out of a program's memory a block at a
//! time: what was made together lies together. What the labels of one may be,
//! `gobinary` bounds.

use std::collections::HashMap;

use super::{blocks::Blocks, program::Program};
use crate::gobinary::{LabelFormat, Labels, read_labels};

/// Bytes read for the labels of a batch.
const MAX_BYTES: usize = 16 << 20;

impl Program<'_> {
    /// The labels that goroutines refer to, by where they are.
    pub fn labels(
        &self,
        format: LabelFormat,
        pointers: impl IntoIterator<Item = u64>,
    ) -> HashMap<u64, Labels> {
        let mut blocks = Blocks::new(self.memory, MAX_BYTES);
        let mut found = HashMap::new();
        for pointer in pointers {
            found.entry(pointer).or_insert_with(|| {
                read_labels(format, pointer, |address, bytes| {
                    blocks.read(address, bytes)
                })
            });
        }
        found
    }
}
