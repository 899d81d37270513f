//! Sink: where encoded profiles go. A sink sees bytes, never a sample.

mod file;
mod filename;
#[cfg(feature = "agent")]
pub mod key;
#[cfg(feature = "agent")]
mod receiver;
#[cfg(feature = "agent")]
mod spool;
#[cfg(feature = "agent")]
mod store;
#[cfg(feature = "agent")]
mod upload;

pub use file::{FileSink, is_stdout};
pub use filename::{Subject, default_name};
#[cfg(feature = "agent")]
pub use receiver::{Access, Receiver};
#[cfg(feature = "agent")]
pub use spool::{Entry, Spool, SpoolCounters};
#[cfg(feature = "agent")]
pub use store::{Failure, PutError, Store};
#[cfg(feature = "agent")]
pub use upload::{Destination, UploadCounters, Uploader};
