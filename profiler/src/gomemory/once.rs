//! Whether what must come once comes again, of many and in little memory: the more
//! there are, the fewer of them it remembers, so that a few that come again may pass
//! where many cannot.

use std::hash::BuildHasher as _;

use foldhash::{HashSet, fast::RandomState};

/// Numbers that are remembered: as many as a cache near the processor holds.
const MOST: usize = 1 << 13;

/// Numbers that came.
#[derive(Default)]
pub(super) struct Once {
    seen: HashSet<u64>,
    /// Of two to this many one is remembered: which ones, nobody can tell before.
    thinning: u32,
    hasher: RandomState,
}

impl Once {
    /// Takes a number; false where it is known to have come before.
    pub(super) fn is_new(&mut self, number: u64) -> bool {
        if !is_kept(&self.hasher, self.thinning, number) {
            return true;
        }
        if self.seen.len() >= MOST && !self.seen.contains(&number) {
            self.thinning += 1;
            let (hasher, thinning) = (&self.hasher, self.thinning);
            self.seen.retain(|seen| is_kept(hasher, thinning, *seen));
            if !is_kept(hasher, thinning, number) {
                return true;
            }
        }
        self.seen.insert(number)
    }
}

fn is_kept(hasher: &RandomState, thinning: u32, number: u64) -> bool {
    hasher.hash_one(number).trailing_zeros() >= thinning
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_numbers_come_once_each() {
        let mut once = Once::default();
        for number in (0..MOST as u64).map(|number| number * 8) {
            assert!(once.is_new(number));
        }
        assert!(!once.is_new(8));
    }

    #[test]
    fn of_many_that_come_again_some_are_noticed_in_little_memory() {
        let mut once = Once::default();
        let numbers = || (0..1_000_000_u64).map(|number| 0xc0_0000_0000 + number * 416);
        assert!(numbers().all(|number| once.is_new(number)));
        assert!(once.seen.len() <= MOST && once.seen.len() > MOST / 16);
        let again = numbers().position(|number| !once.is_new(number));
        assert!(again.is_some_and(|at| at < 10_000), "{again:?}");
    }
}
