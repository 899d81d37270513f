//! About how many different things were seen, in a fixed amount of memory:
//! linear counting, where each sets one of many bits. Remembers none of them.

use std::hash::{BuildHasher as _, Hash};

use foldhash::quality::RandomState;

/// Bits; a power of two. Good to a percent up to some millions of things.
const BITS: u64 = 1 << 18;

/// Counts different things, about.
#[derive(Debug, Default)]
pub(super) struct Distinct {
    /// Random, so that nobody can choose things that share a bit.
    hasher: RandomState,
    words: Vec<u64>,
    set: u64,
}

impl Distinct {
    /// Sees one.
    pub(super) fn add(&mut self, thing: impl Hash) {
        if self.words.is_empty() {
            self.words = vec![0; (BITS / 64) as usize];
        }
        let bit = self.hasher.hash_one(thing) % BITS;
        let word = &mut self.words[(bit / 64) as usize];
        let mask = 1 << (bit % 64);
        self.set += u64::from(*word & mask == 0);
        *word |= mask;
    }

    /// How many different ones were seen, about.
    pub(super) fn count(&self) -> usize {
        let all = BITS as f64;
        // With every bit set there may be any number; nobody asks that late.
        let clear = (all - self.set as f64).max(1.0);
        (all * (all / clear).ln()).round() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(count: u64) {
        let mut distinct = Distinct::default();
        for _ in 0..2 {
            (0..count).for_each(|thing| distinct.add(thing * 16));
        }
        let found = distinct.count() as f64;
        let off = (found - count as f64).abs();
        assert!(off <= count as f64 * 0.02 + 1.0, "{found} of {count}");
    }

    #[test]
    fn counts_each_thing_once_and_about() {
        for count in [0, 1, 100, 10_000, 100_000, 1_000_000] {
            check(count);
        }
    }
}
