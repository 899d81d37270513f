//! Tests of the walk through C that called back into Go: once, several times one
//! in the other, and with a signal on top.

use profiler_ebpf::wire::{NO_FRAME, signal_frame};

use super::{
    GAP, StackEnd,
    fake::{
        ASMCGOCALL, BARE, C_INNER, C_OUTER, CALLBACK, CALLER, CROSSCALL, GOEXIT, LEAF, MAIN,
        SIGTRAMP, SP, call, outer, program, ret, segment,
    },
    tests::check,
};
use crate::decode::{FarSlice, Segment};

/// Where the stack pointer of the system stack is in a `cgocallback`.
const SYSTEM: u64 = 0x6000_0000;
/// Words of a callback's frame and of the C behind it, as [`through_c`] makes.
const LEVEL_WORDS: u64 = 13;

#[test]
fn a_callback_goes_through_c_to_the_outer_go() {
    let outer_chain = [ret(MAIN), ret(GOEXIT)];
    // On the goroutine's stack CALLER returns into cgocallback, whose frame on
    // the system stack begins the far slice: its caller's frame pointer and
    // return address, crosscall2's frame, and C's.
    let chain = [ret(CALLBACK), ret(CROSSCALL), 0x5555];
    let far = [
        0x6000_0010,
        ret(CROSSCALL), //
        0,
        0xdead,
        ret(C_OUTER), //
        0,
        ret(ASMCGOCALL),
    ];
    let thread = Segment {
        far: Some(FarSlice {
            address: 0x6000_0000,
            frames_before: 1,
            words: &far,
        }),
        ..segment(ret(CALLER), SP + 0x10, &chain, &[])
    };
    let expected = [
        ret(CALLER),
        call(CALLBACK),
        call(CROSSCALL),
        call(C_OUTER),
        call(ASMCGOCALL),
        call(MAIN),
    ];
    check(
        program(),
        thread,
        Some(outer(&outer_chain, &[])),
        &expected,
        StackEnd::Whole,
    );
}

/// The system stack of a callback, whose next one is `older`: the frame of
/// `cgocallback`, that of `crosscall2`, which saved a register that C uses for
/// something else, and C's, called from `from`.
fn through_c(older: u64, from: u64) -> [u64; LEVEL_WORDS as usize] {
    let callback = [older, 0, 0, 0x6000_0010, ret(CROSSCALL)];
    let c = [0, 0xdead, ret(C_INNER), 0, 0xbeef, ret(C_OUTER), 0, from];
    let mut words = [0; LEVEL_WORDS as usize];
    words[..5].copy_from_slice(&callback);
    words[5..].copy_from_slice(&c);
    words
}

/// What a walk makes of it.
const THROUGH_C: [u64; 5] = [
    call(CALLBACK),
    call(CROSSCALL),
    call(C_INNER),
    call(C_OUTER),
    call(ASMCGOCALL),
];

/// The outer Go of a callback, which was called back itself, twice.
fn called_back_twice(system: &[u64]) -> Segment<'_> {
    let chain = [
        ret(CALLER),
        ret(CALLBACK),
        ret(CALLER),
        ret(CALLBACK),
        ret(MAIN),
        ret(GOEXIT),
    ];
    Segment {
        far: Some(FarSlice {
            address: SYSTEM,
            frames_before: NO_FRAME,
            words: system,
        }),
        ..outer(&chain, &[])
    }
}

#[test]
fn callbacks_in_callbacks_have_the_c_between_them() {
    let inner = through_c(SYSTEM + LEVEL_WORDS * 8, ret(ASMCGOCALL));
    let system = [inner, through_c(0, ret(ASMCGOCALL))].concat();
    // The thread is in C, called from the innermost Go.
    let thread = segment(ret(C_OUTER), 0xdead_beef, &[], &[0, ret(ASMCGOCALL)]);
    let expected = [
        &[ret(C_OUTER), call(ASMCGOCALL), call(CALLER)],
        &THROUGH_C[..],
        &[call(CALLER)],
        &THROUGH_C[..],
        &[call(MAIN)],
    ];
    check(
        program(),
        thread,
        Some(called_back_twice(&system)),
        &expected.concat(),
        StackEnd::Whole,
    );
}

