//! What was seen of allocations, held against what the runtime counts of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;

use super::{allocated::PARTS, allocation_bursts::Noted, carry::Carry};
use crate::{
    aggregate::Window,
    gomemory::{Live, Memory as _},
    probe::{Estimate, monotonic_ns},
};

/// Allocations, taken in windows in a row, that say by themselves what was allocated
/// from the window before the first to the last. With few of them what is large and
/// seldom would count too little: its part of the bytes is greatest where it was seen.
const LEAST_SAMPLES: u64 = 1000;
/// The runtime counts what a processor's cache of spans was used for when it takes
/// another: so late may its total be at the end of a window. What it counted in all
/// windows together must be more than the least to be held against what was seen.
const LATE_BYTES: f64 = (128 << 10) as f64;
const LEAST_BYTES: u64 = 4 << 20;
/// How far these may be apart beside that: else something is missing that is not to be
/// made up for by what was seen.
const MOST_OFF: f64 = 0.25;

/// What was seen in a window.
#[derive(Default)]
pub(super) struct Seen {
    pub samples: u64,
    pub variance: [f64; 2],
    pub objects: f64,
    pub bytes: f64,
    pub first_bytes: f64,
    /// The least and the greatest total of the runtime's, 0 where not known.
    pub totals: (u64, u64),
}

/// The runtime's totals of allocated bytes, as they are when windows end: read by who
/// watches, on a thread of its own.
pub(super) struct Totals {
    memory: Live,
    /// Where it is.
    pub address: Option<u64>,
    by_window: Arc<Mutex<HashMap<u64, Noted>>>,
}

impl Totals {
    pub(super) fn of(pid: u32, address: Option<u64>) -> Result<Self> {
        Ok(Self {
            memory: Live::open(pid)?,
            address,
            by_window: Arc::default(),
        })
    }

    /// Others, for another thread, that tell these.
    pub(super) fn twin(&self) -> Result<Self> {
        Ok(Self {
            by_window: Arc::clone(&self.by_window),
            ..Self::of(self.memory.pid(), self.address)?
        })
    }

    /// Reads the total; None where the program is gone.
    pub(super) fn read(&self) -> Option<u64> {
        self.memory.word(self.address?)
    }

    /// The same, with the time.
    pub(super) fn noted(&self) -> Option<Noted> {
        let (total, at_ns) = (self.read()?, monotonic_ns());
        Some(Noted { total, at_ns })
    }

    /// A window is over.
    pub(super) fn note(&self, window: u64) {
        if let Some(noted) = self.noted() {
            let by_window = self.by_window.lock();
            let mut by_window = by_window.unwrap_or_else(PoisonError::into_inner);
            by_window.insert(window, noted);
        }
    }

    /// The total when a window ended.
    pub(super) fn take(&self, window: u64) -> Option<Noted> {
        let by_window = self.by_window.lock();
        by_window
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&window)
    }
}

/// What was seen in windows, and what the runtime counted in them.
#[derive(Debug, Default)]
pub(super) struct Inside {
    seen_bytes: f64,
    counted_bytes: u64,
    windows: u64,
}

impl Inside {
    /// Adds what was seen in a window.
    pub(super) fn add(&mut self, seen: &Seen) {
        if seen.totals.0 > 0 {
            self.seen_bytes += seen.bytes - seen.first_bytes;
            self.counted_bytes += seen.counted_bytes();
            self.windows += 1;
        }
    }

    /// What was seen of what was counted, where that is enough to tell.
    pub(super) fn seen_share(&self) -> Option<f64> {
        let share = self.seen_bytes / self.counted_bytes as f64;
        (self.counted_bytes >= LEAST_BYTES).then_some(share)
    }

    /// Whether what was seen may be all there was.
    pub(super) fn is_near(&self) -> bool {
        let counted = self.counted_bytes as f64;
        let most = MOST_OFF * counted + LATE_BYTES * self.windows as f64;
        self.counted_bytes < LEAST_BYTES || (self.seen_bytes - counted).abs() <= most
    }
}

/// What was seen, held against the runtime's totals part by part: probes slow a program
/// down that allocates much, so that the time they watch says little of how much it
/// allocates otherwise. From the end of one window to that of another is a part; windows
/// in which little was taken are of one with the next.
#[derive(Default)]
pub(super) struct Strata {
    /// What the parts so far come to.
    pub whole: Window,
    carry: Carry,
    /// Bytes by the runtime, and objects, in all parts.
    settled: (f64, f64),
    /// What was seen in each window: bytes and objects.
    windows: Vec<(f64, f64)>,
    /// What was seen since, and how much it is.
    pending: Window,
    samples: u64,
    objects: f64,
    bytes: f64,
    /// What was seen in all parts, in bytes.
    seen_bytes: f64,
    /// The runtime's total at their end.
    total: u64,
    /// And at their beginning.
    pub began: u64,
    /// What was read last of it.
    pub latest: u64,
}

impl Strata {
    pub(super) fn new(total: u64) -> Self {
        Self {
            total,
            began: total,
            latest: total,
            ..Self::default()
        }
    }

    /// A window is over.
    pub(super) fn close(&mut self, seen: &Seen, window: &Window, total: Option<u64>) {
        self.pending.merge(window, |values| values);
        self.windows.push((seen.bytes, seen.objects));
        self.samples += seen.samples;
        self.objects += seen.objects;
        self.bytes += seen.bytes;
        self.latest = self.latest.max(total.unwrap_or(0));
        if let Some(total) = total
            && self.samples >= LEAST_SAMPLES
            && self.bytes > 0.0
        {
            let counted = total.saturating_sub(self.total) as f64;
            self.total = self.total.max(total);
            self.settle(counted);
        }
    }

