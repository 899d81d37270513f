//! Memory that lies: heap profiles and lists of goroutines made to lead a reader
//! astray. Whatever it holds, reading ends, soon and with little memory.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::time::{Duration, Instant};

use goprof::gobinary::{GOffsets, GoBinary, StructOffsets};
use goprof::gomemory::{Few, HeapProfile, Listing, MAX_GOROUTINES, NoHeap};
use goprof_tests::fuzzing::known;
use goprof_tests::memory::{Made, ask_all, at, program, variables};

/// Longer than any walk may take, on a busy machine and without optimisation.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than all that is read of any memory.
const MAX_READ: u64 = 1 << 30;

/// A real binary.
fn binary() -> &'static GoBinary {
    let object = known()[0].process.go_object().expect("a Go object");
    object.go().expect("Go")
}

/// An address in its code.
fn code() -> u64 {
    binary().text().start + 0x1000
}

/// Reads all there is of memory by a rule, within the time and memory allowed.
#[track_caller]
fn survive(what: &str, set: &[(u64, u64)], rule: impl Fn(u64) -> Option<u64>) -> usize {
    let mut memory = Made::by(rule);
    memory.set.extend(set.iter().copied());
    let variables = variables();
    let started = Instant::now();
    let got = ask_all(&program(&memory, binary(), &variables));
    let (took, read) = (started.elapsed(), memory.read.get());
    println!("{what}: {got} in {took:?}, {read} bytes");
    assert!(took < PATIENCE, "{what}: {took:?}");
    assert!(read < MAX_READ, "{what}: {read} bytes");
    got
}

fn heap(set: &[(u64, u64)], rule: impl Fn(u64) -> Option<u64>) -> Result<HeapProfile, NoHeap> {
    let mut memory = Made::by(rule);
    memory.set.extend(set.iter().copied());
    let variables = variables();
    program(&memory, binary(), &variables).heap()
}

/// The words of a bucket: next, kind, size of blocks, frames, one frame, counts.
fn bucket(next: u64, size: u64, counts: [u64; 2]) -> Vec<u64> {
    let mut words = vec![0, next, 1, 0, size, 1, code()];
    let [allocs, frees] = counts;
    words.extend([allocs, frees, allocs * size, frees * size]);
    words.extend([0; 12]);
    words
}

/// Buckets one behind the other from an address on, the last one first.
fn list(buckets: &[Vec<u64>]) -> Vec<(u64, u64)> {
    let mut words = Vec::new();
    for (index, bucket) in buckets.iter().enumerate() {
        let address = 0x10_0000 + index as u64 * 0x1000;
        words.extend((address..).step_by(8).zip(bucket.iter().copied()));
    }
    words.push((at::BUCKETS, 0x10_0000));
    words
}

#[test]
fn a_profile_is_read_as_it_stands() {
    let words = list(&[bucket(0x10_1000, 64, [5, 2]), bucket(0, 8, [1, 1])]);
    let profile = heap(&words, |_| Some(0)).expect("a profile");
    assert_eq!((profile.rate, profile.buckets.len()), (524_288, 2));
    assert!(profile.is_settled && !profile.is_cut && profile.torn == 0);
    let first = &profile.buckets[0];
    assert_eq!(
        (first.size_bytes, first.stack.as_slice()),
        (64, &[code()][..])
    );
    assert_eq!((first.counts.active.allocs, first.counts.all.frees), (5, 2));
}

#[test]
fn a_profile_that_is_off_or_elsewhere_is_told() {
    let words = list(&[bucket(0, 64, [5, 2])]);
    let off = [words.clone(), vec![(at::RATE, 0)]].concat();
    let found = heap(&off, |_| Some(0)).map(|profile| profile.rate);
    assert_eq!(found, Err(NoHeap::Off { is_linked: true }));
    let strange = [words.clone(), vec![(at::RATE, u64::MAX)]].concat();
    assert!(matches!(
        heap(&strange, |_| Some(0)),
        Err(NoHeap::Unknown(_))
    ));
    assert!(matches!(heap(&[], |_| None), Ok(profile) if profile.buckets.is_empty()));
    // Counts that contradict themselves throughout are of another layout.
    let buckets: Vec<Vec<u64>> = (0..40_u64)
        .map(|index| {
            let next = if index < 39 {
                0x10_1000 + index * 0x1000
            } else {
                0
            };
            let mut words = bucket(next, 64, [5, 2]);
            words[9] = 7;
            words
        })
        .collect();
    assert!(matches!(
        heap(&list(&buckets), |_| Some(0)),
        Err(NoHeap::Unknown(_))
    ));
}

#[test]
fn a_bucket_that_is_never_whole_is_dropped_and_counted() {
    let mut torn = bucket(0x10_2000, 64, [5, 2]);
    torn[9] = 1;
    let words = list(&[bucket(0x10_1000, 8, [1, 0]), torn, bucket(0, 8, [1, 1])]);
    let profile = heap(&words, |_| Some(0)).expect("a profile");
    assert_eq!((profile.buckets.len(), profile.torn), (2, 1));
}

