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

    /// Those that are not over, to be looked at and changed.
    pub(super) fn open(&mut self) -> impl Iterator<Item = &mut Wait> {
        self.open.values_mut()
    }
}
