//! goprof: an eBPF profiler for Go on Linux that changes nothing in the
//! profiled program. Modules stand in pipeline order; `ARCHITECTURE.md` says
//! what each may know.

pub mod aggregate;
pub mod decode;
pub mod probe;
pub mod profile;
pub mod ringbuf;
pub mod sink;
pub mod symbolize;
pub mod unwind;

pub mod doctor;
pub mod gobinary;
pub mod gomemory;
#[cfg(feature = "agent")]
pub mod identity;
pub mod image;
pub mod memory;
#[cfg(feature = "agent")]
pub mod metrics;
pub mod process;

#[cfg(feature = "agent")]
pub mod agent;
pub mod cli;
pub mod session;
