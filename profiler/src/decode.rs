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
    /// A stack was sampled of something that has a duration, or will.
    Measured(&'a wire::Measured, Sample<'a>),
    /// What such a sample began is over.
    Ended(&'a wire::Measured),
    /// A process began a new program.
    Exec {
        /// Its process id.
        pid: u32,
        /// When, on the monotonic clock.
        time_ns: u64,
    },
    /// A process that is not wanted so far starts a thread.
    Thread {
        /// Its process id.
        pid: u32,
    },
    /// The main thread of a process is exiting.
    Exit {
        /// Its process id.
        pid: u32,
    },
    /// The probes of a process spent the share of their window.
    ShareSpent {
        /// Its process id.
        pid: u32,
        /// The window's number.
        window: u64,
        /// When it ended by that, on the monotonic clock.
        time_ns: u64,
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
    /// The link register on arm64, else 0.
    pub lr: u64,
    /// How the walk along frame pointers ended.
    pub walk_end: WalkEnd,
    /// Return addresses, leaf first, without `ip` itself.
    pub callers: &'a [u64],
    /// Words of the stack from the stack pointer up.
    pub slice: &'a [u64],
    /// Words of the stack from a frame farther up.
    pub far: Option<FarSlice<'a>>,
}

/// Words of the stack from a frame of the chain up: its frame pointer, its
/// return address, and what lies above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FarSlice<'a> {
    /// The frame's address.
    pub address: u64,
    /// How many frames of the chain come before it.
    pub frames_before: u64,
    /// The words.
    pub words: &'a [u64],
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
        kind::MEASURED => {
            let (head, rest) = measured(bytes)?;
            Ok(Event::Measured(head, sample(rest)?))
        }
        kind::ENDED => measured(bytes).map(|(head, _)| Event::Ended(head)),
        kind::EXEC => Ok(Event::Exec {
            pid: header.pid,
            time_ns: header.time_ns,
        }),
        kind::THREAD => Ok(Event::Thread { pid: header.pid }),
        kind::EXIT => Ok(Event::Exit { pid: header.pid }),
        kind::SHARE_SPENT => share_spent(bytes),
        _ => Err(DecodeError::Unknown),
    }
}

fn measured(bytes: &[u8]) -> Result<(&wire::Measured, &[u8]), DecodeError> {
    wire::Measured::ref_from_prefix(bytes).map_err(|_| DecodeError::Short)
}

fn share_spent(bytes: &[u8]) -> Result<Event<'_>, DecodeError> {
    let (spent, _) = wire::ShareSpent::ref_from_prefix(bytes).map_err(|_| DecodeError::Short)?;
    Ok(Event::ShareSpent {
        pid: spent.header.pid,
        window: spent.window,
        time_ns: spent.header.time_ns,
    })
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
    let (far, rest) = words(rest, head.far_words)?;
    let far = match far {
        [] => None,
        [address, frames_before, words @ ..] => Some(FarSlice {
            address: *address,
            frames_before: *frames_before,
            words,
        }),
        [_] => return Err(DecodeError::Unknown),
    };
    let segment = Segment {
        ip: head.ip,
        sp: head.sp,
        fp: head.fp,
        lr: head.lr,
        walk_end: WalkEnd::from_u8(head.walk_end).ok_or(DecodeError::Unknown)?,
        callers,
        slice,
        far,
    };
    Ok((segment, rest))
}

