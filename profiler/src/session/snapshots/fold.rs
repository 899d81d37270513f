//! From a snapshot to the values of a window: goroutines with the same stack, state
//! and labels together, each as often as it was seen and for the time that stands for,
//! times the goroutines that it stands for where only some were looked at.

use foldhash::{HashMap, HashMapExt as _};

use crate::{
    aggregate::{Owner, Window},
    gobinary::GoroutineStatus,
    process::ProcessIndex,
    session::{carry::Carry, goroutines::Snapshot},
};

/// What stands for the stack of one that changed each time it was read, or ended.
const CHANGED: &str = "[changed while it was read]";

/// What of a snapshot is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    /// Whether goroutines are told apart.
    pub goroutines: bool,
    /// Whether their labels are.
    pub labels: bool,
    /// The time that it stands for, with what goroutines do or wait for as the leaf of
    /// their stacks; None to count them.
    pub weight_ns: Option<i64>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    stack: u32,
    labels: u32,
    state: Option<(GoroutineStatus, Option<u8>)>,
    goid: Option<u64>,
}

/// Adds the goroutines of a snapshot.
pub(super) fn add(
    window: &mut Window,
    (process, snapshot): (ProcessIndex, &Snapshot),
    kept: Kept,
    carry: &mut Carry,
) {
    let is_wall = kept.weight_ns.is_some();
    let mut counts: HashMap<Key, i64> = HashMap::new();
    for goroutine in &snapshot.goroutines {
        let key = Key {
            stack: goroutine.stack,
            labels: if kept.labels { goroutine.labels } else { 0 },
            state: is_wall.then_some((goroutine.status, goroutine.reason)),
            goid: kept.goroutines.then_some(goroutine.goid),
        };
        *counts.entry(key).or_default() += 1;
    }
    let stands_for = snapshot.listing.stands_for();
    let mut values = |count: i64| {
        let time_ns = kept.weight_ns.map(|weight| weight.saturating_mul(count));
        carry.scaled([count, time_ns.unwrap_or(0), 0, 0], [stands_for; 4])
    };
    let mut stack = Vec::new();
    for (key, count) in counts {
        stack.clear();
        if let Some((status, reason)) = key.state {
            stack.push(window.word(&word(snapshot, status, reason)));
        }
        let frames = snapshot.stacks.get(key.stack as usize);
        stack.extend(frames.into_iter().flat_map(|frames| frames.iter()));
        let labels = snapshot.labels.get(key.labels as usize);
        let owner = Owner {
            process,
            goid: key.goid,
            labels: labels.cloned().unwrap_or_default(),
            ..Owner::default()
        };
        window.add_values(owner, &stack, 0, values(count));
    }
    let changed = snapshot.left_out.changed + snapshot.left_out.ended;
    let changed = i64::try_from(changed).unwrap_or(i64::MAX);
    if changed > 0 && is_wall {
        let owner = Owner {
            process,
            ..Owner::default()
        };
        let stack = [window.word(CHANGED)];
        window.add_values(owner, &stack, 0, values(changed));
    }
}

/// What a goroutine does or waits for, as Go's tracebacks have it.
fn word(snapshot: &Snapshot, status: GoroutineStatus, reason: Option<u8>) -> String {
    let reason = snapshot.reason_words(reason);
    match status {
        GoroutineStatus::Waiting if !reason.is_empty() => format!("[{reason}]"),
        status => format!("[{}]", status.name()),
    }
}