#[test]
fn lists_that_lead_back_end() {
    for next in [0x10_0000, 0x10_1000] {
        let words = list(&[bucket(0x10_1000, 64, [5, 2]), bucket(next, 8, [1, 1])]);
        let profile = heap(&words, |_| Some(0)).expect("a profile");
        assert_eq!((profile.buckets.len(), profile.is_cut), (2, true));
        survive("a circle", &words, |_| Some(0));
    }
}

#[test]
fn lists_without_an_end_are_cut() {
    // A bucket at each multiple of 4 KiB from 1 MiB on, each the longest there is.
    let endless = |address: u64| {
        let at = address % 0x4000;
        Some(match at {
            8 => address - at + 0x4000,
            16 => 1,
            32 => 8,
            40 => 1032,
            48 => code(),
            _ => 0,
        })
    };
    let profile = heap(&[(at::BUCKETS, 0x10_0000)], endless).expect("a profile");
    assert!(profile.is_cut && profile.buckets.len() > 1000);
    survive("an endless list", &[(at::BUCKETS, 0x10_0000)], endless);
}

#[test]
fn garbage_is_survived() {
    let mut state = 42_u64;
    let mut dice = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..200 {
        // Small numbers, pointers into the same memory, and anything at all.
        let words: Vec<u64> = (0..257)
            .map(|_| match dice() % 5 {
                0 => dice() % 16,
                1 => dice() % (1 << 20) * 8,
                2 => code(),
                3 => 1 << 60,
                _ => dice(),
            })
            .collect();
        let rule = |address: u64| Some(words[(address / 8 % 257) as usize]);
        survive(
            &format!("garbage {round}"),
            &[(at::COUNT, 1 << (round % 64))],
            rule,
        );
    }
}

#[test]
fn huge_counts_are_refused_or_cut() {
    for count in [1 << 60, u64::MAX, (1 << 32) + 1] {
        survive("a count", &[(at::COUNT, count)], |_| Some(0x4000));
    }
    // As many goroutines as there can be, all of them the same place.
    let memory = Made::by(|_| Some(0x4000));
    let mut memory = memory;
    memory
        .set
        .extend([(at::ARRAY, 0x10_0000), (at::COUNT, MAX_GOROUTINES + 5)]);
    // Nothing is mapped where they should be.
    let memory = Made {
        set: memory.set,
        rule: |address| (0x10_0000..0x20_0000).contains(&address).then_some(8),
        read: memory.read,
    };
    let variables = variables();
    let program = program(&memory, binary(), &variables);
    let offsets = binary().runtime_offsets();
    let listing = program.for_each_goroutine(offsets.get().expect("offsets"), |_| {});
    assert!(listing.is_err(), "the list ends before its count");
}

/// Where a list of goroutines and their structs are made up.
const LIST: u64 = 0x4000_0000;
const STRUCTS: u64 = 0x1_0000_0000;
const STRUCT_BYTES: u64 = 0x400;

fn offsets() -> StructOffsets {
    let offsets = binary().runtime_offsets();
    *offsets.get().expect("offsets")
}

/// The word at an address of a list of goroutines that wait: which struct is at a place
/// of it, and which id that has.
fn waiting(offsets: &GOffsets, address: u64, places: u64, ids: u64) -> Option<u64> {
    let Some(at) = address.checked_sub(STRUCTS) else {
        let place = address.checked_sub(LIST)? / 8;
        return Some(STRUCTS + place % places * STRUCT_BYTES);
    };
    let field = (at % STRUCT_BYTES) as u32;
    let words = [
        (offsets.stack.lo, 0x7000),
        (offsets.stack.hi, 0x8000),
        (offsets.atomic_status, 4),
        (offsets.goid, at / STRUCT_BYTES % ids + 1),
    ];
    let word = words.iter().find(|(offset, _)| *offset == field);
    Some(word.map_or(0, |(_, word)| *word))
}

/// What a list of so many came to, and how many bytes were read for it.
fn count(listed: u64, places: u64, ids: u64) -> (Result<u64, String>, u64) {
    let offsets = offsets();
    let mut memory = Made::by(|address| waiting(&offsets.g, address, places, ids));
    memory.set.extend([(at::ARRAY, LIST), (at::COUNT, listed)]);
    let variables = variables();
    let program = program(&memory, binary(), &variables);
    let listing = program.for_each_goroutine(&offsets, |_| {});
    (listing.map(|listing| listing.alive), memory.read.get())
}