fn words(bytes: &[u8], count: u16) -> Result<(&[u64], &[u8]), DecodeError> {
    <[u64]>::ref_from_prefix_with_elems(bytes, usize::from(count)).map_err(|_| DecodeError::Short)
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    const HEADER: wire::Header = wire::Header {
        kind: kind::SAMPLE,
        cpu: 1,
        time_ns: 2,
        pid: 3,
        tid: 4,
    };
    const SEGMENT: wire::Segment = wire::Segment {
        ip: 6,
        sp: 7,
        fp: 8,
        lr: 9,
        frames: 3,
        slice_words: 2,
        walk_end: WalkEnd::Unreadable as u8,
        reserved: 0,
        far_words: 3,
    };
    const HEAD: wire::Sample = wire::Sample {
        header: HEADER,
        cgroup_id: 5,
        comm: *b"worker\0\0\0\0\0\0\0\0\0\0",
        goid: 17,
        thread: SEGMENT,
        goroutine: wire::Segment {
            frames: 1,
            slice_words: 0,
            far_words: 0,
            ..SEGMENT
        },
        kernel_frames: 1,
        labels_words: 3,
        labels: 1,
        labels_missed: 0,
        flags: wire::flags::IN_USER,
        reserved: 0,
    };
    /// The words that [`HEAD`] counts: two segments, the first with a far
    /// slice, a kernel frame, and a label of three and nine bytes, cut after its header and key.
    const WORDS: [u64; 13] = [10, 11, 12, 20, 21, 40, 1, 41, 13, 30, LABEL, KEY, VALUE];
    const LABEL: u64 = u64::from_ne_bytes([3, 0, 2, 0, 1, 0, 0, 0]);
    const KEY: u64 = u64::from_ne_bytes(*b"key\0\0\0\0\0");
    const VALUE: u64 = u64::from_ne_bytes(*b"va\0\0\0\0\0\0");

    /// A record in words, aligned as the ring buffer aligns it.
    fn record(head: &wire::Sample, payload: &[u64]) -> Vec<u64> {
        let (words, _) = head.as_bytes().as_chunks::<8>();
        let head = words.iter().map(|word| u64::from_ne_bytes(*word));
        head.chain(payload.iter().copied()).collect()
    }

    #[test]
    fn reads_each_part_of_a_sample() {
        let record = record(&HEAD, &WORDS);
        let Ok(Event::Sample(sample)) = decode(record.as_bytes()) else {
            panic!("a sample");
        };
        assert_eq!(sample.head, &HEAD);
        assert_eq!(sample.thread.walk_end, WalkEnd::Unreadable);
        assert_eq!(sample.thread.callers, [10, 11, 12]);
        assert_eq!(sample.thread.slice, [20, 21]);
        let far = FarSlice {
            address: 40,
            frames_before: 1,
            words: &[41],
        };
        assert_eq!(sample.thread.far, Some(far));
        assert_eq!(sample.thread.lr, 9);
        assert_eq!(sample.goroutine.map(|g| g.callers), Some(&[13][..]));
        assert_eq!(sample.kernel, [30]);
        let labels: Vec<Label<'_>> = sample.labels().collect();
        let expected = Label {
            key: b"key",
            value: b"va",
            truncated: true,
        };
        assert_eq!(labels, [expected]);
    }

    #[test]
    fn labels_that_claim_too_much_are_none() {
        let long = u64::from_ne_bytes([255, 255, 2, 0, 0, 0, 0, 0]);
        let mut words = WORDS;
        words[10] = long;
        let record = record(&HEAD, &words);
        let Ok(Event::Sample(sample)) = decode(record.as_bytes()) else {
            panic!("a sample");
        };
        assert_eq!(sample.labels().count(), 0);
    }

    #[test]
    fn a_goroutine_on_its_own_stack_has_no_second_segment() {
        let head = wire::Sample {
            goroutine: wire::Segment::default(),
            ..HEAD
        };
        let record = record(&head, &WORDS);
        let Ok(Event::Sample(sample)) = decode(record.as_bytes()) else {
            panic!("a sample");
        };
        assert_eq!(sample.goroutine, None);
    }

    #[test]
    fn reads_lifecycle_records() {
        let of = |kind| wire::Header { kind, ..HEADER };
        let exec = of(kind::EXEC);
        let expected = Event::Exec { pid: 3, time_ns: 2 };
        assert_eq!(decode(exec.as_bytes()), Ok(expected));
        let exit = of(kind::EXIT);
        assert_eq!(decode(exit.as_bytes()), Ok(Event::Exit { pid: 3 }));
        let spent = wire::ShareSpent {
            header: of(kind::SHARE_SPENT),
            window: 9,
        };
        let expected = Event::ShareSpent {
            pid: 3,
            window: 9,
            time_ns: 2,
        };
        assert_eq!(decode(spent.as_bytes()), Ok(expected));
        let cut = &spent.as_bytes()[..size_of::<wire::Header>()];
        assert_eq!(decode(cut), Err(DecodeError::Short));
        let thread = of(kind::THREAD);
        let expected = Event::Thread { pid: 3 };
        assert_eq!(decode(thread.as_bytes()), Ok(expected));
        for unknown in [0, 7, u32::MAX] {
            assert_eq!(decode(of(unknown).as_bytes()), Err(DecodeError::Unknown));
        }
    }

    #[test]
    fn reads_what_has_a_duration() {
        let measured = wire::Measured {
            header: wire::Header {
                kind: kind::ENDED,
                ..HEADER
            },
            event: wire::event::OFF_CPU,
            weight: 4,
            duration_ns: 100,
            part_ns: 10,
            detail: 1,
            window: 0,
        };
        assert_eq!(decode(measured.as_bytes()), Ok(Event::Ended(&measured)));
        let begun = wire::Measured {
            header: wire::Header {
                kind: kind::MEASURED,
                ..HEADER
            },
            ..measured
        };
        let mut bytes = begun.as_bytes().to_vec();
        bytes.extend_from_slice(record(&HEAD, &WORDS).as_bytes());
        let mut words = vec![0_u64; bytes.len() / 8];
        words.as_mut_bytes().copy_from_slice(&bytes);
        let Ok(Event::Measured(head, sample)) = decode(words.as_bytes()) else {
            panic!("{:?}", decode(words.as_bytes()));
        };
        assert_eq!((head, sample.head), (&begun, &HEAD));
        for length in 0..bytes.len() {
            let cut = &words.as_bytes()[..length];
            assert_eq!(decode(cut), Err(DecodeError::Short), "at {length}");
        }
    }

    #[test]
    fn every_truncation_is_short() {
        let sample = record(&HEAD, &WORDS);
        for length in 0..sample.as_bytes().len() {
            let cut = &sample.as_bytes()[..length];
            assert_eq!(decode(cut), Err(DecodeError::Short), "at {length}");
        }
        let exec = wire::Header {
            kind: kind::EXEC,
            ..HEADER
        };
        for length in 0..exec.as_bytes().len() {
            let cut = &exec.as_bytes()[..length];
            assert_eq!(decode(cut), Err(DecodeError::Short), "at {length}");
        }
    }

    #[test]
    fn counts_beyond_the_record_are_short() {
        let many = wire::MAX_PAYLOAD_WORDS as u16;
        for (frames, slice_words, far_words, kernel_frames, labels_words) in [
            (4, 2, 3, 1, 3),
            (3, 3, 3, 1, 3),
            (3, 2, 4, 1, 3),
            (3, 2, 3, 2, 3),
            (3, 2, 3, 1, 4),
            (u16::MAX, u16::MAX, u16::MAX, u16::MAX, u16::MAX),
            (0, 0, u16::MAX, 0, 0),
            (0, 0, 0, u16::MAX, 0),
            (0, 0, 0, 0, u16::MAX),
            (many, 0, 0, 0, 0),
        ] {
            let head = wire::Sample {
                thread: wire::Segment {
                    frames,
                    slice_words,
                    far_words,
                    ..SEGMENT
                },
                kernel_frames,
                labels_words,
                ..HEAD
            };
            let record = record(&head, &WORDS);
            assert_eq!(decode(record.as_bytes()), Err(DecodeError::Short));
        }
    }

    #[test]
    fn an_unknown_end_of_the_walk_is_refused() {
        for walk_end in 0..=u8::MAX {
            let head = wire::Sample {
                thread: wire::Segment {
                    walk_end,
                    ..SEGMENT
                },
                ..HEAD
            };
            let record = record(&head, &WORDS);
            let known = WalkEnd::from_u8(walk_end).is_some();
            assert_eq!(decode(record.as_bytes()).is_ok(), known, "{walk_end}");
        }
    }

    /// Steele's SplitMix64: numbers that differ from run to run would hide a
    /// failure from the next.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// What a decoded sample refers to lies in the record and is as long as
    /// its head says.
    fn check(bytes: &[u8]) {
        let Ok(Event::Sample(sample)) = decode(bytes) else {
            return;
        };
        let head = sample.head;
        // A second segment without registers is none, but its words are there.
        let segments = [
            (Some(sample.thread), &head.thread),
            (sample.goroutine, &head.goroutine),
        ];
        let mut at = bytes.as_ptr().wrapping_add(size_of::<wire::Sample>());
        let mut part = |words: &[u64], count: u16, skipped: usize| {
            assert_eq!(words.len() + skipped, usize::from(count));
            at = at.wrapping_add(skipped * 8);
            assert!(words.is_empty() || words.as_ptr().cast() == at);
            at = at.wrapping_add(words.len() * 8);
        };
        for (segment, head) in segments {
            match segment {
                Some(segment) => {
                    part(segment.callers, head.frames, 0);
                    part(segment.slice, head.slice_words, 0);
                    match segment.far {
                        Some(far) => part(far.words, head.far_words, wire::FAR_HEAD_WORDS),
                        None => assert_eq!(head.far_words, 0),
                    }
                }
                None => {
                    let counts = [head.frames, head.slice_words, head.far_words];
                    let skipped: u16 = counts.iter().sum();
                    part(&[], skipped, usize::from(skipped));
                }
            }
        }
        part(sample.kernel, head.kernel_frames, 0);
        assert_eq!(sample.labels.as_ptr(), at);
        assert!(sample.labels.as_ptr_range().end <= bytes.as_ptr_range().end);
        assert!(sample.labels().count() <= sample.labels.len() / 8);
    }

    /// The words of a sample that hold counts, and what keeps them small.
    const COUNTS: [(usize, u64); 3] = [
        (
            core::mem::offset_of!(wire::Sample, thread.frames) / 8,
            0x000f_0007_000f_000f,
        ),
        (
            core::mem::offset_of!(wire::Sample, goroutine.frames) / 8,
            0x000f_0007_000f_000f,
        ),
        (
            core::mem::offset_of!(wire::Sample, kernel_frames) / 8,
            0x000f_000f,
        ),
    ];

    #[test]
    fn random_bytes_are_an_event_or_an_error() {
        let mut state = 1;
        let mut samples = 0;
        for _ in 0..20_000 {
            let length = (random(&mut state) % 120) as usize;
            let mut record: Vec<u64> = (0..length).map(|_| random(&mut state)).collect();
            check(record.as_bytes());
            // Most random kinds are unknown: also as a sample, with counts
            // that sometimes fit.
            if let Some(word) = record.first_mut() {
                *word = u64::from(kind::SAMPLE);
            }
            for (word, mask) in COUNTS {
                if let Some(word) = record.get_mut(word) {
                    *word &= mask;
                }
            }
            check(record.as_bytes());
            samples += usize::from(decode(record.as_bytes()).is_ok());
            let bytes = record.as_bytes();
            let cut = (random(&mut state) as usize) % (bytes.len() + 1);
            check(&bytes[..cut]);
            // Not aligned as the ring buffer's are.
            check(&bytes[cut..]);
        }
        assert!(samples > 100, "only {samples} of the records were samples");
    }

    #[test]
    fn a_changed_bit_is_an_event_or_an_error() {
        let whole = record(&HEAD, &WORDS);
        for bit in 0..whole.len() * 64 {
            let mut record = whole.clone();
            record[bit / 64] ^= 1 << (bit % 64);
            check(record.as_bytes());
        }
    }
}
