//! The pprof labels of goroutines, read out of a program's memory a block at a
//! time: what was made together lies together. What the labels of one may be,
//! `gobinary` bounds.

use std::collections::HashMap;

use super::{blocks::Blocks, goroutines::Goroutine, pieces::Pieces, program::Program};
use crate::gobinary::{LabelFormat, Labels, StructOffsets, read_labels};

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

    /// For each goroutine whether it still has the labels that it was read with.
    pub fn still_have_labels<'g>(
        &self,
        offsets: &StructOffsets,
        goroutines: impl Iterator<Item = &'g Goroutine>,
    ) -> Vec<bool> {
        let at = u64::from(offsets.g.labels);
        let (addresses, labels): (Vec<u64>, Vec<u64>) = goroutines
            .map(|goroutine| (goroutine.address.wrapping_add(at), goroutine.labels))
            .unzip();
        let pieces = Pieces::read(self.memory, &addresses, 8);
        let words = (0..addresses.len()).map(|index| pieces.get(index));
        let words = words.map(|bytes| Some(u64::from_le_bytes(*bytes?.first_chunk()?)));
        words
            .zip(labels)
            .map(|(word, labels)| word == Some(labels))
            .collect()
    }
}
