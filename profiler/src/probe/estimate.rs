//! What windows say of the whole time: totals scaled by the share that was watched,
//! each with its standard error. Knows numbers only.
//!
//! Of `n` windows, one at random in each slot, window `i` watched `wᵢ` of its slot
//! `sᵢ`, and a value came to `yᵢ` in it. The target's own time, that in user mode, was
//! `xᵢ` in it, and `X` in all. With `aᵢ = sᵢ / wᵢ` the total is
//!
//! > `Y = X · Σ aᵢ yᵢ / Σ aᵢ xᵢ`
//!
//! Slots are added up, not values: of a slot in which much happens less is watched. And
//! they are held against the target's own time, not the clock: while it is watched it
//! gets less done, as much as the probes take of its CPU, and that cancels. The error
//! follows from how much neighbours differ (collapsed strata, around the circle): with
//! `R = Σ aᵢ yᵢ / Σ aᵢ xᵢ` and `eᵢ = aᵢ · √(1 − wᵢ / sᵢ) · (yᵢ − R xᵢ)` the variance is
//! `½ · Σ (eᵢ − eᵢ₊₁)² · (X / Σ aᵢ xᵢ)²`. It is 0 where all was watched: such a total was
//! counted, not estimated. Of one window alone the error is as large as the total.

use profiler_ebpf::wire::TICK_PERIOD_NS;

/// The least share of a CPU that a target takes for itself to be held against that. One
/// that mostly waits is slowed down by little.
const BUSY: f64 = 0.3;
/// The least of its own time in windows for that: 50 ticks.
const LEAST_OWN_NS: f64 = 50.0 * TICK_PERIOD_NS as f64;

/// A window's part in estimates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weight {
    /// How long its slot is, in nanoseconds.
    pub slot_ns: u64,
    /// How much of it was watched, in nanoseconds.
    pub watched_ns: u64,
    /// The time that the target was in user mode meanwhile, all threads together, in
    /// nanoseconds: a sample of it, by ticks. What hits take is in the kernel.
    pub own_ns: f64,
    /// The same since the window before ended.
    pub own_since_ns: f64,
    /// The time by the clock since then, slots without a window included.
    pub since_ns: u64,
}

/// What there was of time when no other window followed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rest {
    /// By the clock, in nanoseconds.
    pub since_ns: u64,
    /// In user mode.
    pub own_since_ns: f64,
}

impl Weight {
    /// The same of a window whose values are left out: the others stand for its slot.
    #[must_use]
    pub fn left_out(self) -> Self {
        Self {
            slot_ns: 0,
            watched_ns: 0,
            own_ns: 0.0,
            ..self
        }
    }

    /// What a value in the window stands for.
    fn scale(&self) -> f64 {
        self.slot_ns as f64 / self.watched_ns.max(1) as f64
    }

    /// The part of the value that is not known for sure.
    fn unsure(&self) -> f64 {
        let watched = self.watched_ns as f64 / self.slot_ns.max(1) as f64;
        (1.0 - watched).max(0.0).sqrt()
    }
}

/// A total, and how sure it is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    /// The total.
    pub value: f64,
    /// Its standard error.
    pub standard_error: f64,
}

impl Estimate {
    /// Half the width of the interval that holds the truth in 19 of 20 cases, where
    /// it was estimated from so many windows (Student's t).
    pub fn half_width_95(&self, windows: usize) -> f64 {
        const T: [f64; 10] = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23];
        let freedom = windows.saturating_sub(1).max(1);
        let factor = match T.get(freedom - 1) {
            Some(factor) => *factor,
            // Good to a hundredth from here on.
            None => 1.96 + 2.5 / freedom as f64,
        };
        factor * self.standard_error
    }
}

/// Windows, in their order, and what they have in common.
#[derive(Debug, Clone, Default)]
pub struct Windows {
    weights: Vec<Weight>,
}

impl Windows {
    /// Adds the next one.
    pub fn push(&mut self, weight: Weight) {
        self.weights.push(weight);
    }

