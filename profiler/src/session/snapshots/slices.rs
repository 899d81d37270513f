//! When snapshots are taken: time is cut into slices, and each gets one at a random
//! moment of it, that stands for all of it. So what a program does in step with
//! anything is seen for as long as it lasts. Knows no clock.

use std::time::Duration;

/// The least time between snapshots is as many times the CPU time that the last one
/// took, so that reading takes a quarter of a CPU at most however many goroutines there
/// are.
const REST: u32 = 4;

/// A slice of time, counted from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    /// Where it begins.
    pub begin: Duration,
    /// When its snapshot is to be taken.
    pub at: Duration,
    /// Where it ends.
    pub end: Duration,
    /// Whether it goes on past its time: all of that was over before a snapshot could
    /// be taken.
    pub is_late: bool,
}

/// Cuts time into slices.
#[derive(Debug)]
pub(super) struct Slices {
    mean: Duration,
    /// The end of all, where it is known.
    limit: Option<Duration>,
    random: fastrand::Rng,
    /// Where the next slice begins.
    begin: Duration,
    /// CPU time that the last snapshot took.
    pub cpu: Duration,
}

impl Slices {
    pub(super) fn new(mean: Duration, limit: Option<Duration>, random: fastrand::Rng) -> Self {
        Self {
            mean,
            limit,
            random,
            begin: Duration::ZERO,
            cpu: Duration::ZERO,
        }
    }

    /// The next slice, from where the one before ended, where it is `now`.
    pub(super) fn next(&mut self, now: Duration) -> Slice {
        let width = self.mean.max(self.cpu * REST);
        let (begin, end) = (self.begin, self.begin + width);
        let is_late = end <= now;
        let (earliest, mut end) = match is_late {
            true => (now, now + width),
            false => (begin, end),
        };
        if let Some(limit) = self.limit.filter(|limit| *limit > earliest) {
            end = end.min(limit);
        }
        self.begin = end;
        let at = earliest + (end - earliest).mul_f64(self.random.f64());
        Slice {
            begin,
            at: at.max(now),
            end,
            is_late,
        }
    }

    /// The next slice where the last one ended early, at `end`.
    pub(super) fn restart(&mut self, end: Duration) -> Slice {
        self.begin = end;
        self.next(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEAN: Duration = Duration::from_millis(50);

    fn slices(limit: Duration) -> Slices {
        Slices::new(MEAN, Some(limit), fastrand::Rng::with_seed(7))
    }

    /// Takes snapshots that take so long each until the limit, and gives the slices.
    fn run(limit: Duration, took: Duration) -> Vec<Slice> {
        let mut slices = slices(limit);
        slices.cpu = took;
        let mut all = vec![slices.next(Duration::ZERO)];
        while let Some(last) = all.last()
            && last.end < limit
        {
            let next = slices.next(last.at + took);
            all.push(next);
        }
        all
    }

    #[test]
    fn slices_are_all_of_the_time_and_each_has_its_moment() {
        let limit = Duration::from_millis(10_020);
        for took in [0, 3, 30, 400] {
            let all = run(limit, Duration::from_millis(took));
            assert_eq!(
                (all[0].begin, all[all.len() - 1].end),
                (Duration::ZERO, limit)
            );
            let meets = |pair: &[Slice]| pair[0].end == pair[1].begin;
            assert!(all.windows(2).all(meets), "{took}");
            let holds = |s: &Slice| s.begin <= s.at && s.at <= s.end;
            assert!(all.iter().all(holds), "{took}");
            let most = limit.as_millis() as u64 / MEAN.as_millis() as u64 + 1;
            assert!(all.len() as u64 <= most.min(limit.as_millis() as u64 / (took * 4).max(1) + 2));
        }
        assert_eq!(run(limit, Duration::ZERO).len(), 201);
    }

    /// The share of the time that something lasts which comes again and again, for as
    /// long each time, by what snapshots see of it.
    fn seen(all: &[Slice], period: Duration, lasts: Duration) -> f64 {
        let is_on = |s: &&Slice| s.at.as_nanos() % period.as_nanos() < lasts.as_nanos();
        let time = |s: &Slice| (s.end - s.begin).as_secs_f64();
        let on: f64 = all.iter().filter(is_on).map(time).sum();
        on / all.iter().map(time).sum::<f64>()
    }

    #[test]
    fn what_comes_in_step_with_the_rate_is_seen_for_as_long_as_it_lasts() {
        let limit = Duration::from_secs(600);
        for took in [0, 3] {
            let all = run(limit, Duration::from_millis(took));
            // In step with the rate, with half of it and with twice of it.
            for period in [MEAN, MEAN * 2, MEAN / 2] {
                for (lasts, share) in [(period.mul_f64(0.7), 0.7), (period.mul_f64(0.1), 0.1)] {
                    let found = seen(&all, period, lasts);
                    assert!((found - share).abs() < 0.015, "{took} {period:?}: {found}");
                }
            }
        }
    }

    #[test]
    fn a_slice_that_is_over_goes_on_and_nothing_is_left_out() {
        let mut slices = slices(Duration::from_secs(100));
        let first = slices.next(Duration::ZERO);
        let now = Duration::from_secs(3);
        let second = slices.next(now);
        assert_eq!((second.begin, second.end), (first.end, now + MEAN));
        assert!(second.is_late && second.at >= now && !first.is_late);
        let third = slices.restart(now + MEAN / 2);
        assert_eq!(third.begin, now + MEAN / 2);
    }
}
