//! Decode: bytes of one ring-buffer record to an [`Event`]. Does no I/O and
//! copies nothing.

use profiler_ebpf::wire::{self, WalkEnd, kind};
use thiserror::Error;
use zerocopy::FromBytes;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// A stack was sampled.
    Sample(Sample<'a>),
    /// A process began a new program.
    Exec {
        /// Its process id.
        pid: u32,
        /// When, on the monotonic clock.
        time_ns: u64,
    },
    /// The main thread of a process is exiting.
    Exit {
        /// Its process id.
        pid: u32,
    },
}

/// A sampled stack, as the kernel side took it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample<'a> {
    /// Who, when, where, and the registers.
    pub head: &'a wire::Sample,
    /// How the walk along frame pointers ended.
    pub walk_end: WalkEnd,
    /// Return addresses of the user stack, leaf first, without the
    /// interrupted instruction itself.
    pub callers: &'a [u64],
    /// Words of the user stack from the stack pointer up.
    pub slice: &'a [u64],
    /// Kernel addresses, leaf first; empty where the thread was in user code.
    pub kernel: &'a [u64],
}

/// Why a record cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The record is shorter than it says.
    #[error("record cut short")]
    Short,
    /// The record's kind, or a value in it, is unknown.
    #[error("record of an unknown kind")]
    Unknown,
}

/// Reads one record.
///
/// # Errors
/// The record is not one that this goprof's kernel side writes.
pub fn decode(bytes: &[u8]) -> Result<Event<'_>, DecodeError> {
    let (header, _) = wire::Header::ref_from_prefix(bytes).map_err(|_| DecodeError::Short)?;
    match header.kind {
        kind::SAMPLE => sample(bytes).map(Event::Sample),
        kind::EXEC => Ok(Event::Exec {
            pid: header.pid,
            time_ns: header.time_ns,
        }),
        kind::EXIT => Ok(Event::Exit { pid: header.pid }),
        _ => Err(DecodeError::Unknown),
    }
}

fn sample(bytes: &[u8]) -> Result<Sample<'_>, DecodeError> {
    let (head, rest) = wire::Sample::ref_from_prefix(bytes).map_err(|_| DecodeError::Short)?;
    let (callers, rest) = words(rest, head.user_frames)?;
    let (slice, rest) = words(rest, head.slice_words)?;
    let (kernel, _) = words(rest, head.kernel_frames)?;
    Ok(Sample {
        head,
        walk_end: WalkEnd::from_u8(head.walk_end).ok_or(DecodeError::Unknown)?,
        callers,
        slice,
        kernel,
    })
}

fn words(bytes: &[u8], count: u16) -> Result<(&[u64], &[u8]), DecodeError> {
    <[u64]>::ref_from_prefix_with_elems(bytes, usize::from(count)).map_err(|_| DecodeError::Short)
}
