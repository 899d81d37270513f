//! Values that stand for more than was seen, in whole numbers whose sum is the whole.

/// Scales values to whole numbers; what is cut off one is added to the next.
#[derive(Debug, Default)]
pub(super) struct Carry([f64; 4]);

impl Carry {
    pub(super) fn scaled(&mut self, values: [i64; 4], scales: [f64; 4]) -> [i64; 4] {
        let mut scaled = [0; 4];
        for (index, to) in scaled.iter_mut().enumerate() {
            let exact = values[index] as f64 * scales[index] + self.0[index];
            let whole = exact.round();
            self.0[index] = exact - whole;
            *to = whole as i64;
        }
        scaled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_what_all_stand_for() {
        let share = 100_003.0 / 4096.0;
        let mut carry = Carry::default();
        let mut sum = [0; 4];
        for index in 0..4096 {
            let scaled = carry.scaled([1, 52_631_579, index % 2, 0], [share, share, 0.5, share]);
            assert!((24..=25).contains(&scaled[0]), "{scaled:?}");
            for (sum, value) in sum.iter_mut().zip(scaled) {
                *sum += value;
            }
        }
        assert_eq!(sum[..2], [100_003, 100_003 * 52_631_579]);
        assert_eq!(sum[2..], [1024, 0]);
    }

    #[test]
    fn what_stands_for_itself_stays_as_it_is() {
        let mut carry = Carry::default();
        for value in [0, 1, -7, 1 << 52] {
            assert_eq!(carry.scaled([value; 4], [1.0; 4]), [value; 4]);
        }
    }
}
