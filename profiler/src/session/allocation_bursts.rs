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

/// A window that was no whole slot.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct InWindow {
    /// How long it watched.
    pub ns: u64,
    /// What the runtime counted meanwhile.
    pub bytes: u64,
    /// What probes took since the window before, those hits included that lie outside.
    pub taken_ns: u64,
}

/// How many times the rate of its neighbours, and of all so far, a part has that is a
/// burst.
const BURST: f64 = 1.5;
/// The runtime counts a span when it is used up, and those in use when a collection takes
/// them: less than this may be one of these.
const LATE_BYTES: f64 = (256 << 10) as f64;
/// The share of all bytes from which on bursts that nobody saw are told of.
const EVIDENT: f64 = 0.05;
/// Where probes take more than this part of the time they slow the program down before and
/// behind windows too, and nothing can be said.
const MOST_TAKEN: f64 = 0.1;

/// What the runtime counted between two windows: these slow the program down, and are no
/// part of it. Where the window behind is a whole slot it was watched itself.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Part {
    bytes: f64,
    ns: f64,
    is_watched: bool,
    /// Whether probes took next to nothing of it.
    is_clear: bool,
}

impl Part {
    fn rate(&self) -> f64 {
        self.bytes / self.ns.max(1.0)
    }
}

/// Looks for bursts that no window saw.
///
/// What goes on through a window makes the parts of the time on both sides of it rise; a
/// burst between two windows that of one part alone. So a part with half as much again as
/// either neighbour, and as there was so far, for its length, has a burst that nobody saw.
#[derive(Debug, Default)]
pub(super) struct Bursts {
    last: Option<Noted>,
    /// The last two parts.
    before: [Option<Part>; 2],
    /// What was counted between windows, and for how long.
    between: (f64, f64),
    /// What was counted in all.
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

    /// A window has ended; it was a whole slot where it is absent.
    pub(super) fn close(&mut self, noted: Noted, window: Option<InWindow>) {
        let Some(last) = self.last.replace(noted) else {
            return;
        };
        let bytes = noted.total.saturating_sub(last.total);
        let ns = noted.at_ns.saturating_sub(last.at_ns);
        let inside = window.unwrap_or_default();
        let part = Part {
            bytes: bytes.saturating_sub(inside.bytes) as f64,
            ns: ns.saturating_sub(inside.ns) as f64,
            is_watched: window.is_none(),
            is_clear: inside.taken_ns as f64 <= MOST_TAKEN * ns as f64,
        };
        self.bytes += bytes as f64;
        self.between.0 += part.bytes;
        self.between.1 += part.ns;
        if let [Some(first), Some(middle)] = self.before
            && !middle.is_watched
            && [first, middle, part].iter().all(|part| part.is_clear)
        {
            let so_far = self.between.0 / self.between.1.max(1.0);
            let around = first.rate().max(part.rate());
            let more = middle.bytes - around * middle.ns;
            if middle.rate() > BURST * around.max(so_far) && more > LATE_BYTES {
                self.missed_bytes += more;
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

    /// Parts, each of so many milliseconds and kilobytes, and the window at its end.
    fn missed(parts: &[(u64, u64, Option<InWindow>)]) -> Option<f64> {
        let mut noted = Noted { total: 7, at_ns: 9 };
        let mut bursts = Bursts::new(Some(noted));
        for (milliseconds, kilobytes, window) in parts {
            noted.total += kilobytes * 1000;
            noted.at_ns += milliseconds * 1_000_000;
            bursts.close(noted, *window);
        }
        bursts.missed_share()
    }

    const fn window(milliseconds: u64, kilobytes: u64) -> Option<InWindow> {
        Some(InWindow {
            ns: milliseconds * 1_000_000,
            bytes: kilobytes * 1000,
            taken_ns: milliseconds * 100_000,
        })
    }

    const EVEN: (u64, u64, Option<InWindow>) = (250, 1000, window(5, 20));

    #[test]
    fn a_burst_between_windows_is_evident() {
        let mut parts = vec![EVEN; 16];
        (parts[3].1, parts[11].1) = (3500, 3500);
        let share = missed(&parts).unwrap();
        let expected = 2.0 * 2500.0 / 21_000.0;
        assert!((share - expected).abs() < 1e-9, "{share}");
    }

    #[test]
    fn what_windows_saw_is_no_such() {
        // It went on through a window.
        let mut parts = vec![EVEN; 16];
        (parts[3].1, parts[4].1) = (3500, 3000);
        assert_eq!(missed(&parts), None);
        // It lay in one.
        let mut parts = vec![EVEN; 16];
        parts[3] = (250, 3500, window(5, 2500));
        assert_eq!(missed(&parts), None);
        // They were on all the time.
        let mut parts = vec![(250, 1000, None); 16];
        parts[3].1 = 3500;
        assert_eq!(missed(&parts), None);
        parts[3].2 = window(100, 10);
        assert!(missed(&parts).is_some(), "but for this one");
    }

    #[test]
    fn a_steady_program_has_none() {
        let uneven = |index: u64| (250, 1000 + 130 * (index * 7 % 4), window(5, 20));
        let parts: Vec<_> = (0..64).map(uneven).collect();
        assert_eq!(missed(&parts), None);
        // What a collection counts all at once.
        let at = |index: u64| {
            (
                250,
                if index.is_multiple_of(4) { 300 } else { 100 },
                window(5, 2),
            )
        };
        let parts: Vec<_> = (0..64).map(at).collect();
        assert_eq!(missed(&parts), None);
        assert_eq!(missed(&[]), None);
        assert_eq!(missed(&[(250, 0, window(5, 0)); 8]), None);
    }

    #[test]
    fn windows_that_slow_the_program_down_make_no_bursts() {
        // In windows it comes to next to nothing, and these lie at random in their slots.
        let between = [280, 40, 210, 30, 150, 60, 260, 25];
        let part = |ms: u64| (ms + 100, 4000 * ms, window(100, 300));
        let parts: Vec<_> = between
            .iter()
            .cycle()
            .take(48)
            .map(|ms| part(*ms))
            .collect();
        assert_eq!(missed(&parts), None);
        // Nor does what they take beside, so that nothing is judged.
        let taken = |ms: u64, taken_ms: u64| InWindow {
            ns: ms * 1_000_000,
            bytes: 0,
            taken_ns: taken_ms * 1_000_000,
        };
        let mut parts = vec![(250, 1000, Some(taken(20, 20))); 16];
        parts[3].1 = 3500;
        assert!(missed(&parts).is_some());
        parts[4].2 = Some(taken(20, 30));
        assert_eq!(missed(&parts), None);
    }
}
