//! How long many things took: counts by time, fine enough for percentiles, of a
//! fixed size.

/// Buckets that a doubling of the time is divided into.
const PARTS: usize = 8;
/// The longest time told apart is this power of two of nanoseconds, two minutes.
const MAX_POWER: usize = 37;

/// Counts by time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latency {
    /// As far as there is something in them.
    buckets: Vec<u64>,
    count: u64,
    sum_ns: u64,
}

impl Latency {
    /// Adds one that took so long.
    pub(super) fn add(&mut self, ns: u64) {
        let bucket = bucket(ns);
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How long all of them took together, in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// What a share of them, from 0 to 1, took at most, in nanoseconds: within an
    /// eighth.
    pub fn percentile_ns(&self, share: f64) -> u64 {
        let rank = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut before = 0;
        let found = self.buckets.iter().position(|count| {
            before += count;
            before >= rank
        });
        found.map_or(0, |bucket| start_ns(bucket + 1))
    }

    /// The counts by powers of two: each with the time in nanoseconds that they took
    /// less than. The last is of all that took longer.
    pub fn by_power(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let first = self.buckets.iter().position(|count| *count > 0);
        let from = first.unwrap_or(0) / PARTS;
        self.buckets
            .chunks(PARTS)
            .enumerate()
            .skip(from)
            .map(|(power, counts)| (start_ns((power + 1) * PARTS), counts.iter().sum()))
    }

    /// The counts, each with a time in nanoseconds in the middle of those it is of.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counts = self.buckets.iter().enumerate();
        let middle = |bucket: usize| start_ns(bucket).midpoint(start_ns(bucket + 1));
        counts
            .filter(|(_, count)| **count > 0)
            .map(move |(bucket, count)| (middle(bucket), *count))
    }
}

/// Below the first powers of two there are no parts; they are one bucket each.
fn bucket(ns: u64) -> usize {
    let ns = ns.clamp(1, (1 << MAX_POWER) - 1);
    let power = ns.ilog2() as usize;
    let part = match power {
        0..3 => (ns << (3 - power)) as usize - PARTS,
        _ => (ns >> (power - 3)) as usize - PARTS,
    };
    power * PARTS + part
}

/// The least time of a bucket.
fn start_ns(bucket: usize) -> u64 {
    let (power, part) = (bucket / PARTS, bucket % PARTS);
    ((PARTS + part) as u64) << power >> 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_bucket_that_begins_at_or_below_it() {
        // Below, buckets are narrower than a nanosecond.
        for ns in [8, 9, 1000, 1023, 1024, 123_456_789, (1 << 37) - 1] {
            let bucket = bucket(ns);
            assert!(start_ns(bucket) <= ns && ns < start_ns(bucket + 1), "{ns}");
        }
        assert_eq!(bucket(0), bucket(1));
        assert_eq!(bucket(u64::MAX), bucket((1 << 37) - 1));
    }

    #[test]
    fn percentiles_are_within_an_eighth() {
        let mut latency = Latency::default();
        assert_eq!(latency.percentile_ns(0.5), 0);
        (1..=10_000).for_each(|us| latency.add(us * 1000));
        for (share, truth) in [(0.5, 5e6), (0.9, 9e6), (0.99, 9.9e6)] {
            let found = latency.percentile_ns(share) as f64;
            assert!(found >= truth && found <= truth * 1.13, "{share}: {found}");
        }
        assert_eq!(latency.count(), 10_000);
        assert_eq!(latency.sum_ns(), 50_005_000_000);
    }

    #[test]
    fn counts_by_powers_add_up() {
        let mut latency = Latency::default();
        for ns in [100, 120, 130, 1000, 1024, 5000] {
            latency.add(ns);
        }
        let powers: Vec<(u64, u64)> = latency.by_power().collect();
        assert_eq!(powers[..2], [(128, 2), (256, 1)]);
        assert_eq!(powers.iter().map(|(_, count)| count).sum::<u64>(), 6);
        let counts: Vec<(u64, u64)> = latency.counts().collect();
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 6);
        assert_eq!(counts[0], (100, 1), "of 96 to 103");
    }
}
