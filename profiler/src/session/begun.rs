//! When a window began, by both clocks. The wall clock, which may be set at any
//! time, says when; how long is asked of the other one alone.

use std::time::{Duration, Instant, SystemTime};

/// A moment by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    /// By the clock that nobody sets.
    pub at: Instant,
    wall: SystemTime,
}

impl Begun {
    pub(super) fn now() -> Self {
        Self {
            at: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    /// Ends the window that began then, and begins the next. Returns when the one
    /// that ended began, and how long it was.
    pub(super) fn next(&mut self, now: Self) -> (SystemTime, Duration) {
        let before = std::mem::replace(self, now);
        (before.wall, now.at.saturating_duration_since(before.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_clock_that_is_set_changes_the_start_of_the_next_window_alone() {
        let (at, wall) = (Instant::now(), SystemTime::now());
        let moment = |seconds: u32, wall| Begun {
            at: at + seconds * SECOND,
            wall,
        };
        let epoch = SystemTime::UNIX_EPOCH;
        let mut begun = moment(0, wall);
        // Back by an hour, before 1970, far ahead, and right again.
        let clocks = [
            wall - 3600 * SECOND,
            epoch - 3600 * SECOND,
            wall + 100_000 * 3600 * SECOND,
            wall + 4 * SECOND,
        ];
        let mut started = wall;
        for (clock, second) in clocks.into_iter().zip(1..) {
            let (start, duration) = begun.next(moment(second, clock));
            assert_eq!((start, duration), (started, SECOND));
            started = clock;
        }
    }

    #[test]
    fn now_goes_on() {
        let mut begun = Begun::now();
        let (start, duration) = begun.next(Begun::now());
        assert!(start <= SystemTime::now() && duration < 60 * SECOND);
    }
}