    /// What is pending stands for so many bytes.
    fn settle(&mut self, counted: f64) {
        let scale = counted / self.bytes;
        let (pending, carry) = (std::mem::take(&mut self.pending), &mut self.carry);
        self.whole.merge(&pending, |values| {
            let scale = scale / PARTS;
            carry.scaled(values, [scale, scale, 0.0, 0.0])
        });
        self.settled.0 += counted;
        self.settled.1 += self.objects * scale;
        self.seen_bytes += self.bytes;
        (self.samples, self.objects, self.bytes) = (0, 0.0, 0.0);
    }

    /// Ends with the runtime's total as it is now: objects and bytes, and what is to be
    /// made of the values of `whole` for that. None where nothing was seen, or counted.
    pub(super) fn end(&mut self, total: u64) -> Option<(Estimate, Estimate, f64)> {
        let counted = total.checked_sub(self.began).filter(|bytes| *bytes > 0)? as f64;
        if self.bytes > 0.0 {
            let like_before = self.settled.0 / self.seen_bytes * self.bytes;
            let is_little = self.samples * 4 < LEAST_SAMPLES;
            match is_little && like_before.is_finite() && like_before > 0.0 {
                true => self.settle(like_before),
                false => self.settle(total.saturating_sub(self.total) as f64),
            }
        }
        let (bytes, objects) = self.settled;
        let rest = Some(counted / bytes).filter(|rest| rest.is_finite())?;
        let objects = Estimate {
            value: objects * rest,
            standard_error: self.objects_error(counted).unwrap_or(objects * rest),
        };
        let bytes = Estimate {
            value: counted,
            standard_error: 0.0,
        };
        Some((objects, bytes, rest))
    }

    /// The standard error of the number of objects in so many bytes, by how much windows
    /// differ. None where one alone says nothing of that.
    fn objects_error(&self, counted: f64) -> Option<f64> {
        let sums = self.windows.iter();
        let (bytes, objects) = sums.fold((0.0, 0.0), |(b, o), of| (b + of.0, o + of.1));
        let ratio = objects / bytes;
        let off = self.windows.iter().map(|(b, o)| (o - ratio * b).powi(2));
        let error = counted * off.sum::<f64>().sqrt() / bytes;
        (self.windows.len() > 1 && error.is_finite()).then_some(error)
    }
}

impl Seen {
    /// What the runtime counted in the window, in bytes.
    pub(super) fn counted_bytes(&self) -> u64 {
        let (first, last) = self.totals;
        last - first
    }

    /// Adds an allocation of so many bytes that stands for some, and what the runtime
    /// had counted by then.
    pub(super) fn add(&mut self, total: u64, stands_for: f64, bytes: f64) {
        let variance = stands_for * (stands_for - 1.0);
        self.variance[0] += variance;
        self.variance[1] += variance * bytes * bytes;
        self.samples += 1;
        self.objects += stands_for;
        self.bytes += stands_for * bytes;
        if self.samples == 1 {
            self.totals = (total, total);
            self.first_bytes = self.bytes;
        } else {
            let (first, last) = self.totals;
            self.totals = (first.min(total), last.max(total));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{aggregate::Owner, process::ProcessIndex};

    #[test]
    fn what_was_seen_comes_to_the_runtimes_total_part_by_part() {
        let mut strata = Strata::new(1000);
        let owner = |process| Owner {
            process: ProcessIndex(process),
            ..Owner::default()
        };
        let part = PARTS as i64;
        // Two kinds of work, one after the other: the first allocates nine times as much,
        // and is slowed down so that as much is seen of both.
        for (process, bytes, total) in [(0, 10, 10_000), (1, 20, 11_000)] {
            let mut window = Window::default();
            window.add_values(
                owner(process),
                &[1],
                0,
                [1000 * part, 1000 * bytes * part, 0, 0],
            );
            let mut seen = Seen::default();
            (0..1000).for_each(|_| seen.add(0, 1.0, bytes as f64));
            strata.close(&seen, &window, Some(total));
        }
        // Once more that much of the first, of which next to nothing was seen.
        let (objects, bytes, rest) = strata.end(21_000).unwrap();
        assert_eq!((bytes.value, rest), (20_000.0, 2.0));
        assert!(
            (objects.value - 2.0 * (900.0 + 50.0)).abs() < 1e-6,
            "{objects:?}"
        );
        let stacks = strata.whole.stacks();
        let values: Vec<_> = stacks.iter().map(|of| of.values).collect();
        assert_eq!(values, [[900, 9000, 0, 0], [50, 1000, 0, 0]]);
        assert!(Strata::new(5).end(1 << 30).is_none(), "nothing was seen");
    }

    #[test]
    fn what_is_seen_twice_or_by_half_is_told_from_all() {
        let of = |seen_mb: u64, windows| Inside {
            seen_bytes: (seen_mb << 20) as f64,
            counted_bytes: 100 << 20,
            windows,
        };
        assert!(of(110, 10).is_near() && of(90, 10).is_near());
        assert!(!of(200, 10).is_near() && !of(50, 10).is_near());
        assert!(
            of(150, 300).is_near(),
            "short windows, of which the count is late"
        );
        assert_eq!(of(50, 10).seen_share(), Some(0.5));
        assert_eq!(Inside::default().seen_share(), None);
        assert!(Inside::default().is_near(), "nobody knows");
    }
}
