//! Fuzz target: arbitrary files mapped as C code, asked how to step from each
//! of their instructions, and unwound by that. Looks for panics, for work
//! without an end, and for stacks that are too long.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use goprof::decode::{Event, decode};
use goprof::unwind::unwind;
use goprof_tests::fuzzing::{NATIVE_RANGE, native_process, record, words};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use profiler_ebpf::wire::{MAX_USER_FRAMES, Segment, WalkEnd};
use zerocopy::IntoBytes as _;

/// Bytes between the instructions asked about.
const STEP: usize = 29;
/// Most of them.
const MAX_QUESTIONS: usize = 256;
/// Where the stack is.
const STACK: u64 = 0x7000_0000;

thread_local! {
    static FILE: File = tempfile::tempfile().expect("make a file");
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // Most of a file is padding, which nobody reads: half of the changes are to
    // bytes that are not.
    if seed & 1 == 0 {
        let count = data[..size].iter().filter(|byte| **byte != 0).count();
        let chosen = (seed >> 12) as usize % count.max(1);
        let mut used = data[..size].iter_mut().filter(|byte| **byte != 0);
        if let Some(byte) = used.nth(chosen) {
            *byte ^= (seed >> 1) as u8;
            return size;
        }
    }
    fuzzer_mutate(data, size, max_size)
});

fuzz_target!(|data: &[u8]| {
    if data.is_empty() {
        return;
    }
    FILE.with(|file| {
        file.set_len(0).expect("cut the file");
        file.write_all_at(data, 0).expect("write the file");
        let process = native_process(file);
        let slice = stack(data);
        let mut frames = Vec::new();
        let offsets = (0..data.len()).step_by(STEP).take(MAX_QUESTIONS);
        for (question, offset) in offsets.enumerate() {
            let ip = NATIVE_RANGE.start + offset as u64;
            process.code().at(ip);
            if question % 16 != 0 {
                continue;
            }
            let thread = Segment {
                ip,
                sp: STACK,
                fp: STACK + 16,
                walk_end: WalkEnd::Unreadable as u8,
                ..Segment::default()
            };
            let record = record(thread, &[ip + 5, ip + 50], &slice);
            let Ok(Event::Sample(sample)) = decode(record.as_bytes()) else {
                panic!("a record of a thread is a sample");
            };
            unwind(&sample, &process, &mut frames);
            assert!(
                frames.len() <= 3 * MAX_USER_FRAMES,
                "{} frames",
                frames.len()
            );
        }
    });
});

/// A stack of words of the file, and of addresses in it.
fn stack(data: &[u8]) -> Vec<u64> {
    let words = words(&data[..data.len().min(1024)]);
    let address = |word: u64| NATIVE_RANGE.start + word % data.len() as u64;
    let words = words.into_iter().enumerate();
    let words = words.map(|(index, word)| match index % 3 {
        0 => word,
        1 => address(word),
        _ => STACK + 8 * (word % 256),
    });
    words.collect()
}
