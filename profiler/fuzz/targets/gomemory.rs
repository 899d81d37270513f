//! Fuzz target: made-up memory beside the binaries of the fixtures, asked for heap
//! profiles, goroutines and all else that is read from outside. Looks for panics
//! and for work without an end.
#![no_main]

use goprof_tests::fuzzing::words;
use goprof_tests::memory::{Made, MemoryInput, ask_all, program, variables};
use libfuzzer_sys::fuzz_target;

/// More than all that is read of any memory, in bytes.
const MAX_READ: u64 = 2 << 30;

fuzz_target!(|data: &[u8]| {
    let words = words(data);
    let Some(input) = MemoryInput::of(&words) else {
        return;
    };
    let memory = Made::by(|address| Some(input.word(address)));
    let variables = variables();
    ask_all(&program(&memory, input.binary, &variables));
    assert!(memory.read.get() < MAX_READ, "reads without an end");
});
