//! Which goroutines are the runtime's own: those that Go's own listings leave out.

use foldhash::{HashMap, HashMapExt as _};

use super::Source;
use crate::{
    gobinary::{FuncKind, GoroutineStatus},
    gomemory::Goroutine,
};

/// What goroutines wait for that run finalizers or cleanups, while they run none
/// (`runtime.waitReasonStrings`).
const IDLE_REASONS: [&str; 2] = ["finalizer wait", "cleanup wait"];

/// Tells them by the functions that they were started with, and remembers those.
pub(super) struct RuntimesOwn {
    by_start: HashMap<u64, Start>,
    idle_reasons: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Users,
    Runtimes,
    /// It runs users' functions from time to time.
    Either,
}

impl RuntimesOwn {
    /// Where goroutines wait for what is in `reasons`.
    pub(super) fn of(reasons: &[String]) -> Self {
        let is_idle = |(_, reason): &(u8, &String)| IDLE_REASONS.contains(&reason.as_str());
        let idle = (0..=u8::MAX).zip(reasons).filter(is_idle);
        Self {
            by_start: HashMap::new(),
            idle_reasons: idle.map(|(number, _)| number).collect(),
        }
    }

    /// Whether a goroutine is the runtime's own (`runtime.isSystemGoroutine`).
    pub(super) fn has(&mut self, goroutine: &Goroutine, source: &Source<'_>) -> bool {
        let start_pc = goroutine.start_pc;
        let start = *self
            .by_start
            .entry(start_pc)
            .or_insert_with(|| start_of(start_pc, source));
        match start {
            Start::Users => false,
            Start::Runtimes => true,
            Start::Either => {
                goroutine.status == GoroutineStatus::Waiting
                    && self.idle_reasons.contains(&goroutine.wait_reason)
            }
        }
    }
}

fn start_of(start_pc: u64, source: &Source<'_>) -> Start {
    let (binary, vaddr) = (source.program.binary, source.program.vaddr(start_pc));
    let mut frames = Vec::new();
    let is_runtimes = binary.frames(vaddr, &mut frames).is_ok()
        && frames
            .last()
            .is_some_and(|frame| frame.name.starts_with("runtime."));
    match binary.function(vaddr).map(|function| function.kind) {
        _ if !is_runtimes => Start::Users,
        Some(FuncKind::RuntimeMain | FuncKind::Corostart | FuncKind::HandleAsyncEvent) => {
            Start::Users
        }
        Some(FuncKind::RunFinalizers | FuncKind::RunCleanups) => Start::Either,
        _ => Start::Runtimes,
    }
}
