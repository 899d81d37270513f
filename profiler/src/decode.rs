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
    /// Who and when.
    pub head: &'a wire::Sample,
    /// The stack that the thread was on.
    pub thread: Segment<'a>,
    /// The goroutine's own, where the thread was on the system stack.
    pub goroutine: Option<Segment<'a>>,
    /// Kernel addresses, leaf first; empty where the thread was in user code.
    pub kernel: &'a [u64],
    /// The goroutine's pprof labels, as recorded; see [`Sample::labels`].
    pub labels: &'a [u8],
}

/// A piece of stack: registers and what they led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub fp: u64,
    /// How the walk along frame pointers ended.
    pub walk_end: WalkEnd,
    /// Return addresses, leaf first, without `ip` itself.
    pub callers: &'a [u64],
    /// Words of the stack from the stack pointer up.
    pub slice: &'a [u64],
}

/// A pprof label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// Whether either was longer.
    pub truncated: bool,
}

impl<'a> Sample<'a> {
    /// The goroutine's pprof labels.
    pub fn labels(&self) -> impl Iterator<Item = Label<'a>> + use<'a> {
        let mut rest = self.labels;
        std::iter::from_fn(move || {
            let (label, texts) = wire::Label::ref_from_prefix(rest).ok()?;
            let (key_bytes, value_bytes) =
                (usize::from(label.key_bytes), usize::from(label.value_bytes));
            let value_at = key_bytes.next_multiple_of(8);
            let next_at = value_at + value_bytes.next_multiple_of(8);
            let key = texts.get(..key_bytes)?;
            let value = texts.get(value_at..value_at + value_bytes)?;
            rest = texts.get(next_at..)?;
            Some(Label {
                key,
                value,
                truncated: label.truncated != 0,
            })
        })
    }
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
    let (thread, rest) = segment(&head.thread, rest)?;
    let (goroutine, rest) = segment(&head.goroutine, rest)?;
    let (kernel, rest) = words(rest, head.kernel_frames)?;
    let labels = rest
        .get(..usize::from(head.labels_words) * 8)
        .ok_or(DecodeError::Short)?;
    Ok(Sample {
        head,
        thread,
        goroutine: (goroutine.ip != 0).then_some(goroutine),
        kernel,
        labels,
    })
}

fn segment<'a>(
    head: &wire::Segment,
    bytes: &'a [u8],
) -> Result<(Segment<'a>, &'a [u8]), DecodeError> {
    let (callers, rest) = words(bytes, head.frames)?;
    let (slice, rest) = words(rest, head.slice_words)?;
    let segment = Segment {
        ip: head.ip,
        sp: head.sp,
        fp: head.fp,
        walk_end: WalkEnd::from_u8(head.walk_end).ok_or(DecodeError::Unknown)?,
        callers,
        slice,
    };
    Ok((segment, rest))
}

fn words(bytes: &[u8], count: u16) -> Result<(&[u64], &[u8]), DecodeError> {
    <[u64]>::ref_from_prefix_with_elems(bytes, usize::from(count)).map_err(|_| DecodeError::Short)
}
