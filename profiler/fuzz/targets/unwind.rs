//! Fuzz target: arbitrary records through decode and unwind, against the
//! binaries and mappings of the fixtures. Looks for panics, for stacks longer
//! than what the record can stand for, and for work without an end.
#![no_main]

use std::cell::RefCell;

use goprof::decode::{Event, decode};
use goprof::unwind::{StackEnd, unwind};
use goprof_tests::fuzzing::{UnwindInput, known, mutate_record, words};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use profiler_ebpf::wire::{MAX_LABEL_BYTES, MAX_USER_FRAMES};
use zerocopy::IntoBytes as _;

/// Most frames of a stack beyond the return addresses in its record: those
/// that are found in the copied words, the interrupted instructions, and gaps.
const MAX_FOUND_FRAMES: usize = 3 * MAX_USER_FRAMES;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // Arbitrary bytes seldom lead into the binary: half of the changes are to
    // words that mean something to the process of the case.
    if seed & 1 == 0 && mutate_record(&mut data[..size], seed >> 1) {
        return size;
    }
    fuzzer_mutate(data, size, max_size)
});

thread_local! {
    static FRAMES: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

fuzz_target!(|data: &[u8]| {
    let words = words(data);
    let Some(input) = UnwindInput::of(&words) else {
        return;
    };
    let Ok(Event::Sample(sample)) = decode(input.record.as_bytes()) else {
        return;
    };
    for label in sample.labels() {
        let most = usize::from(u16::MAX).max(MAX_LABEL_BYTES);
        assert!(label.key.len() <= most && label.value.len() <= most);
    }
    let known = &known()[input.case];
    FRAMES.with_borrow_mut(|frames| {
        let unwound = unwind(&sample, &known.process, frames);
        let callers = sample.goroutine.map_or(0, |segment| segment.callers.len());
        let most = sample.thread.callers.len() + callers + MAX_FOUND_FRAMES;
        assert!(frames.len() <= most, "{} frames", frames.len());
        assert_eq!(
            unwound.end == StackEnd::NoRegisters && sample.thread.ip == 0,
            frames.is_empty()
        );
        if unwound.end == StackEnd::Whole {
            assert_eq!(unwound.broke_at, None);
        }
        if let Some(at) = unwound.broke_at {
            assert!(frames.contains(&at), "broke at a frame it does not have");
        }
    });
});
