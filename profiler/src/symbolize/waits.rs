//! What of named waits is shown: stacks from the call that waits or wakes on, as Go's
//! own profiles have them, and without waits for what nobody is waiting for.

use super::{Event, LocationId, Sample, SymbolizedWindow};

/// Functions between that call and the runtime's own, which Go's profiles leave out
/// (`blockevent`, `mutexevent` and their callers in `runtime`), in all versions.
const WITHIN: [&str; 30] = [
    "runtime.gopark",
    "runtime.goparkunlock",
    "runtime.chanrecv",
    "runtime.chansend",
    "runtime.netpollblock",
    "runtime.semacquire",
    "runtime.semacquire1",
    "runtime.semacquireRWMutexR",
    "runtime.semrelease",
    "runtime.semrelease1",
    "runtime.readyWithTime",
    "runtime.(*semaRoot).queue",
    "sync.runtime_Semacquire",
    "sync.runtime_SemacquireMutex",
    "sync.runtime_SemacquireRWMutex",
    "sync.runtime_SemacquireRWMutexR",
    "sync.runtime_SemacquireWaitGroup",
    "sync.runtime_Semrelease",
    "sync.runtime_notifyListWait",
    "sync.runtime_notifyListNotifyAll",
    "sync.runtime_notifyListNotifyOne",
    "internal/sync.runtime_SemacquireMutex",
    "internal/sync.runtime_Semrelease",
    "internal/sync.(*Mutex).lockSlow",
    "internal/sync.(*Mutex).unlockSlow",
    "sync.(*Mutex).lockSlow",
    "sync.(*Mutex).unlockSlow",
    "sync.(*RWMutex).rUnlockSlow",
    "internal/poll.runtime_Semacquire",
    "internal/poll.runtime_Semrelease",
];

/// Functions that wait for somebody to come: for a connection, or for the next request
/// on one. How long says nothing of the program.
const FOR_SOMEBODY: [&str; 8] = [
    "net.(*netFD).accept",
    "net/http.(*connReader).backgroundRead",
    "net/http.(*conn).readRequest",
    "net/http.(*persistConn).readLoop",
    "net/http.(*persistConn).writeLoop",
    "net/http.(*http2serverConn).readFrames",
    "net/http.(*http2clientConnReadLoop).run",
    "golang.org/x/net/http2.(*Framer).ReadFrame",
];

/// Cuts off what lies within the call that waits or wakes. Of waits other than for
/// semaphores drops, unless `all` are wanted, those for somebody to come; says how
/// many they were, and of how many nanoseconds.
pub(super) fn show(window: &mut SymbolizedWindow, all: bool) -> (u64, u64) {
    if !matches!(window.event, Event::Mutex | Event::Block) {
        return (0, 0);
    }
    let mut samples = std::mem::take(&mut window.samples);
    let mut dropped = (0, 0);
    if window.event == Event::Block && !all {
        samples.retain(|sample| {
            let keeps = !waits_for_somebody(window, sample);
            if !keeps {
                dropped.0 += sample.values[0].unsigned_abs();
                dropped.1 += sample.values[1].unsigned_abs();
            }
            keeps
        });
    }
    for sample in &mut samples {
        let within = sample.stack.iter().take_while(|id| is_within(window, **id));
        // The last frame of a stack stays, whatever it is.
        let within = within.count().min(sample.stack.len().saturating_sub(1));
        sample.stack.drain(..within);
    }
    window.samples = samples;
    dropped
}

fn is_within(window: &SymbolizedWindow, id: LocationId) -> bool {
    let location = window.locations.get(id.0 as usize);
    let outermost = location.and_then(|location| location.lines.last());
    let function = outermost.and_then(|line| window.functions.get(line.function.0 as usize));
    function.is_some_and(|function| WITHIN.contains(&function.name.as_str()))
}

fn waits_for_somebody(window: &SymbolizedWindow, sample: &Sample) -> bool {
    let locations = sample
        .stack
        .iter()
        .filter_map(|id| window.locations.get(id.0 as usize));
    let lines = locations.flat_map(|location| &location.lines);
    let mut functions = lines.filter_map(|line| window.functions.get(line.function.0 as usize));
    functions.any(|function| FOR_SOMEBODY.contains(&function.name.as_str()))
}
