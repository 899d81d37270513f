//! What windows say of the whole time: totals scaled by the share that was watched,
//! each with its standard error. Knows numbers only.
//!
//! A slot's total is estimated as `slot / watched · value`, where `value` is the sum
//! over its window; slots are added up, not their values, so that slots of which much
//! was seen count no more than others (stratified sampling, one window a stratum).
//! The error follows from how much neighbouring slots differ (collapsed strata, in
//! pairs around the circle): with `e = slot / watched · value · √(1 − watched / slot)`
//! the variance is `½ · Σ (eᵢ − eᵢ₊₁)²`. It is 0 where all was watched: then the total
//! was counted, not estimated.

/// A window's part in the estimate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weight {
    /// Which of the windows, from 0 on without gaps.
    pub index: u64,
    /// How long its slot is, in nanoseconds.
    pub slot_ns: u64,
    /// How much of it was watched, in nanoseconds.
    pub watched_ns: u64,
}

impl Weight {
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
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The total.
    pub value: f64,
    /// Its standard error.
    pub standard_error: f64,
}

impl Estimate {
    /// Half the width of the interval that holds the truth in 19 of 20 cases, where
    /// it was estimated from so many windows (Student's t).
    pub fn half_width_95(&self, windows: u64) -> f64 {
        const T: [f64; 10] = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23];
        let freedom = windows.saturating_sub(1).max(1);
        let factor = match usize::try_from(freedom - 1).ok().and_then(|i| T.get(i)) {
            Some(factor) => *factor,
            // Good to a hundredth from here on.
            None => 1.96 + 2.5 / freedom as f64,
        };
        factor * self.standard_error
    }
}

/// Adds up one total, window by window. Of windows without a value nothing need be
/// said: it takes as much time as there are windows with one, and no memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Estimator {
    total: f64,
    /// The squares of single values, for where there is one window alone.
    squares: f64,
    ended: Ended,
    current: Option<Part>,
}

/// A window's estimate of its slot, as far as it is not known for sure.
#[derive(Debug, Clone, Copy)]
struct Part {
    index: u64,
    value: f64,
}

/// The windows that no value is added for any more.
#[derive(Debug, Clone, Copy, Default)]
struct Ended {
    first: Option<Part>,
    last: Option<Part>,
    /// The sum of squared differences between neighbours from the first to the last.
    squared: f64,
}

impl Ended {
    fn push(&mut self, part: Part) {
        self.squared += match self.last {
            None => 0.0,
            Some(last) if last.index + 1 == part.index => (last.value - part.value).powi(2),
            // Others lie between that have nothing.
            Some(last) => last.value.powi(2) + part.value.powi(2),
        };
        self.first = self.first.or(Some(part));
        self.last = Some(part);
    }

    /// The sum around the circle of all windows.
    fn closed(&self, windows: u64) -> f64 {
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return 0.0;
        };
        let meet = first.index == 0 && last.index + 1 == windows;
        self.squared
            + if meet {
                (first.value - last.value).powi(2)
            } else {
                first.value.powi(2) + last.value.powi(2)
            }
    }
}

impl Estimator {
    /// Adds a value that was seen in a window. Windows come in their order.
    pub fn add(&mut self, window: &Weight, value: f64) {
        let scaled = value * window.scale();
        let unsure = scaled * window.unsure();
        self.total += scaled;
        self.squares += unsure * unsure;
        match &mut self.current {
            Some(part) if part.index == window.index => part.value += unsure,
            current => {
                let next = Part {
                    index: window.index,
                    value: unsure,
                };
                if let Some(ended) = current.replace(next) {
                    self.ended.push(ended);
                }
            }
        }
    }

    /// The total over the slots of all windows, of which there were so many.
    pub fn estimate(&self, windows: u64) -> Estimate {
        let mut ended = self.ended;
        if let Some(current) = self.current {
            ended.push(current);
        }
        let variance = if windows > 1 {
            ended.closed(windows) / 2.0
        } else {
            self.squares
        };
        Estimate {
            value: self.total,
            standard_error: variance.sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(index: u64, watched_ns: u64) -> Weight {
        Weight {
            index,
            slot_ns: 1000,
            watched_ns,
        }
    }

    #[test]
    fn what_was_watched_all_the_time_is_counted() {
        let mut total = Estimator::default();
        for index in 0..10 {
            total.add(&window(index, 1000), 7.0 + index as f64);
        }
        let estimate = total.estimate(10);
        assert_eq!((estimate.value, estimate.standard_error), (115.0, 0.0));
        assert_eq!(Estimator::default().estimate(10).value, 0.0);
    }

    #[test]
    fn slots_count_alike_however_much_of_them_was_watched() {
        let mut total = Estimator::default();
        total.add(&window(0, 500), 5.0);
        total.add(&window(1, 10), 1.0);
        assert_eq!(total.estimate(2).value, 10.0 + 100.0);
    }

    #[test]
    fn one_event_is_as_unsure_as_it_is_large() {
        let mut total = Estimator::default();
        total.add(&window(3, 10), 1.0);
        let estimate = total.estimate(20);
        let unsure = 100.0 * 0.99_f64.sqrt();
        assert!((estimate.standard_error - unsure).abs() < 1e-9);
        // In a window of its own there is nothing to hold it against.
        let mut alone = Estimator::default();
        alone.add(&window(0, 10), 1.0);
        assert!((alone.estimate(1).standard_error - unsure).abs() < 1e-9);
    }

    #[test]
    fn differences_go_around_the_circle() {
        let values = [3.0, 0.0, 5.0, 4.0, 0.0, 0.0, 2.0];
        let mut total = Estimator::default();
        for (index, value) in values.iter().enumerate() {
            if *value > 0.0 {
                // In two pieces: what counts is the window's sum.
                total.add(&window(index as u64, 100), value - 1.0);
                total.add(&window(index as u64, 100), 1.0);
            }
        }
        let of = |value: f64| value * 10.0 * 0.9_f64.sqrt();
        let next = values.iter().cycle().skip(1);
        let squared: f64 = values
            .iter()
            .zip(next)
            .map(|(a, b)| (of(*a) - of(*b)).powi(2))
            .sum();
        let estimate = total.estimate(values.len() as u64);
        assert!((estimate.standard_error.powi(2) - squared / 2.0).abs() < 1e-6);
        assert!((estimate.value - 140.0).abs() < 1e-9);
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
