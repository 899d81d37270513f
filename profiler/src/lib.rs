//! goprof: an eBPF profiler for Go on Linux that changes nothing in the
//! profiled program. Modules stand in pipeline order; `ARCHITECTURE.md` says
//! what each may know.

pub mod decode;
pub mod probe;
pub mod ringbuf;
pub mod symbolize;

pub mod gobinary;
pub mod image;
