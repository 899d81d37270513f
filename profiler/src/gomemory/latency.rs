//! How long something took, as the runtime's histograms have it. Counts that make no
//! sense are no histogram.

use serde::Serialize;

use crate::gobinary::TimeHistogram;

/// Nanoseconds and counts beyond which a sum makes no sense.
pub(super) const MAX_SUM: u64 = 1 << 62;

/// How long something took, as a histogram.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// How many there were.
    pub count: u64,
    /// The ranges that have any.
    pub ranges: Vec<LatencyRange>,
}

/// A range of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LatencyRange {
    /// From how many nanoseconds on.
    pub from_ns: u64,
    /// Up to how many, without these; None for the last.
    pub to_ns: Option<u64>,
    /// How many there were.
    pub count: u64,
}

impl Latency {
    /// The least time that the share `share` of all stayed below, by the upper end
    /// of its range; None where there are none, or it has no upper end.
    pub fn quantile_ns(&self, share: f64) -> Option<u64> {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        let range = self.ranges.iter().find(|range| {
            seen += range.count;
            seen >= wanted
        });
        range.filter(|_| self.count > 0)?.to_ns
    }

    /// None where the counts make no sense.
    pub(super) fn of(words: &[u64], layout: TimeHistogram) -> Option<Self> {
        let counts = layout.counts();
        let ranges = words.iter().take(counts).enumerate();
        let mut ranges: Vec<LatencyRange> = ranges
            .filter(|(_, count)| **count > 0)
            .map(|(index, count)| LatencyRange {
                from_ns: layout.lower_ns(index),
                // In the older layout the last range has no end.
                to_ns: (index + 1 < counts || layout.has_overflow)
                    .then(|| layout.lower_ns(index + 1)),
                count: *count,
            })
            .collect();
        let above = words.get(counts + 1).filter(|_| layout.has_overflow);
        ranges.extend(above.filter(|count| **count > 0).map(|count| LatencyRange {
            from_ns: layout.lower_ns(counts),
            to_ns: None,
            count: *count,
        }));
        let count = ranges
            .iter()
            .try_fold(0_u64, |sum, range| sum.checked_add(range.count))?;
        (count < MAX_SUM).then_some(Latency { count, ranges })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: TimeHistogram = TimeHistogram {
        buckets: 40,
        parts: 4,
        first_bits: 8,
        has_overflow: true,
    };

    #[test]
    fn a_histogram_keeps_the_ranges_that_have_any() {
        let mut words = vec![0; LAYOUT.words()];
        (words[1], words[8], words[160], words[161]) = (3, 6, 99, 1);
        let latency = Latency::of(&words, LAYOUT).unwrap();
        // What lies below zero is no time.
        assert_eq!(latency.count, 10);
        let bounds: Vec<_> = latency
            .ranges
            .iter()
            .map(|range| (range.from_ns, range.to_ns, range.count))
            .collect();
        assert_eq!(
            bounds,
            [
                (64, Some(128), 3),
                (512, Some(640), 6),
                (LAYOUT.lower_ns(160), None, 1)
            ]
        );
        assert_eq!(latency.quantile_ns(0.3), Some(128));
        assert_eq!(latency.quantile_ns(0.5), Some(640));
        assert_eq!(latency.quantile_ns(1.0), None);
        assert_eq!(Latency::default().quantile_ns(0.5), None);
    }

    #[test]
    fn counts_that_no_program_reaches_make_no_histogram() {
        let mut words = vec![0; LAYOUT.words()];
        (words[1], words[8]) = (u64::MAX, 2);
        assert_eq!(Latency::of(&words, LAYOUT), None);
        words[1] = MAX_SUM;
        assert_eq!(Latency::of(&words, LAYOUT), None);
    }
}
