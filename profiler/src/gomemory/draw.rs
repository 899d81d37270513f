//! Places drawn at random, each once, in memory for those that were drawn alone.

use foldhash::{HashMap, HashMapExt as _};

/// Draws places from so many.
pub(super) struct Draw {
    places: u64,
    drawn: u64,
    /// Places in the order in which they are drawn, where that is not their own: Fisher
    /// and Yates' way to shuffle, of which no more is done than is asked for.
    moved: HashMap<u64, u64>,
}

impl Draw {
    /// From places below a number.
    pub(super) fn of(places: u64) -> Self {
        Self {
            places,
            drawn: 0,
            moved: HashMap::new(),
        }
    }

    /// So many more, or what is left, from the lowest up. `below` gives a random number
    /// below another.
    pub(super) fn next(&mut self, count: u64, below: &mut impl FnMut(u64) -> u64) -> Vec<u64> {
        let count = count.min(self.places - self.drawn);
        let mut drawn: Vec<u64> = (0..count).map(|_| self.one(below)).collect();
        drawn.sort_unstable();
        drawn
    }

    fn one(&mut self, below: &mut impl FnMut(u64) -> u64) -> u64 {
        let (first, left) = (self.drawn, self.places - self.drawn);
        let at = first + below(left).min(left - 1);
        let own = self.moved.remove(&first).unwrap_or(first);
        self.drawn += 1;
        match at == first {
            true => own,
            false => self.moved.insert(at, own).unwrap_or(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_drawn_once_and_none_is_left() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut below = |bound| random.u64(..bound);
        let mut draw = Draw::of(1000);
        let mut all = Vec::new();
        for count in [1, 0, 300, 699, 5] {
            let drawn = draw.next(count, &mut below);
            assert!(drawn.is_sorted());
            all.extend(drawn);
        }
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
        assert!(draw.moved.is_empty());
        assert!(Draw::of(0).next(3, &mut below).is_empty());
    }

    #[test]
    fn every_place_is_drawn_as_often_as_every_other() {
        let mut random = fastrand::Rng::with_seed(4);
        let mut times = [0_u32; 50];
        for _ in 0..10_000 {
            for place in Draw::of(50).next(5, &mut |bound| random.u64(..bound)) {
                times[place as usize] += 1;
            }
        }
        // A thousand each, give or take five times the root of 900.
        assert!(times.iter().all(|n| n.abs_diff(1000) < 150), "{times:?}");
    }
}
