//! Symbolize: turns a window of addresses into named frames.
//!
//! The result, [`SymbolizedWindow`], is what every output format reads. It is
//! typed data throughout; no stage passes text to the next.

mod window;

pub use window::{
    Event, FrameKind, Function, FunctionId, Line, Location, LocationId, Mapping, MappingId,
    Process, ProcessId, Reason, Sample, SymbolizedWindow, Thread,
};
