//! What a goroutine is doing, by `g.atomicstatus` (`runtime/runtime2.go`), all
//! versions.

/// What a goroutine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GoroutineStatus {
    /// Being made.
    Idle,
    /// Could run, and waits for a processor.
    Runnable,
    /// Runs.
    Running,
    /// In a system call, or in C.
    Syscall,
    /// Waits, for what its wait reason says.
    Waiting,
    /// Has ended; the runtime keeps its memory for another.
    Dead,
    /// Its stack moves.
    CopyStack,
    /// Stopped by the runtime until somebody lets it go on.
    Preempted,
    /// Can never go on: a collection has found it leaked (1.26 and later).
    Leaked,
    /// Kept for a thread of C to use (1.26 and later).
    DeadExtra,
}

/// Set while the collector looks at the stack.
const SCAN: u32 = 0x1000;

impl GoroutineStatus {
    /// What a word says; None where no version has it.
    pub fn of(word: u32) -> Option<GoroutineStatus> {
        Some(match word & !SCAN {
            0 => GoroutineStatus::Idle,
            1 => GoroutineStatus::Runnable,
            2 => GoroutineStatus::Running,
            3 => GoroutineStatus::Syscall,
            4 => GoroutineStatus::Waiting,
            6 => GoroutineStatus::Dead,
            8 => GoroutineStatus::CopyStack,
            9 => GoroutineStatus::Preempted,
            10 => GoroutineStatus::Leaked,
            11 => GoroutineStatus::DeadExtra,
            _ => return None,
        })
    }

    /// Whether there is a goroutine: it has begun and not ended.
    pub fn is_alive(self) -> bool {
        !matches!(
            self,
            GoroutineStatus::Idle | GoroutineStatus::Dead | GoroutineStatus::DeadExtra
        )
    }

    /// Its name, as Go's own tracebacks have it (`runtime.gStatusStrings`).
    pub fn name(self) -> &'static str {
        match self {
            GoroutineStatus::Idle => "idle",
            GoroutineStatus::Runnable => "runnable",
            GoroutineStatus::Running => "running",
            GoroutineStatus::Syscall => "syscall",
            GoroutineStatus::Waiting => "waiting",
            GoroutineStatus::Dead => "dead",
            GoroutineStatus::CopyStack => "copystack",
            GoroutineStatus::Preempted => "preempted",
            GoroutineStatus::Leaked => "leaked",
            GoroutineStatus::DeadExtra => "waiting for cgo callback",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collectors_bit_does_not_matter_and_others_are_unknown() {
        assert_eq!(GoroutineStatus::of(4), Some(GoroutineStatus::Waiting));
        assert_eq!(GoroutineStatus::of(0x1004), Some(GoroutineStatus::Waiting));
        assert_eq!(GoroutineStatus::of(0x2004), None);
        for unknown in [5, 7, 12, u32::MAX] {
            assert_eq!(GoroutineStatus::of(unknown), None);
        }
        assert!(!GoroutineStatus::Dead.is_alive() && GoroutineStatus::Waiting.is_alive());
    }
}
