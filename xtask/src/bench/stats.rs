//! What repeated measurements come to: the median with the extremes beside it,
//! and the order to measure in. It judges nothing.

use serde::Serialize;

/// The median of some runs and their extremes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The middle run, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Every run, in the order measured.
    pub runs: Vec<f64>,
}

impl Summary {
    /// Of at least one run; of none, everything is NaN.
    pub fn of(runs: impl IntoIterator<Item = f64>) -> Self {
        let runs: Vec<f64> = runs.into_iter().collect();
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            (at(middle.wrapping_sub(1)) + at(middle)) / 2.0
        } else {
            at(middle)
        };
        Self {
            median,
            min: at(0),
            max: at(sorted.len().wrapping_sub(1)),
            runs,
        }
    }

    /// Run by run, `measured` over `base`.
    pub fn of_ratios(measured: &[f64], base: &[f64]) -> Self {
        Self::of(measured.iter().zip(base).map(|(m, b)| m / b))
    }
}

/// The mean of what is left when the given share was taken away at either end:
/// it sees what is in few of the values as well as in all, which the median does
/// not, and no single one outweighs the rest. NaN of none.
pub fn trimmed_mean(values: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let cut = (values.len() as f64 * share) as usize;
    let kept = values.get(cut..values.len() - cut).unwrap_or_default();
    kept.iter().sum::<f64>() / kept.len() as f64
}

/// Draws the order of each round anew, so that nothing is always measured first
/// or after the same neighbour. The same orders in each run of the benchmark.
#[derive(Debug)]
pub struct Shuffle(u64);

impl Default for Shuffle {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Shuffle {
    /// The numbers below `count` in some order.
    pub fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }

    fn below(&mut self, bound: usize) -> usize {
        // Marsaglia's xorshift64: its lowest bits are weak, so they are cut off.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_two() {
        let odd = Summary::of([3.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(odd.runs, [3.0, 1.0, 2.0]);
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert!(Summary::of([]).median.is_nan());
    }

    #[test]
    fn the_trimmed_mean_leaves_the_ends_out() {
        let values = [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 1e9];
        assert_eq!(trimmed_mean(values, 0.1), 5.5);
        assert_eq!(trimmed_mean([2.0, 4.0], 0.1), 3.0);
        assert!(trimmed_mean([], 0.1).is_nan());
    }

    #[test]
    fn ratios_are_taken_run_by_run() {
        let ratios = Summary::of_ratios(&[1.0, 9.0], &[2.0, 3.0]);
        assert_eq!(ratios.runs, [0.5, 3.0]);
    }

    #[test]
    fn each_order_holds_every_number_and_orders_differ() {
        let mut shuffle = Shuffle::default();
        let orders: Vec<Vec<usize>> = (0..20).map(|_| shuffle.order(5)).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        let firsts: std::collections::HashSet<usize> =
            orders.iter().map(|order| order[0]).collect();
        assert_eq!(firsts.len(), 5, "each comes first sometimes");
    }
}
