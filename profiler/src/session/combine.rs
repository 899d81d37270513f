//! Time on the CPU and off it in one picture: the time of threads, whose leaf says
//! what the thread was doing.

use super::{
    Idle, Named,
    measured::{BLOCKED, STATE, WAITING},
};
use crate::{
    aggregate::{StackValues, Window},
    process::ProcessTable,
    symbolize::{
        Event, FrameKind, Function, FunctionId, Line, Location, LocationId, SymbolizedWindow,
        Symbolizer, Taken,
    },
};

/// What a thread was doing, as a frame: running, waiting for a CPU, blocked.
const LEAVES: [&str; 3] = ["[running]", "[waiting for a CPU]", "[blocked]"];

/// Where the leaves are, for those who tell frames by their address: neither user
/// code nor the kernel's is there.
const LEAF_ADDRESS: u64 = 1 << 61;

/// Names the windows of both events as one.
pub(super) fn combine(
    windows: &[(Taken, Window)],
    processes: &ProcessTable,
    symbolizer: &mut Symbolizer,
) -> Named {
    let mut stacks = Vec::new();
    let mut combined: Option<Taken> = None;
    for (taken, window) in windows {
        let mut of_event = window.stacks();
        if taken.event.is_periodic() {
            for stack in &mut of_event {
                let period = i64::try_from(taken.period).unwrap_or(i64::MAX);
                stack.values[1] = stack.values[0].saturating_mul(period);
            }
        }
        stacks.append(&mut of_event);
        combined = combined.or(Some(*taken));
    }
    let taken = Taken {
        event: Event::Threads,
        period: 1,
        ..combined.unwrap_or_else(nothing)
    };
    let leaves: Vec<usize> = stacks.iter().map(leaf).collect();
    let (mut window, mut naming) = symbolizer.symbolize_stacks(taken, &stacks, processes);
    let ids = add_leaves(&mut window);
    for (sample, leaf) in window.samples.iter_mut().zip(leaves) {
        sample.stack.insert(0, ids[leaf]);
        sample.labels.retain(|(key, _)| key != STATE);
        naming.named += sample.values[0].unsigned_abs();
    }
    let counts = window.samples.iter().map(|sample| sample.values[0]);
    Named {
        samples: counts.map(i64::unsigned_abs).sum(),
        window,
        naming,
        idle: Idle::default(),
    }
}

/// Of no event at all.
fn nothing() -> Taken {
    Taken {
        all_waits: false,
        event: Event::Threads,
        start: std::time::UNIX_EPOCH,
        duration: std::time::Duration::ZERO,
        period: 1,
    }
}

/// The index of a stack's leaf.
fn leaf(stack: &StackValues<'_>) -> usize {
    let state = stack.labels.iter().find(|(key, _)| key == STATE);
    match state.map(|(_, value)| value.as_str()) {
        Some(WAITING) => 1,
        Some(BLOCKED) => 2,
        _ => 0,
    }
}

fn add_leaves(window: &mut SymbolizedWindow) -> [LocationId; LEAVES.len()] {
    let mut address = LEAF_ADDRESS;
    LEAVES.map(|name| {
        let function = FunctionId(window.functions.len() as u32);
        window.functions.push(Function {
            name: name.to_owned(),
            file: String::new(),
            start_line: 0,
        });
        let id = LocationId(window.locations.len() as u32);
        window.locations.push(Location {
            address,
            mapping: None,
            kind: FrameKind::Go,
            lines: vec![Line { function, line: 0 }],
            reason: None,
        });
        address += 1;
        id
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Owner;

    #[test]
    fn both_events_become_thread_seconds_under_three_leaves() {
        let mut cpu = Window::default();
        let mut off_cpu = Window::default();
        let mut processes = ProcessTable::default();
        let process = crate::session::fake::process(&mut processes);
        let owner = |state: Option<&str>| Owner {
            process,
            labels: state
                .map(|state| (STATE.to_owned(), state.to_owned()))
                .into_iter()
                .collect(),
            ..Owner::default()
        };
        cpu.add(owner(None), &[0x1010], 0);
        cpu.add(owner(None), &[0x1010], 0);
        off_cpu.add_values(owner(Some(BLOCKED)), &[0x1010], 0, [3, 70, 0, 0]);
        off_cpu.add_values(owner(Some(WAITING)), &[0x1010], 0, [1, 5, 0, 0]);
        let taken = |event, period| Taken {
            event,
            period,
            ..nothing()
        };
        let windows = [
            (taken(Event::Cpu, 10), cpu),
            (taken(Event::OffCpu, 1), off_cpu),
        ];
        let named = combine(&windows, &processes, &mut Symbolizer::default());
        let window = &named.window;
        assert_eq!((window.event, named.samples), (Event::Threads, 6));
        let mut seen: Vec<(&str, i64, i64)> = window
            .samples
            .iter()
            .map(|sample| {
                assert!(sample.labels.is_empty());
                let leaf = &window.locations[sample.stack[0].0 as usize];
                let name = &window.functions[leaf.lines[0].function.0 as usize].name;
                (name.as_str(), sample.values[0], sample.values[1])
            })
            .collect();
        seen.sort_unstable();
        let expected = [
            ("[blocked]", 3, 70),
            ("[running]", 2, 20),
            ("[waiting for a CPU]", 1, 5),
        ];
        assert_eq!(seen, expected);
    }
}
