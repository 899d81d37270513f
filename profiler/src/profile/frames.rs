//! Frames: a sample's stack as the text and picture formats show it, outermost
//! frame first, inlined frames included, and the one value that they give it.
//! Knows nothing of any one format.

use super::Options;
use crate::symbolize::{FunctionId, Location, MappingId, Sample, SymbolizedWindow};

/// What a format shows of a sample that has one value for a stack: how much of
/// the value `index` it is. None for nothing, and for less: memory that was
/// freed and not allocated meanwhile has no place in a picture.
pub(super) fn weight(sample: &Sample, index: usize) -> Option<u64> {
    let value = sample.values.get(index).copied().unwrap_or_default();
    u64::try_from(value).ok().filter(|weight| *weight > 0)
}

/// The value that formats show which count: samples, where each stands for the
/// same time.
pub(super) fn counted(window: &SymbolizedWindow, options: &Options) -> usize {
    let event = window.event;
    let own = if event.is_periodic() {
        0
    } else {
        event.default_value()
    };
    options.value.unwrap_or(own)
}

/// A source frame of a sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'w> {
    /// The function.
    pub function: FunctionId,
    /// The line being executed, 0 where unknown.
    pub line: u32,
    /// Whether the function was inlined into the next outer frame.
    pub inlined: bool,
    /// The code address the frame comes from.
    pub location: &'w Location,
}

/// The frames of a sample, outermost first.
pub(super) fn outermost_first<'w>(
    window: &'w SymbolizedWindow,
    sample: &'w Sample,
) -> impl Iterator<Item = Frame<'w>> {
    sample.stack.iter().rev().flat_map(move |id| {
        let location = &window.locations[id.0 as usize];
        let physical = location.lines.len() - 1;
        location
            .lines
            .iter()
            .enumerate()
            .rev()
            .map(move |(i, line)| Frame {
                function: line.function,
                line: line.line,
                inlined: i < physical,
                location,
            })
    })
}

/// The mapping that stands for the source of a frame without a source file.
pub(super) fn mapping_as_source(window: &SymbolizedWindow, frame: &Frame<'_>) -> Option<MappingId> {
    let function = &window.functions[frame.function.0 as usize];
    match function.file.is_empty() {
        true => frame.location.mapping,
        false => None,
    }
}

/// The name under which a sample's process is shown: `comm` for the only one,
/// `comm-pid` among several, as `stackcollapse-perf.pl` has them.
pub(super) fn process_label(window: &SymbolizedWindow, sample: &Sample) -> String {
    let process = &window.processes[sample.process.0 as usize];
    let comm = if process.comm.is_empty() {
        "unknown"
    } else {
        &process.comm
    };
    if window.processes.len() > 1 {
        format!("{comm}-{}", process.pid)
    } else {
        comm.to_owned()
    }
}

/// The name under which a sample's thread is shown, `name-tid`, where threads
/// are told apart.
pub(super) fn thread_label(sample: &Sample) -> Option<String> {
    let thread = sample.thread.as_ref()?;
    Some(format!("{}-{}", thread.name, thread.tid))
}
