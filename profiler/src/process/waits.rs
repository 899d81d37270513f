//! What the kernel side must know of a Go program to follow its waits.

use profiler_ebpf::wire::{Code, SpanLayout, WaitLayout};

use super::{NoLayout, Process};
use crate::{
    gobinary::StructOffsets,
    gomemory::{Live, Memory as _},
};

/// Waits that nobody asked about: those of the runtime's own goroutines for work, and
/// sleeps (`waitReasonStrings` in `runtime/runtime2.go`, in all versions that have
/// them).
const UNASKED: [&str; 14] = [
    "",
    "GC worker (idle)",
    "GC worker (active)",
    "GC assist marking",
    "GC background sweeper wait",
    "GC sweep wait",
    "GC scavenge wait",
    "force gc (idle)",
    "finalizer wait",
    "cleanup wait",
    "sleep",
    "debug call",
    "trace reader (blocked)",
    "stopping the world",
];

impl Process {
    /// How long goroutines have waited for mutexes and read-write mutexes since the
    /// program began, in nanoseconds, by the runtime's own estimate: it looks at one wait
    /// in eight (`gTrackingPeriod` in `runtime/runtime2.go`). None up to Go 1.19.
    pub fn mutex_wait_ns(&self) -> Option<u64> {
        let memory = Live::open(self.pid).ok()?;
        let (sched, fields) = self.go_program(&memory)?.sched()?;
        memory.word(sched.checked_add(fields.mutex_wait?)?)
    }

    /// What the kernel side must know to follow the waits of this program, its wait
    /// reasons, in words, and where its runtime keeps what; None where its goroutines cannot be found yet. Waits
    /// that nobody asked about are left out unless `all` are wanted.
    ///
    /// # Errors
    /// Why that cannot be known.
    pub fn wait_layout(
        &self,
        all: bool,
    ) -> Result<Option<(WaitLayout, Vec<String>, StructOffsets)>, String> {
        let memory = Live::open(self.pid).map_err(|error| error.to_string())?;
        let offsets = match self.struct_offsets(&memory) {
            Ok((offsets, true)) => offsets,
            Ok((_, false)) | Err(NoLayout::NotYet) => return Ok(None),
            Err(NoLayout::Unknown(why)) => return Err(why),
        };
        let program = self.go_program(&memory);
        let lists = *program
            .ok_or("its Go code is not mapped")?
            .lists(&offsets)?;
        let (object, bias) = self.go_mapping().ok_or("its Go code is not mapped")?;
        let binary = object.go().ok_or("it is not Go")?;
        let reasons = binary
            .wait_reasons()
            .ok_or("it does not say what goroutines wait for")?;
        let park = binary
            .functions_by_name("runtime.gopark")
            .next()
            .ok_or("it has no runtime.gopark")?;
        // One that was to let others run at the entry of gopark has not parked: where it
        // goes on is in the code that grows stacks, at the end.
        let park_ends = binary.stack_grows_at(park).unwrap_or(park.end);
        let mut wanted = [0_u64; 2];
        for (number, reason) in reasons.iter().enumerate().take(128) {
            if all || !UNASKED.contains(&reason.as_str()) {
                wanted[number / 64] |= 1 << (number % 64);
            }
        }
        let layout = WaitLayout {
            reasons: wanted,
            min_wait_ns: 0,
            park: Code {
                start: park.entry.wrapping_add(bias),
                len: park_ends.saturating_sub(park.entry),
            },
            g_wait_reason: u16::try_from(lists.wait_reason)
                .map_err(|_| "its offsets are out of range")?,
            at: 0,
            // `semrelease1` in `runtime/sema.go`.
            counts_all: u8::from(binary.version().major_minor() >= (1, 21)),
            reserved: 0,
            total_alloc: 0,
            span: SpanLayout::default(),
        };
        Ok(Some((layout, reasons, offsets)))
    }
}

/// What the kernel side must know to tell how much of a span was used.
///
/// # Errors
/// Why that cannot be known.
pub fn span_layout(offsets: &StructOffsets) -> Result<SpanLayout, String> {
    let spans = offsets.spans.map_err(|unlike| unlike.to_string())?;
    let narrow = |offset| u16::try_from(offset).map_err(|_| "its offsets are out of range");
    Ok(SpanLayout {
        cache_alloc: narrow(spans.cache_alloc)?,
        used: narrow(spans.used)?,
        used_before: narrow(spans.used_before)?,
        block_bytes: narrow(spans.block_bytes)?,
    })
}