/// What becomes of a list of which some are looked at and one in so many is alive; and
/// the ids of those.
fn some(listed: u64, one_in: u64, few: Few) -> (Listing, Vec<u64>) {
    let offsets = offsets();
    let mut memory = Made::by(|address| {
        let at = address.checked_sub(STRUCTS);
        let is_status = |at: u64| at % STRUCT_BYTES == u64::from(offsets.g.atomic_status);
        let ended = at.filter(|at| is_status(*at) && !(at / STRUCT_BYTES).is_multiple_of(one_in));
        let word = waiting(&offsets.g, address, u64::MAX, u64::MAX);
        ended.map(|_| DEAD).or(word)
    });
    memory.set.extend([(at::ARRAY, LIST), (at::COUNT, listed)]);
    let variables = variables();
    let program = program(&memory, binary(), &variables);
    let (mut dice, mut ids) = (listed << 8 | one_in | 1, Vec::new());
    let below = |bound: u64| {
        // xorshift64*, by Vigna.
        dice ^= dice >> 12;
        dice ^= dice << 25;
        dice ^= dice >> 27;
        let random = dice.wrapping_mul(0x2545_f491_4f6c_dd1d);
        ((u128::from(random) * u128::from(bound)) >> 64) as u64
    };
    let listing = program.for_some_goroutines(few, &offsets, below, |batch| {
        ids.extend(batch.goroutines.iter().map(|goroutine| goroutine.goid));
    });
    ids.sort_unstable();
    (listing.expect("a list"), ids)
}

/// `_Gdead` of Go's runtime.
const DEAD: u64 = 6;

#[test]
fn those_looked_at_stand_for_all_whoever_has_ended() {
    let few = Few {
        alive: 4096,
        places: 32_768,
    };
    // How many are listed, and one in how many is alive.
    for (listed, one_in) in [(100_003, 1), (100_003, 2), (100_003, 50), (40_000, 50)] {
        let (listing, ids) = some(listed, one_in, few);
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "one twice");
        assert_eq!(listing.alive, ids.len() as u64);
        let is_enough = (4096..4096 + 256).contains(&listing.alive);
        let is_most = listing.looked_at == few.places;
        assert!(is_enough || is_most, "{listing:?}");
        let (share, looked_at) = (1.0 / one_in as f64, listing.looked_at as f64);
        let found = listing.alive as f64 * listing.stands_for();
        let error = listed as f64 * (share * (1.0 - share) / looked_at).sqrt();
        let off = (found - (listed as f64 * share).ceil()).abs();
        assert!(off <= 5.0 * error + 1e-6, "{found} for one in {one_in}");
        // From the whole of the list.
        let mean = ids.iter().sum::<u64>() as f64 / ids.len() as f64;
        let error = listed as f64 / (12.0 * ids.len() as f64).sqrt();
        let off = (mean - listed as f64 / 2.0).abs();
        assert!(off < 5.0 * error, "{mean} of {listed}");
    }
    // No more than are looked at anyway: each stands for itself.
    for (listed, one_in) in [(4096, 1), (4095, 3), (32_768, 10), (1, 1), (0, 1)] {
        let (listing, ids) = some(listed, one_in, few);
        assert_eq!((listing.looked_at, listing.cut), (listed, 0));
        assert_eq!(listing.stands_for(), 1.0);
        assert_eq!(ids.len() as u64, listed.div_ceil(one_in));
    }
}

#[test]
fn a_list_that_repeats_itself_is_left_soon() {
    let (many, bytes) = count(100_000, u64::MAX, u64::MAX);
    assert_eq!(many, Ok(100_000));
    let of_one = bytes / 100_000;
    // The same structs again and again, and the same memory at other addresses; so
    // many of them that not all are remembered.
    for (places, ids) in [
        (1500, u64::MAX),
        (u64::MAX, 1500),
        (100_000, u64::MAX),
        (u64::MAX, 100_000),
    ] {
        let (found, bytes) = count(MAX_GOROUTINES, places, ids);
        let why = found.expect_err("it cannot be");
        assert!(why.contains("makes no sense"), "{why}");
        let most = (places.min(ids) + 5000) * (of_one + 8);
        assert!(bytes < most, "{places} {ids}: {bytes} bytes, not {most}");
    }
}

#[test]
fn goroutines_are_not_counted_where_more_are_listed_than_is_room_for() {
    let statistics = |listed| {
        let offsets = offsets();
        let all = u64::MAX;
        let mut memory = Made::by(|address| waiting(&offsets.g, address, all, all));
        memory.set.extend([(at::ARRAY, LIST), (at::COUNT, listed)]);
        let variables = variables();
        let program = program(&memory, binary(), &variables);
        let found = program.statistics(Ok(&offsets), &[], 3000);
        let why = found
            .unknown
            .into_iter()
            .find(|line| line.contains("listed"));
        (found.goroutines.map(|counts| counts.alive), why)
    };
    assert_eq!(statistics(3000), (Some(3000), None));
    let (alive, why) = statistics(3001);
    assert_eq!(alive, None);
    let why = why.expect("a line about it");
    assert_eq!(
        why,
        "goroutines: 3001 are listed, more than the 3000 that are read"
    );
}
