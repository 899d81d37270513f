//! Tests of the walk over made-up programs and memory.

use profiler_ebpf::wire::{NO_FRAME, WalkEnd, signal_frame};

use super::{
    GAP, Stack, StackEnd, broke_at,
    fake::{
        ASM, ASMCGOCALL, BARE, C_FP, C_INNER, C_OUTER, CALLER, FUNCTION, Fake, GOEXIT, LEAF, MAIN,
        NEW_STACK, SIGTRAMP, SP, call, go, outer, program, ret, segment,
    },
    walk::MAX_FRAMES,
};
use crate::{
    decode::{FarSlice, Segment},
    gobinary::FuncKind,
    process::code::{GoFrameShape, GoSite, Site},
};

#[track_caller]
pub(super) fn check(
    program: Fake,
    thread: Segment<'_>,
    goroutine: Option<Segment<'_>>,
    expected: &[u64],
    end: StackEnd,
) {
    let mut frames = Vec::new();
    let mut stack = Stack {
        program,
        frames: &mut frames,
        unmapped: false,
    };
    let found = stack.fill(&thread, goroutine.as_ref());
    assert_eq!((&frames[..], found), (expected, end), "{frames:x?}");
}

#[test]
fn a_frame_that_is_set_up_is_the_chains() {
    let chain = [ret(MAIN), ret(GOEXIT)];
    let thread = segment(ret(CALLER), SP + 0x10, &chain, &[]);
    check(
        program(),
        thread,
        None,
        &[ret(CALLER), call(MAIN)],
        StackEnd::Whole,
    );
}

#[test]
fn a_leaf_without_a_frame_has_its_caller() {
    let chain = [ret(MAIN), ret(GOEXIT)];
    // The caller's frame: 0x18 bytes, the frame pointer in the last word.
    let slice = [ret(CALLER), 0, 0, 0, ret(MAIN)];
    let thread = segment(ret(LEAF), SP + 8 + 0x10, &chain, &slice);
    let expected = [ret(LEAF), call(CALLER), call(MAIN)];
    check(program(), thread, None, &expected, StackEnd::Whole);
}

#[test]
fn assembly_that_uses_the_register_is_passed_by_its_table() {
    // The assembly's frame, with the caller's frame pointer saved; then the
    // caller's, and main's.
    let slice = [
        0,
        0,
        SP + 0x30,
        ret(CALLER), //
        0,
        0,
        SP + 0x40,
        ret(MAIN), //
        0,
        ret(GOEXIT),
    ];
    let thread = segment(ret(ASM), 0xdead_beef, &[], &slice);
    let expected = [ret(ASM), call(CALLER), call(MAIN)];
    check(program(), thread, None, &expected, StackEnd::Whole);
}

#[test]
fn assembly_below_another_function_is_passed_too() {
    // The leaf has no frame, the assembly that called it uses the register.
    let slice = [
        ret(ASM), //
        0,
        0,
        SP + 0x38,
        ret(CALLER), //
        0,
        0,
        SP + 0x48,
        ret(MAIN), //
        0,
        ret(GOEXIT),
    ];
    let thread = segment(ret(LEAF), 7, &[], &slice);
    let expected = [ret(LEAF), call(ASM), call(CALLER), call(MAIN)];
    check(program(), thread, None, &expected, StackEnd::Whole);
}

#[test]
fn a_return_address_out_of_reach_leaves_a_gap() {
    let chain = [ret(MAIN), ret(GOEXIT)];
    let thread = segment(ret(LEAF), SP + 0x400, &chain, &[]);
    check(
        program(),
        thread,
        None,
        &[ret(LEAF), GAP, call(MAIN)],
        StackEnd::Whole,
    );
    assert_eq!(
        broke_at(StackEnd::Gap, &[ret(LEAF), GAP, call(MAIN)]),
        Some(ret(LEAF))
    );
}

#[test]
fn a_chain_that_ends_early_says_so() {
    let thread = segment(ret(CALLER), SP + 0x10, &[ret(MAIN)], &[]);
    let expected = [ret(CALLER), call(MAIN)];
    check(program(), thread, None, &expected, StackEnd::NoFramePointer);
    for (walk_end, end) in [
        (WalkEnd::DepthLimit, StackEnd::DepthLimit),
        (WalkEnd::Unreadable, StackEnd::Unreadable),
    ] {
        check(
            program(),
            Segment { walk_end, ..thread },
            None,
            &expected,
            end,
        );
    }
}

