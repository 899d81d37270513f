//! Entry points: one file per hook. [`emit`] alone writes to the ring buffer.

mod cpu;
mod emit;
mod lifecycle;
mod registers;
