//! goprof: an eBPF profiler for Go on Linux that changes nothing in the
//! profiled program. Modules stand in pipeline order; `ARCHITECTURE.md` says
//! what each may know.

pub mod probe;
pub mod ringbuf;
pub mod decode;
pub mod unwind;
pub mod aggregate;
pub mod symbolize;

pub mod profile;

pub mod sink;

pub mod gobinary;
pub mod image;
pub mod process;

pub mod session;
