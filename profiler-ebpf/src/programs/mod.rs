//! Entry points: one file per hook. [`emit`] alone writes to the ring buffer.

mod allocations;
mod block_io;
mod blocking;
mod budget;
mod chain;
mod contention;
mod cpu;
mod emit;
mod goroutine;
mod labels;
mod lifecycle;
mod memory;
mod off_cpu;
mod probe_count;
mod probe_tick;
mod registers;
mod sample;
mod scratch;
mod stack;
mod waits;