#[test]
fn c_between_callbacks_that_cannot_be_passed_is_a_gap_and_gos_part_whole() {
    let inner = through_c(SYSTEM + LEVEL_WORDS * 8, ret(BARE));
    let system = [inner, through_c(0, ret(ASMCGOCALL))].concat();
    let thread = segment(ret(C_OUTER), 0xdead_beef, &[], &[0, ret(ASMCGOCALL)]);
    let leaf = [ret(C_OUTER), call(ASMCGOCALL), call(CALLER)];
    let broken = [&THROUGH_C[..4], &[call(BARE), GAP]].concat();
    let expected = [
        &leaf[..],
        &broken,
        &[call(CALLER)],
        &THROUGH_C[..],
        &[call(MAIN)],
    ];
    let goroutine = called_back_twice(&system);
    check(
        program(),
        thread,
        Some(goroutine),
        &expected.concat(),
        StackEnd::Whole,
    );
    // Without words of the outer callback, or of any.
    let cut = called_back_twice(&system[..LEVEL_WORDS as usize]);
    let expected = [
        &leaf[..],
        &broken,
        &[call(CALLER), call(CALLBACK), GAP, call(MAIN)],
    ];
    check(
        program(),
        thread,
        Some(cut),
        &expected.concat(),
        StackEnd::Whole,
    );
    let none = Segment {
        far: None,
        ..goroutine
    };
    let expected = [
        &leaf[..],
        &[call(CALLBACK), GAP, call(CALLER)],
        &[call(CALLBACK), GAP, call(MAIN)],
    ];
    check(
        program(),
        thread,
        Some(none),
        &expected.concat(),
        StackEnd::Whole,
    );
}

#[test]
fn a_signal_in_a_callback_leaves_the_c_to_the_goroutines_words() {
    // On the signal stack: the handler's frame, the address that it returns to,
    // and the interrupted registers.
    let slot = 2;
    let mut slice = vec![0; slot + signal_frame::END as usize / 8];
    let mut put = |place: u64, value| slice[slot + place as usize / 8] = value;
    put(signal_frame::IP, ret(LEAF));
    put(signal_frame::SP, 0x4000_0000);
    put(signal_frame::FP, 0x4000_0018);
    slice[0] = 0x4000_0018;
    let interrupted = [ret(CALLER), 0, 0, 0x4000_0028, ret(CALLBACK)];
    let chain = [ret(CALLBACK), ret(CROSSCALL), 0x5555];
    let thread = Segment {
        far: Some(FarSlice {
            address: 0x4000_0000,
            frames_before: NO_FRAME,
            words: &interrupted,
        }),
        ..segment(ret(SIGTRAMP), 0x4000_0018, &chain, &slice)
    };
    let leaf = [ret(SIGTRAMP), ret(LEAF), call(CALLER)];

    let inner = through_c(SYSTEM + LEVEL_WORDS * 8, ret(ASMCGOCALL));
    let system = [inner, through_c(0, ret(ASMCGOCALL))].concat();
    let goroutine = |chain: &[u64]| Segment {
        far: Some(FarSlice {
            address: SYSTEM,
            frames_before: 1,
            words: system.clone().leak(),
        }),
        ..outer(chain, &[])
    };
    let expected = [&leaf[..], &THROUGH_C, &[call(MAIN)]];
    check(
        program(),
        thread,
        Some(goroutine(&[ret(MAIN), ret(GOEXIT)])),
        &expected.concat(),
        StackEnd::Whole,
    );
    // The outer Go was called back too.
    let twice = [ret(CALLER), ret(CALLBACK), ret(MAIN), ret(GOEXIT)];
    let expected = [
        &leaf[..],
        &THROUGH_C,
        &[call(CALLER)],
        &THROUGH_C,
        &[call(MAIN)],
    ];
    check(
        program(),
        thread,
        Some(goroutine(&twice)),
        &expected.concat(),
        StackEnd::Whole,
    );
    // A walk that breaks before leaves the outer callback its own words.
    let lost = Segment {
        callers: &[],
        slice: &slice[..4],
        far: None,
        ..thread
    };
    let expected = [
        &[ret(SIGTRAMP), GAP, GAP, call(CALLER)],
        &THROUGH_C[..],
        &[call(MAIN)],
    ];
    check(
        program(),
        lost,
        Some(goroutine(&twice)),
        &expected.concat(),
        StackEnd::Whole,
    );
}

#[test]
fn a_callback_from_a_thread_of_c_ends_in_its_first_frame() {
    // The goroutine that the thread has was called by nothing.
    let goroutine = Segment {
        ip: GOEXIT + 1,
        far: Some(FarSlice {
            address: SYSTEM,
            frames_before: 1,
            words: &through_c(SYSTEM, 0),
        }),
        ..outer(&[], &[])
    };
    let chain = [ret(CALLBACK), ret(CROSSCALL), 0x5555];
    let thread = segment(ret(CALLER), SP + 0x10, &chain, &[]);
    let expected = [ret(CALLER)];
    let through: &[u64] = &THROUGH_C[..4];
    check(
        program(),
        thread,
        Some(goroutine),
        &[&expected[..], through].concat(),
        StackEnd::Whole,
    );
}