    /// Adds time behind the last one, in which there was none any more.
    pub fn go_on(&mut self, rest: Rest) {
        if let Some(last) = self.weights.last_mut() {
            last.since_ns += rest.since_ns;
            last.own_since_ns += rest.own_since_ns;
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// The share of the time that was watched.
    pub fn watched_share(&self) -> f64 {
        let watched: u64 = self.weights.iter().map(|weight| weight.watched_ns).sum();
        let all: u64 = self.weights.iter().map(|weight| weight.since_ns).sum();
        watched as f64 / all.max(1) as f64
    }

    /// The total over the whole time of a value that came to so much in some of the
    /// windows. Those are named by their place, in any order; others had nothing.
    pub fn estimate(&self, values: &[(usize, f64)]) -> Estimate {
        let seen_ns: f64 = self.weights.iter().map(|weight| weight.own_ns).sum();
        let all_ns: u64 = self.weights.iter().map(|weight| weight.since_ns).sum();
        if seen_ns < LEAST_OWN_NS || self.own_ns() < BUSY * all_ns as f64 {
            return self.estimate_time(values);
        }
        let factor = self.own_ns() / self.scaled(|_, weight| weight.own_ns);
        self.held_against(values, factor, |weight| weight.own_ns)
    }

    /// The same of a value that grows with the time by the clock, whatever the target
    /// gets done in it, as time spent waiting does.
    pub fn estimate_time(&self, values: &[(usize, f64)]) -> Estimate {
        self.held_against(values, self.by_the_clock(), |weight| {
            weight.watched_ns as f64
        })
    }

    /// `factor` is what slots are multiplied with, and `base` what the value of a
    /// window is expected to grow with.
    fn held_against(
        &self,
        values: &[(usize, f64)],
        factor: f64,
        base: impl Fn(&Weight) -> f64,
    ) -> Estimate {
        let mut sums = vec![0.0; self.weights.len()];
        for (window, value) in values {
            if let Some(sum) = sums.get_mut(*window) {
                *sum += value;
            }
        }
        let scaled_value = self.scaled(|index, _| sums[index]);
        let scaled_base = self.scaled(|_, weight| base(weight));
        let ratio = match scaled_value / scaled_base {
            ratio if ratio.is_finite() => ratio,
            _ => 0.0,
        };
        let errors: Vec<f64> = sums
            .iter()
            .zip(&self.weights)
            .map(|(sum, w)| w.scale() * w.unsure() * (sum - ratio * base(w)))
            .collect();
        let variance = match errors[..] {
            [_] => (scaled_value * self.weights[0].unsure()).powi(2),
            _ => {
                let next = errors.iter().cycle().skip(1);
                let squared = errors.iter().zip(next).map(|(a, b)| (a - b).powi(2));
                squared.sum::<f64>() / 2.0
            }
        };
        Estimate {
            value: scaled_value * factor,
            standard_error: variance.sqrt() * factor,
        }
    }

    /// The sum of what each slot comes to, by what its window does.
    fn scaled(&self, of: impl Fn(usize, &Weight) -> f64) -> f64 {
        let weights = self.weights.iter().enumerate();
        weights
            .map(|(i, weight)| weight.scale() * of(i, weight))
            .sum()
    }

    /// The target's own time in all.
    fn own_ns(&self) -> f64 {
        self.weights.iter().map(|weight| weight.own_since_ns).sum()
    }

    /// What slots are to be multiplied with for those that had no window.
    fn by_the_clock(&self) -> f64 {
        let slots: u64 = self.weights.iter().map(|weight| weight.slot_ns).sum();
        let all: u64 = self.weights.iter().map(|weight| weight.since_ns).sum();
        all as f64 / slots.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn time_behind_the_last_window_counts_as_that_between_them() {
        let rest = Rest {
            since_ns: 500 * MS,
            own_since_ns: 500e6,
        };
        let mut windows = windows(&[100, 100]);
        let before = windows.estimate_time(&[(0, 1.0), (1, 1.0)]).value;
        windows.go_on(rest);
        let after = windows.estimate_time(&[(0, 1.0), (1, 1.0)]).value;
        assert!((after / before - 1.25).abs() < 1e-9, "{before}, {after}");
        let mut none = Windows::default();
        none.go_on(rest);
        assert!(none.is_empty());
    }

    /// A target that is busy all the time on one CPU, and watched for so many of each
    /// 1000 ms.
    fn windows(watched_ns: &[u64]) -> Windows {
        let mut windows = Windows::default();
        for watched_ns in watched_ns {
            windows.push(Weight {
                slot_ns: 1000 * MS,
                watched_ns: *watched_ns * MS,
                own_ns: (*watched_ns * MS) as f64,
                own_since_ns: (1000 * MS) as f64,
                since_ns: 1000 * MS,
            });
        }
        windows
    }

    #[test]
    fn what_was_watched_all_the_time_is_counted() {
        let windows = windows(&[1000; 10]);
        let values: Vec<_> = (0..10).map(|i| (i, 7.0 + i as f64)).collect();
        let estimate = windows.estimate(&values);
        assert_eq!((estimate.value, estimate.standard_error), (115.0, 0.0));
        assert_eq!(windows.estimate(&[]).value, 0.0);
        assert_eq!(windows.watched_share(), 1.0);
    }

    #[test]
    fn slots_count_alike_however_much_of_them_was_watched() {
        let estimate = windows(&[500, 10]).estimate(&[(0, 5.0), (1, 1.0)]);
        assert!((estimate.value - (10.0 + 100.0)).abs() < 1e-9);
    }

    #[test]
    fn the_others_stand_for_a_window_that_is_left_out() {
        let values = [(0, 5.0), (1, 7.0), (2, 3.0)];
        let all = windows(&[10; 3]).estimate_time(&values);
        let mut some = windows(&[10; 4]);
        some.weights[1] = some.weights[1].left_out();
        let values = [(0, 5.0), (2, 7.0), (3, 3.0)];
        let of = some.estimate_time(&values);
        assert!((of.value / all.value - 4.0 / 3.0).abs() < 1e-9);
        assert!(of.standard_error > all.standard_error, "{of:?} {all:?}");
        assert!((some.estimate(&values).value - of.value).abs() < 1e-6);
    }

    #[test]
    fn a_target_that_is_slowed_down_by_half_does_twice_as_much() {
        let mut slowed = windows(&[10; 20]);
        for weight in &mut slowed.weights {
            weight.own_ns = 5.0 * MS as f64;
        }
        let values: Vec<_> = (0..20).map(|i| (i, 5.0)).collect();
        let estimate = slowed.estimate(&values);
        assert!((estimate.value - 20_000.0).abs() < 1e-6, "{estimate:?}");
        assert!(estimate.standard_error < 1e-6, "{estimate:?}");
    }

    #[test]
    fn a_target_that_does_nothing_for_itself_is_scaled_by_the_clock() {
        let mut idle = windows(&[10, 10]);
        for weight in &mut idle.weights {
            weight.own_ns = 0.0;
            weight.since_ns = 2000 * MS;
        }
        assert!((idle.estimate(&[(0, 1.0)]).value - 200.0).abs() < 1e-9);
        assert_eq!(Windows::default().estimate(&[]).value, 0.0);
    }

    #[test]
    fn one_event_is_as_unsure_as_it_is_large() {
        let mut weights = vec![10; 200];
        let estimate = windows(&weights).estimate(&[(3, 1.0)]);
        assert!(
            (estimate.standard_error - 100.0).abs() < 2.0,
            "{estimate:?}"
        );
        weights.truncate(1);
        let alone = windows(&weights).estimate(&[(0, 1.0)]);
        assert!((alone.standard_error - 100.0).abs() < 2.0, "{alone:?}");
    }

    #[test]
    fn few_windows_make_a_wider_interval() {
        let estimate = Estimate {
            value: 1.0,
            standard_error: 1.0,
        };
        assert_eq!(estimate.half_width_95(2), 12.71);
        assert_eq!(estimate.half_width_95(11), 2.23);
        assert!((estimate.half_width_95(31) - 2.04).abs() < 0.01);
        assert!((estimate.half_width_95(100_000) - 1.96).abs() < 0.01);
    }
}