#[test]
fn c_without_frame_pointers_is_passed_by_its_tables() {
    let chain = [ret(CALLER), ret(MAIN), ret(GOEXIT)];
    // C_INNER: two words, then the return address; C_OUTER: one.
    let slice = [0, 0x5000_0000, ret(C_OUTER), 0, ret(ASMCGOCALL)];
    let thread = segment(ret(C_INNER), 0xdead_beef, &[], &slice);
    let expected = [
        ret(C_INNER),
        call(C_OUTER),
        call(ASMCGOCALL),
        call(CALLER),
        call(MAIN),
    ];
    check(
        program(),
        thread,
        Some(outer(&chain, &[])),
        &expected,
        StackEnd::Whole,
    );
}

#[test]
fn c_that_cannot_be_passed_leaves_a_gap_and_gos_part_whole() {
    let chain = [ret(CALLER), ret(MAIN), ret(GOEXIT)];
    let thread = segment(ret(C_INNER), 0xdead_beef, &[0x1234_5678], &[0]);
    let expected = [ret(C_INNER), GAP, call(CALLER), call(MAIN)];
    check(
        program(),
        thread,
        Some(outer(&chain, &[])),
        &expected,
        StackEnd::Whole,
    );
}

#[test]
fn asmcgocall_on_the_system_stack_is_not_the_switch() {
    let outer_chain = [ret(CALLER), ret(MAIN), ret(GOEXIT)];
    // It was called by CALLER on the same stack, which asmcgocall called from
    // the goroutine's.
    let chain = [ret(ASMCGOCALL), ret(MAIN), ret(ASMCGOCALL), ret(CALLER)];
    let thread = segment(
        ret(C_FP),
        SP,
        &chain,
        &[SP + 0x20, ret(ASMCGOCALL), 0, 0, SP + 0x30],
    );
    let expected = [
        ret(C_FP),
        call(ASMCGOCALL),
        call(MAIN),
        call(ASMCGOCALL),
        call(CALLER),
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

#[test]
fn a_stale_frame_pointer_of_the_goroutine_is_not_believed() {
    // The chain is some other frame's; the words are the truth.
    let stale = [0x1111, 0x2222];
    let slice = [
        0x5000_0020,
        ret(CALLER), //
        0,
        0,
        0x5000_0030,
        ret(MAIN), //
        0,
        ret(GOEXIT),
    ];
    let goroutine = Segment {
        fp: 0x5000_4000,
        ..outer(&stale, &slice)
    };
    let chain = [ret(ASMCGOCALL)];
    let thread = segment(ret(C_FP), SP, &chain, &[0x5000_0000, ret(ASMCGOCALL)]);
    let expected = [ret(C_FP), call(ASMCGOCALL), call(CALLER), call(MAIN)];
    check(
        program(),
        thread,
        Some(goroutine),
        &expected,
        StackEnd::Whole,
    );
}

#[test]
fn a_signal_goes_on_with_what_it_interrupted() {
    let chain = [ret(MAIN), ret(GOEXIT)];
    // The handler's frame of two words, the address that it returns to, and
    // the interrupted registers.
    let slot = 2;
    let mut slice = vec![0; slot + signal_frame::END as usize / 8];
    let mut put = |place: u64, value| slice[slot + place as usize / 8] = value;
    put(signal_frame::IP, ret(LEAF));
    put(signal_frame::SP, 0x4000_0000);
    put(signal_frame::FP, 0x4000_0018);
    slice[0] = 0x4000_0018;
    let words = [ret(CALLER), 0, 0, 0x4000_0028, ret(MAIN)];
    let thread = Segment {
        far: Some(FarSlice {
            address: 0x4000_0000,
            frames_before: NO_FRAME,
            words: &words,
        }),
        ..segment(ret(SIGTRAMP), 0x4000_0018, &chain, &slice)
    };
    let expected = [ret(SIGTRAMP), ret(LEAF), call(CALLER), call(MAIN)];
    check(program(), thread, None, &expected, StackEnd::Whole);

    // A handler that is just pushing an address: nothing returns to it.
    let mut changing = program();
    changing.no_call.push(ret(CALLER));
    let expected = [ret(SIGTRAMP), ret(LEAF), GAP, call(MAIN)];
    check(changing, thread, None, &expected, StackEnd::Whole);

    // Without the interrupted registers only the chain is known.
    let cut = Segment {
        slice: &slice[..4],
        ..thread
    };
    let expected = [ret(SIGTRAMP), GAP, call(MAIN)];
    check(program(), cut, None, &expected, StackEnd::Whole);
}

#[test]
fn a_function_that_goes_to_another_stack_is_passed_by_its_frame_pointer() {
    let chain = [ret(CALLER), ret(MAIN), ret(GOEXIT)];
    // What lies above the stack pointer is another stack's.
    let slice = [1, 2, ret(LEAF), ret(LEAF)];
    let thread = segment(ret(NEW_STACK), 0x5000_0000, &chain, &slice);
    let expected = [ret(NEW_STACK), call(CALLER), call(MAIN)];
    check(program(), thread, None, &expected, StackEnd::Whole);
    // On its first instruction it is still on its caller's.
    let thread = segment(NEW_STACK, SP + 8 + 0x10, &chain[1..], &[ret(CALLER)]);
    let expected = [NEW_STACK, call(CALLER), call(MAIN)];
    check(program(), thread, None, &expected, StackEnd::Whole);
}

#[test]
fn code_without_tables_is_a_gap() {
    let thread = segment(BARE, SP, &[ret(MAIN), ret(GOEXIT)], &[]);
    check(
        program(),
        thread,
        None,
        &[BARE, GAP, call(MAIN)],
        StackEnd::Whole,
    );
    let thread = segment(BARE, SP, &[], &[]);
    check(program(), thread, None, &[BARE, GAP], StackEnd::NoTable);
}

#[test]
fn an_address_in_no_mapping_ends_the_stack() {
    let thread = segment(ret(C_FP), SP, &[0x7777_7777], &[]);
    check(program(), thread, None, &[ret(C_FP)], StackEnd::UnknownCode);
}

#[test]
fn a_link_register_is_a_leafs_caller_on_arm64() {
    let mut fake = program();
    let in_register = GoSite {
        frame: Some(GoFrameShape::InRegister),
        ..go(0)
    };
    fake.functions.insert(LEAF, Site::Go(in_register));
    let bottom = GoSite {
        frame: Some(GoFrameShape::OnStack {
            slot: 0,
            caller: 0x20,
        }),
        ..go(0)
    };
    fake.functions.insert(CALLER, Site::Go(bottom));
    let chain = [ret(MAIN), ret(GOEXIT)];
    let thread = Segment {
        lr: ret(CALLER),
        ..segment(ret(LEAF), SP - 8, &chain, &[ret(MAIN)])
    };
    let expected = [ret(LEAF), call(CALLER), call(MAIN)];
    check(fake, thread, None, &expected, StackEnd::Whole);
}

#[test]
fn a_leaf_that_is_preempted_has_its_link_register_on_the_stack_on_arm64() {
    let on_stack = |caller| Some(GoFrameShape::OnStack { slot: 0, caller });
    let preempted = |lr: &[u64]| {
        let mut fake = program();
        let injected = GoSite {
            kind: FuncKind::AsyncPreempt,
            asm: true,
            frame: on_stack(0x10),
            ..go(0)
        };
        let leaf = GoSite {
            frame: Some(GoFrameShape::InRegister),
            ..go(0)
        };
        let caller = GoSite {
            frame: on_stack(0x20),
            ..go(0)
        };
        fake.functions.insert(BARE, Site::Go(injected));
        fake.functions.insert(LEAF, Site::Go(leaf));
        fake.functions.insert(CALLER, Site::Go(caller));
        // Its frame, then what the handler pushed: its frame pointer is below the
        // stack pointer, and holds that of the leaf's caller.
        let slice = [&[ret(LEAF), 0], lr].concat();
        let chain = [ret(LEAF), ret(MAIN), ret(GOEXIT)];
        (fake, chain, slice)
    };
    let whole = preempted(&[ret(CALLER), 0]);
    let thread = Segment {
        lr: 1,
        ..segment(ret(BARE), SP - 8, &whole.1, &whole.2)
    };
    let expected = [ret(BARE), ret(LEAF), call(CALLER), call(MAIN)];
    check(whole.0, thread, None, &expected, StackEnd::Whole);

    // Where that was not copied, the leaf's caller is missing and not passed over.
    let cut = preempted(&[]);
    let thread = Segment {
        lr: 1,
        ..segment(ret(BARE), SP - 8, &cut.1, &cut.2)
    };
    let expected = [ret(BARE), ret(LEAF), GAP, call(MAIN)];
    check(cut.0, thread, None, &expected, StackEnd::Whole);
}

#[test]
fn a_circle_ends() {
    // A frame that is its own caller, by the words and by the chain.
    let slice = [0, 0, SP + 0x10, ret(CALLER)];
    let circle = segment(ret(CALLER), SP + 0x10, &[], &slice);
    let mut frames = Vec::new();
    let mut stack = Stack {
        program: program(),
        frames: &mut frames,
        unmapped: false,
    };
    let end = stack.fill(&circle, None);
    assert_ne!(end, StackEnd::Whole);
    assert!(frames.len() <= MAX_FRAMES + 2);
    let zero = GoSite { asm: true, ..go(0) };
    let mut fake = program();
    fake.functions.insert(ASM, Site::Go(zero));
    let words = vec![ret(ASM); 5000];
    let thread = segment(ret(ASM), 1, &[], &words);
    frames.clear();
    let mut stack = Stack {
        program: fake,
        frames: &mut frames,
        unmapped: false,
    };
    assert_eq!(stack.fill(&thread, None), StackEnd::DepthLimit);
    assert!(frames.len() <= MAX_FRAMES + 2);
}

/// Steele's SplitMix64: numbers that differ from run to run would hide a
/// failure from the next.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A number that often is an address in the program, or on a stack.
fn word(state: &mut u64) -> u64 {
    let starts: Vec<u64> = program().functions.into_keys().collect();
    match random(state) % 8 {
        0..=3 => starts[(random(state) as usize) % starts.len()] + random(state) % FUNCTION,
        4 | 5 => SP.wrapping_add((random(state) % 96) * 8),
        6 => random(state) % 3,
        _ => random(state),
    }
}

#[test]
fn random_stacks_end() {
    let mut state = 1;
    let mut whole = 0;
    for _ in 0..20_000 {
        let mut words = |most: u64| -> Vec<u64> {
            let count = random(&mut state) % most;
            (0..count).map(|_| word(&mut state)).collect()
        };
        let (chain, slice, far) = (words(12), words(64), words(24));
        let (outer_chain, outer_slice) = (words(12), words(12));
        let system = words(24);
        let far = FarSlice {
            address: word(&mut state),
            frames_before: random(&mut state) % 4,
            words: &far,
        };
        let thread = Segment {
            far: (random(&mut state).is_multiple_of(2)).then_some(far),
            lr: (random(&mut state).is_multiple_of(4)).into(),
            ..segment(word(&mut state), word(&mut state), &chain, &slice)
        };
        let system = FarSlice {
            address: word(&mut state),
            frames_before: [NO_FRAME, random(&mut state) % 4][(random(&mut state) % 2) as usize],
            words: &system,
        };
        let goroutine = Segment {
            sp: word(&mut state),
            far: (random(&mut state).is_multiple_of(2)).then_some(system),
            ..segment(
                word(&mut state),
                word(&mut state),
                &outer_chain,
                &outer_slice,
            )
        };
        let goroutine = (random(&mut state).is_multiple_of(2)).then_some(goroutine);
        let mut frames = Vec::new();
        let mut stack = Stack {
            program: program(),
            frames: &mut frames,
            unmapped: false,
        };
        let end = stack.fill(&thread, goroutine.as_ref());
        whole += u64::from(end == StackEnd::Whole);
        assert!(frames.len() <= 2 * (MAX_FRAMES + 2), "{}", frames.len());
    }
    assert!(whole > 100, "{whole}");
}
