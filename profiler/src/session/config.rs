//! What a session is to record, and within which limits.

use std::time::Duration;

use super::probing::ProbeConfig;
use crate::{process::Selection, symbolize};

/// The events that a session can record.
pub const SAMPLED: [symbolize::Event; 6] = [
    symbolize::Event::Cpu,
    symbolize::Event::Mutex,
    symbolize::Event::Block,
    symbolize::Event::OffCpu,
    symbolize::Event::Io,
    symbolize::Event::AllocEvents,
];

/// What to record, validated.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whose stacks.
    pub selection: Selection,
    /// Of what: any of [`SAMPLED`].
    pub events: Vec<symbolize::Event>,
    /// How often, in samples a second and CPU, where CPU time is sampled.
    pub rate_hz: u32,
    /// How long; until stopped where `None`.
    pub duration: Option<Duration>,
    /// Whether kernel stacks are wanted.
    pub kernel_stacks: bool,
    /// Whether requests to block devices by threads of the kernel are wanted.
    pub kernel_threads: bool,
    /// Whether threads are told apart.
    pub threads: bool,
    /// Whether goroutines are told apart.
    pub goroutines: bool,
    /// Whether the pprof labels of goroutines are told apart.
    pub labels: bool,
    /// Whether time off the CPU of threads of the runtime that are merely idle counts.
    pub idle: bool,
    /// Whether time on the CPU and off it become one window of the time of threads,
    /// the idle ones included.
    pub combine: bool,
    /// Size of the ring buffer, in bytes; a power of two.
    pub ring_bytes: u32,
    /// What probes may do, for the events that take them.
    pub probes: ProbeConfig,
}

impl Config {
    /// With kernel stacks and the labels of goroutines, which with threads are not told
    /// apart; until stopped, CPU time at 99 Hz, a ring buffer of 8 MB.
    pub fn of(selection: Selection, events: Vec<symbolize::Event>) -> Self {
        Self {
            selection,
            events,
            rate_hz: 99,
            duration: None,
            kernel_stacks: true,
            kernel_threads: false,
            threads: false,
            goroutines: false,
            labels: true,
            idle: false,
            combine: false,
            ring_bytes: 8 << 20,
            probes: ProbeConfig::default(),
        }
    }
}

/// How much memory a session may take.
#[derive(Debug, Clone, Copy)]
pub struct MemoryLimit {
    /// What the process may have resident: when it comes near, the session lets go
    /// of what can be had again.
    pub process_bytes: u64,
    /// What a window may take while it is named and written. One that would take
    /// more ends [`Session::run`] with [`Stopped::Full`]; so does one of a quarter of
    /// it where letting go was not enough.
    pub window_bytes: usize,
}
