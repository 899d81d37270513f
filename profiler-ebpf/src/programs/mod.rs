//! Entry points: one file per hook. [`emit`] alone writes to the ring buffer.

mod budget;
mod chain;
mod cpu;
mod emit;
mod goroutine;
mod labels;
mod lifecycle;
mod memory;
mod probe_count;
mod registers;
mod scratch;
mod stack;
