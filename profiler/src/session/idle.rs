//! Leaves the runtime's idle threads out of time off the CPU: a Go program has some,
//! and each is off the CPU nearly all the time.

use super::measured::{BLOCKED, STATE};
use crate::{
    gobinary::is_idle_thread,
    symbolize::{Event, FrameKind, Sample, SymbolizedWindow},
};

/// What was left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Idle {
    /// How many waits.
    pub count: u64,
    /// How long, in nanoseconds of all threads together.
    pub ns: u64,
}

impl Idle {
    /// Takes the blocked threads that are merely idle out of a window of time off the
    /// CPU. One that waits for a CPU is not idle any more: there is work for it.
    pub(super) fn leave_out(window: &mut SymbolizedWindow) -> Self {
        let mut idle = Self::default();
        if window.event != Event::OffCpu {
            return idle;
        }
        let mut samples = std::mem::take(&mut window.samples);
        samples.retain(|sample| {
            let is_idle = is_blocked(sample) && is_idle_thread(go_functions(window, sample));
            if is_idle {
                idle.count += sample.values[0].unsigned_abs();
                idle.ns += sample.values[1].unsigned_abs();
            }
            !is_idle
        });
        window.samples = samples;
        idle
    }
}

fn is_blocked(sample: &Sample) -> bool {
    let mut labels = sample.labels.iter();
    labels.any(|(key, value)| key == STATE && value == BLOCKED)
}

/// The Go functions of a stack, leaf first.
fn go_functions<'w>(
    window: &'w SymbolizedWindow,
    sample: &'w Sample,
) -> impl Iterator<Item = &'w str> {
    let locations = sample
        .stack
        .iter()
        .map(|id| &window.locations[id.0 as usize]);
    let go = locations.filter(|location| location.kind == FrameKind::Go);
    let lines = go.flat_map(|location| &location.lines);
    lines.map(|line| window.functions[line.function.0 as usize].name.as_str())
}
