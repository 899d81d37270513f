//! Whether memory is allocated in bursts that lie between windows, by what the runtime
//! has counted when they end. Knows numbers only.

/// The runtime's total at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Noted {
    /// Bytes.
    pub total: u64,
    /// On the monotonic clock.
    pub at_ns: u64,
}

/// How many times the rate of either neighbour a part has that is a burst.
const BURST: f64 = 1.5;
/// The runtime counts a span when it is used up, and those in use when a collection takes
/// them: less than this may be one of these.
const LATE_BYTES: f64 = (256 << 10) as f64;
/// The share of all bytes from which on bursts that nobody saw are told of.
const EVIDENT: f64 = 0.05;

/// What the runtime counted from the end of one window to that of the next.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Part {
    bytes: f64,
    ns: f64,
    /// What of that it counted in the window at the part's end.
    watched_bytes: f64,
}

impl Part {
    fn rate(&self) -> f64 {
        self.bytes / self.ns.max(1.0)
    }
}

/// Looks for bursts that no window saw.
///
/// Windows end parts of the time. What goes on through a window makes the parts on both
/// sides of it rise; a burst between two windows that of one part alone. So a part with
/// half as much again as either neighbour, for its length, has a burst that nobody saw but
/// for what its own window did.
#[derive(Debug, Default)]
pub(super) struct Bursts {
    last: Option<Noted>,
    /// The last two parts.
    before: [Option<Part>; 2],
    bytes: f64,
    missed_bytes: f64,
}

impl Bursts {
    /// Begins at a moment.
    pub(super) fn new(last: Option<Noted>) -> Self {
        Self {
            last,
            ..Self::default()
        }
    }

    /// A window has ended, in which the runtime counted so much.
    pub(super) fn close(&mut self, noted: Noted, watched_bytes: u64) {
        let Some(last) = self.last.replace(noted) else {
            return;
        };
        let part = Part {
            bytes: noted.total.saturating_sub(last.total) as f64,
            ns: noted.at_ns.saturating_sub(last.at_ns) as f64,
            watched_bytes: watched_bytes as f64,
        };
        self.bytes += part.bytes;
        if let [Some(first), Some(middle)] = self.before {
            let around = first.rate().max(part.rate()) * middle.ns;
            let more = middle.bytes - around;
            if middle.bytes > BURST * around && more > LATE_BYTES {
                self.missed_bytes += (more - middle.watched_bytes).max(0.0);
            }
        }
        self.before = [self.before[1], Some(part)];
    }

    /// The share of all bytes that bursts had which no window saw, where it is evident.
    pub(super) fn missed_share(&self) -> Option<f64> {
        let share = self.missed_bytes / self.bytes;
        (share >= EVIDENT).then_some(share)
    }

    /// Takes out what was found so far, and goes on.
    pub(super) fn split_off(&mut self) -> Self {
        let next = Self::new(self.last);
        std::mem::replace(self, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts of a quarter of a second, each with so many kilobytes, of which so many in its
    /// window.
    fn missed(parts: &[(u64, u64)]) -> Option<f64> {
        let mut noted = Noted { total: 7, at_ns: 9 };
        let mut bursts = Bursts::new(Some(noted));
        for (kilobytes, watched) in parts {
            noted.total += kilobytes * 1000;
            noted.at_ns += 250_000_000;
            bursts.close(noted, watched * 1000);
        }
        bursts.missed_share()
    }

    #[test]
    fn a_burst_between_windows_is_evident() {
        let mut parts = vec![(1000, 40); 16];
        parts[3] = (3500, 40);
        parts[11] = (3500, 40);
        let share = missed(&parts).unwrap();
        let expected = 2.0 * 2460.0 / 21_000.0;
        assert!((share - expected).abs() < 1e-9, "{share}");
    }

    #[test]
    fn what_windows_saw_is_no_such() {
        // It went on through the end of a part.
        let mut parts = vec![(1000, 40); 16];
        (parts[3], parts[4]) = ((3500, 300), (3000, 40));
        assert_eq!(missed(&parts), None);
        // It lay in the window.
        let mut parts = vec![(1000, 40); 16];
        parts[3] = (3500, 2500);
        assert_eq!(missed(&parts), None);
    }

    #[test]
    fn a_steady_program_has_none() {
        let uneven = |index: u64| (1000 + 170 * (index * 7 % 4), 40);
        let parts: Vec<_> = (0..64).map(uneven).collect();
        assert_eq!(missed(&parts), None);
        // What a collection counts all at once.
        let parts: Vec<_> = (0..64)
            .map(|i| (if i % 4 == 0 { 300 } else { 100 }, 4))
            .collect();
        assert_eq!(missed(&parts), None);
        assert_eq!(missed(&[]), None);
        assert_eq!(missed(&[(0, 0); 8]), None);
    }
}
