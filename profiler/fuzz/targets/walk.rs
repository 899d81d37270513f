//! Fuzz target: the walk along frame pointers over arbitrary memory, and the
//! record made of it. Looks for reads that the walk must not make, for too
//! many of them, and for a record that does not come back as it was.
#![no_main]

use std::cell::Cell;

use goprof::decode::{Event, decode};
use goprof_tests::fuzzing::{WalkInput, record, words};
use libfuzzer_sys::fuzz_target;
use profiler_ebpf::walk::{Step, UserMemory, step};
use profiler_ebpf::wire::{MAX_USER_FRAMES, Segment, WalkEnd};
use zerocopy::IntoBytes as _;

/// The words of the input, from its base on.
struct Memory<'a> {
    input: &'a WalkInput<'a>,
    reads: Cell<usize>,
}

impl UserMemory for Memory<'_> {
    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        self.reads.set(self.reads.get() + 1);
        assert!(address != 0, "reads at the null pointer");
        assert!(address.is_multiple_of(8), "reads at {address:#x}");
        let offset = address.checked_sub(self.input.base)?;
        let index = usize::try_from(offset / 8).ok()?;
        let pair = self.input.memory.get(index..index.checked_add(2)?)?;
        pair.try_into().ok()
    }
}

fuzz_target!(|data: &[u8]| {
    let words = words(data);
    let Some(input) = WalkInput::of(&words) else {
        return;
    };
    let memory = Memory {
        input: &input,
        reads: Cell::new(0),
    };
    // As the kernel side does it.
    let mut callers = Vec::new();
    let (mut fp, mut end) = (input.fp, WalkEnd::DepthLimit);
    for _ in 0..MAX_USER_FRAMES {
        match step(&memory, fp) {
            Step::End(why) => {
                end = why;
                break;
            }
            Step::Frame {
                return_address,
                next,
            } => {
                assert!(return_address != 0 && next != fp);
                callers.push(return_address);
                fp = next;
            }
        }
    }
    assert!(memory.reads.get() <= callers.len() + 1);
    assert_eq!(end == WalkEnd::DepthLimit, callers.len() == MAX_USER_FRAMES);
    comes_back(&input, end, &callers);
});

/// A record of the walk is decoded to what was walked.
fn comes_back(input: &WalkInput<'_>, end: WalkEnd, callers: &[u64]) {
    let slice = &input.memory[..input.memory.len().min(64)];
    let thread = Segment {
        ip: 1,
        sp: input.base,
        fp: input.fp,
        walk_end: end as u8,
        ..Segment::default()
    };
    let record = record(thread, callers, slice);
    let Ok(Event::Sample(sample)) = decode(record.as_bytes()) else {
        panic!("a record of a walk is a sample");
    };
    assert_eq!(sample.thread.callers, callers);
    assert_eq!(sample.thread.slice, slice);
    assert_eq!(sample.thread.walk_end, end);
}
