//! Sink: where encoded profiles go. A sink sees bytes, never a sample.

mod file;
mod filename;

pub use file::{FileSink, is_stdout};
pub use filename::{Subject, default_name};
