//! What has begun and is not over yet: the stack was taken at one moment, how
//! long it lasted is told at another.

use std::collections::HashMap;

use crate::{aggregate::Owner, process::ProcessIndex};

/// Most of them at once; there are no more threads than pids.
const MAX_OPEN: usize = 1 << 20;

/// Something that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wait {
    /// Whose it is.
    pub owner: Owner,
    /// Kernel addresses, then user addresses, leaf first.
    pub stack: Box<[u64]>,
    /// How many of them are the kernel's.
    pub kernel_frames: u16,
    /// How many such it stands for.
    pub weight: u32,
    /// Whether it is a thread that waits for a CPU alone.
    pub is_runnable: bool,
    /// When it began, on the monotonic clock.
    pub began_ns: u64,
    /// How much of it was counted before, in nanoseconds.
    pub counted_ns: u64,
    /// For how long the thread had been on a CPU when it was looked at, where it was
    /// not seen leaving: it may have been on one.
    pub ran_ns: Option<u64>,
}

/// All of one event, by thread or goroutine.
#[derive(Debug, Default)]
pub(super) struct Waits {
    open: HashMap<u64, Wait>,
}

impl Waits {
    /// One has begun. Says whether the end of the one before was never told, or
    /// there is no room.
    pub(super) fn begin(&mut self, key: u64, wait: Wait) -> bool {
        if self.open.len() >= MAX_OPEN && !self.open.contains_key(&key) {
            return true;
        }
        self.open.insert(key, wait).is_some()
    }

    /// It is over.
    pub(super) fn end(&mut self, key: u64) -> Option<Wait> {
        self.open.remove(&key)
    }

    /// Forgets those of processes that are not wanted any more.
    pub(super) fn retain(&mut self, mut is_wanted: impl FnMut(ProcessIndex) -> bool) {
        self.open.retain(|_, wait| is_wanted(wait.owner.process));
    }

    /// Forgets those that are not wanted any more.
    pub(super) fn retain_waits(&mut self, mut is_wanted: impl FnMut(&Wait) -> bool) {
        self.open.retain(|_, wait| is_wanted(wait));
    }

    /// Those that are not over by their keys, to be looked at and changed.
    pub(super) fn open(&mut self) -> impl Iterator<Item = (u64, &mut Wait)> {
        self.open.iter_mut().map(|(key, wait)| (*key, wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(process: u32) -> Wait {
        Wait {
            owner: Owner {
                process: ProcessIndex(process),
                ..Owner::default()
            },
            stack: [1].into(),
            kernel_frames: 0,
            weight: 1,
            is_runnable: false,
            began_ns: 5,
            counted_ns: 0,
            ran_ns: None,
        }
    }

    #[test]
    fn one_that_begins_before_the_end_of_another_takes_its_place() {
        let mut waits = Waits::default();
        assert!(!waits.begin(7, wait(0)));
        assert!(!waits.begin(8, wait(0)));
        assert!(waits.begin(7, wait(1)));
        assert_eq!(waits.end(7), Some(wait(1)));
        assert_eq!(waits.end(7), None);
        assert_eq!(waits.open().count(), 1);
    }

    #[test]
    fn those_of_other_processes_are_forgotten() {
        let mut waits = Waits::default();
        waits.begin(7, wait(0));
        waits.begin(8, wait(1));
        waits.retain(|process| process == ProcessIndex(1));
        assert_eq!((waits.end(7), waits.end(8)), (None, Some(wait(1))));
    }

    #[test]
    fn the_open_ones_are_bounded() {
        let mut waits = Waits::default();
        for key in 0..MAX_OPEN as u64 {
            assert!(!waits.begin(key, wait(0)));
        }
        assert!(waits.begin(u64::MAX, wait(0)), "no room, and it is said");
        assert_eq!(waits.end(u64::MAX), None);
        assert!(waits.begin(3, wait(1)), "but a known one has its place");
        assert_eq!(waits.end(3), Some(wait(1)));
    }
}
