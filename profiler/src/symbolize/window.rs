//! The symbolized window: samples over tables of locations, functions,
//! mappings and processes. Plain data, no I/O, no knowledge of any format.

use std::time::{Duration, SystemTime};

use super::Event;
use crate::aggregate::{Labels, Thread, Values};

/// Index into [`SymbolizedWindow::locations`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocationId(pub u32);
/// Index into [`SymbolizedWindow::functions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId(pub u32);
/// Index into [`SymbolizedWindow::mappings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MappingId(pub u32);
/// Index into [`SymbolizedWindow::processes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u32);

/// Everything that was sampled between two moments, with names.
#[derive(Debug, Clone)]
pub struct SymbolizedWindow {
    /// What was sampled.
    pub event: Event,
    /// Wall-clock time at which sampling began.
    pub start: SystemTime,
    /// How long it went on.
    pub duration: Duration,
    /// What one sample stands for, in the unit of [`Event::period_type`]: of CPU
    /// time 1e9 / rate nanoseconds.
    pub period: u64,
    /// The processes seen, each with at least one sample.
    pub processes: Vec<Process>,
    /// The distinct stacks, each with its values.
    pub samples: Vec<Sample>,
    /// The distinct code addresses.
    pub locations: Vec<Location>,
    /// The distinct functions.
    pub functions: Vec<Function>,
    /// The distinct executable mappings.
    pub mappings: Vec<Mapping>,
}

/// One distinct stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Whose it is.
    pub process: ProcessId,
    /// Which thread it ran on; only where threads are told apart.
    pub thread: Option<Thread>,
    /// In which goroutine; only where goroutines are told apart.
    pub goid: Option<u64>,
    /// The goroutine's pprof labels, by key; of memory the label `type`.
    pub labels: Labels,
    /// The size of a block of memory, in bytes, where memory is what is counted.
    pub block_bytes: Option<u64>,
    /// The frames, leaf first: kernel frames (if any), then user frames.
    pub stack: Vec<LocationId>,
    /// One value for each of [`Event::value_types`], in their order.
    pub values: Values,
}

/// A code address with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The address in the process (for a caller's frame the call, that is the
    /// return address less one), rebased to `mapping` where processes share it.
    pub address: u64,
    /// The mapping it lies in, if any.
    pub mapping: Option<MappingId>,
    /// What kind of code it is.
    pub kind: FrameKind,
    /// The source frames at this address, leaf first. All but the last are
    /// inlined; the last is the function that holds the machine code. Never
    /// empty: an address without a name has one line whose function says so.
    pub lines: Vec<Line>,
    /// Why it has no name, where it has none.
    pub reason: Option<Reason>,
}

/// One source frame of a location.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// The function.
    pub function: FunctionId,
    /// The line number, 0 where unknown.
    pub line: u32,
}

/// What kind of code a location is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// Go code, named from the binary's pclntab.
    Go,
    /// C, C++ or other native user code, the vdso included.
    Native,
    /// The kernel.
    Kernel,
}

/// Why an address has no name. A frame without a name is kept, with this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No mapping of the process covers the address.
    NoMapping,
    /// The mapping is not backed by a file (JIT code, anonymous memory).
    Anonymous,
    /// The file behind the mapping could not be opened.
    FileUnavailable,
    /// The file changed or shrank after it was opened.
    FileChanged,
    /// The file has no symbol for the address.
    NoSymbol,
    /// The file's tables are damaged at this address.
    Damaged,
    /// It stands for frames that could not be had.
    Gap,
}

impl Reason {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Reason::NoMapping => "no mapping",
            Reason::Anonymous => "not in a file",
            Reason::FileUnavailable => "file not readable",
            Reason::FileChanged => "file changed",
            Reason::NoSymbol => "no symbol",
            Reason::Damaged => "damaged tables",
            Reason::Gap => "frames missing",
        }
    }
}

/// A function.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Function {
    /// The name as pprof shows it, e.g. `net/http.(*conn).serve`.
    pub name: String,
    /// The source file, empty where unknown.
    pub file: String,
    /// The line at which the function begins, 0 where unknown.
    pub start_line: u32,
}

/// An executable mapping.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address past the last.
    pub end: u64,
    /// Offset in the file of `start`, in bytes.
    pub offset: u64,
    /// The file, as the process sees it, without ` (deleted)`; `[kernel]`,
    /// `[vdso]` for those.
    pub file: String,
    /// The GNU build id in lower-case hex, empty where the file has none.
    pub build_id: String,
}

/// A process that was sampled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id, in the pid namespace goprof runs in.
    pub pid: u32,
    /// The process's name (of its main thread, at first sight).
    pub comm: String,
    /// The executable's path, as the process sees it.
    pub exe: String,
    /// The id of its cgroup (the v2 directory's inode), 0 where unknown.
    pub cgroup_id: u64,
    /// Its Go version, e.g. `go1.26.8`; empty for a process that is not Go.
    pub go_version: String,
}
