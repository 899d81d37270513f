//! The inputs that fuzzing begins with lead where they are meant to: a seed
//! that is refused at the door would fuzz nothing behind it.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure is a panic"
)]

use std::collections::BTreeMap;
use std::io::Write as _;

use goprof::decode::{Event, decode};
use goprof::gobinary::LabelFormat;
use goprof::gomemory::{Awaited, Core, Memory as _};
use goprof::process::code::{Base, Native, Site};
use goprof_tests::fixture;
use goprof_tests::fuzzing::{
    BinaryInput, NATIVE_RANGE, UnwindInput, WalkInput, known, mutate_record, native_library,
    native_process, seeds, words,
};
use goprof_tests::memory::{CHANNEL, LABEL, Made, MemoryInput, program, variables};
use profiler_ebpf::walk::{Step, UserMemory, step};
use profiler_ebpf::wire::{WalkEnd, kind};

#[track_caller]
fn seeds_of(target: &str) -> Vec<Vec<u8>> {
    let mut all = seeds().into_iter();
    let Some((_, seeds)) = all.find(|(name, _)| *name == target) else {
        panic!("no seeds of {target}");
    };
    assert!(!seeds.is_empty(), "no seeds of {target}");
    seeds
}

struct Memory<'a>(WalkInput<'a>);

impl UserMemory for Memory<'_> {
    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        let index = address.checked_sub(self.0.base)? as usize / 8;
        self.0.memory.get(index..index + 2)?.try_into().ok()
    }
}

#[test]
fn seeds_of_gomemory_have_a_heap_profile_and_a_goroutine_that_waits() {
    for seed in seeds_of("gomemory") {
        let words = words(&seed);
        let input = MemoryInput::of(&words).unwrap();
        let version = input.binary.version();
        let memory = Made::by(|address| Some(input.word(address)));
        let variables = variables();
        let program = program(&memory, input.binary, &variables);
        let profile = program.heap().unwrap();
        assert_eq!(profile.buckets.len(), 1, "{version}");
        let offsets = input.binary.runtime_offsets();
        let offsets = offsets.get().unwrap();
        let mut seen = Vec::new();
        let listing = program.for_each_goroutine(offsets, |batch| {
            let all: Vec<_> = batch.goroutines.iter().collect();
            let awaited = program.awaited(offsets, &all);
            let labels = program.labels(LabelFormat::Slice, all.iter().map(|g| g.labels));
            seen.push((all[0].goid, awaited, format!("{labels:?}")));
        });
        assert_eq!(listing.unwrap().alive, 1, "{version}");
        let (goid, awaited, labels) = &seen[0];
        assert_eq!((*goid, seen.len()), (18, 1), "{version}");
        assert_eq!(*awaited, [[Awaited::Channel(CHANNEL)]], "{version}");
        assert!(labels.contains(LABEL), "{version}: {labels}");
    }
}

#[test]
fn seeds_of_records_are_of_every_kind() {
    let mut kinds = BTreeMap::new();
    for seed in seeds_of("records") {
        let words = words(&seed);
        decode(fixture::bytes_of(&words)).unwrap();
        *kinds.entry(words[0] as u32).or_insert(0) += 1;
    }
    let expected = [
        kind::SAMPLE,
        kind::EXEC,
        kind::EXIT,
        kind::THREAD,
        kind::MEASURED,
        kind::ENDED,
        kind::SHARE_SPENT,
    ];
    assert_eq!(kinds.keys().copied().collect::<Vec<_>>(), expected);
    assert!(kinds[&kind::SAMPLE] > known().len(), "{kinds:?}");
}

#[test]
fn seeds_of_cores_describe_a_process() {
    for seed in seeds_of("cores") {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&seed).unwrap();
        let core = Core::open(file).unwrap();
        assert_eq!(
            (core.pid(), core.comm(), core.exe()),
            (76, "app", "/bin/app")
        );
        assert_eq!((core.threads().len(), core.is_cut()), (1, false));
        assert_eq!(core.word(core.threads()[0].sp), Some(0x1716_1514_1312_1110));
    }
}

#[test]
fn seeds_of_walk_are_chains_with_a_root() {
    let mut longest = 0;
    for seed in seeds_of("walk") {
        let words = words(&seed);
        let Some(input) = WalkInput::of(&words) else {
            panic!("a seed too short");
        };
        let (frames, mut fp) = (input.memory.len() / 2 - 1, input.fp);
        let memory = Memory(input);
        for _ in 0..frames {
            let Step::Frame { next, .. } = step(&memory, fp) else {
                panic!("the chain ends before its root");
            };
            fp = next;
        }
        assert_eq!(step(&memory, fp), Step::End(WalkEnd::Root));
        longest = longest.max(frames);
    }
    assert!(longest > 100, "{longest} frames at most");
}

#[test]
fn seeds_of_unwind_are_the_fixtures_records() {
    let seeds = seeds_of("unwind");
    let records: usize = known().iter().map(|known| known.records.len()).sum();
    assert_eq!(seeds.len(), records);
    for seed in seeds {
        let before = words(&seed);
        let Some(UnwindInput { case, record }) = UnwindInput::of(&before) else {
            panic!("a seed too short");
        };
        let known = &known()[case];
        assert!(known.code.len() > 10, "{}: {:x?}", known.name, known.code);
        let Ok(Event::Sample(sample)) = decode(fixture::bytes_of(record)) else {
            panic!("{}: a seed that is no sample", known.name);
        };
        assert_eq!(
            sample.thread.ip == 0,
            known.process.locate(sample.thread.ip).is_none()
        );

        let mut changed = seed.clone();
        assert!(mutate_record(&mut changed, 7));
        let mut changed = words(&changed);
        assert_eq!(changed.len(), before.len());
        assert_eq!(changed[0], before[0], "the case stays");
        changed.retain(|word| !before.contains(word));
        assert!(changed.len() <= 4, "{changed:x?}");
    }
}

#[test]
fn seeds_of_gobinary_change_nothing_yet() {
    let mut patched = 0;
    for seed in seeds_of("gobinary") {
        match BinaryInput::of(&words(&seed)) {
            Some(BinaryInput::Whole(file)) => {
                let elf = fixture::bytes_of(file).starts_with(b"\x7fELF");
                assert!(elf, "a seed that is no ELF file");
            }
            Some(BinaryInput::Patched { case, patches }) => {
                assert!(!patches.is_empty());
                for [number, value] in patches {
                    let at = known()[case].place(*number) as usize;
                    let there = &known()[case].tables[at..at + 8];
                    assert_eq!(there, value.to_ne_bytes());
                    assert_ne!(*value, 0);
                }
                patched += patches.len();
            }
            None => panic!("a seed too short"),
        }
    }
    assert!(patched > 100 * known().len(), "{patched} patches");
}

#[test]
fn the_seed_of_call_frames_has_rules_of_both_kinds() {
    let mut bases = Vec::new();
    for seed in seeds_of("call_frames") {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&seed).unwrap();
        let process = native_process(&file);
        let mut code = process.code();
        for address in NATIVE_RANGE.start..NATIVE_RANGE.start + seed.len() as u64 {
            if let Some(Site::Native(Native::Rule(rule))) = code.at(address) {
                bases.push(rule.base);
            }
        }
    }
    for base in [Base::Sp, Base::Fp] {
        let count = bases.iter().filter(|b| **b == base).count();
        assert!(count > 10, "{count} instructions with {base:?}");
    }
}

/// Asks how to step from every byte of a file; an overflow is a panic here.
fn ask(library: &[u8]) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(library).unwrap();
    let process = native_process(&file);
    let mut code = process.code();
    for address in NATIVE_RANGE {
        code.at(address);
    }
}

/// The headers of an ELF file's segments, each with its type.
fn segments(library: &mut [u8]) -> impl Iterator<Item = (u32, &mut [u8])> {
    let count = usize::from(library[56]);
    let headers = library[64..].chunks_exact_mut(56).take(count);
    headers.map(|header| (u32::from_le_bytes(header[..4].try_into().unwrap()), header))
}

/// Found by fuzzing: the numbers of these headers wrap around when added up.
#[test]
fn segments_at_the_end_of_all_addresses_are_survived() {
    const LOAD: u32 = 1;
    // Offset in the file and address.
    for field in [8, 16] {
        let mut library = native_library();
        for (kind, header) in segments(&mut library) {
            if kind == LOAD {
                header[field..field + 8].copy_from_slice(&(u64::MAX - 64).to_le_bytes());
                header[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
            }
        }
        ask(&library);
    }
}

/// Found by fuzzing: an index may name entries before its table, and claim to
/// have more of them than there are bytes.
#[test]
fn an_index_that_makes_no_sense_is_survived() {
    const INDEX: u32 = 0x6474_e550;
    let whole = native_library();
    let mut headers = whole.clone();
    let start = segments(&mut headers).find(|(kind, _)| *kind == INDEX);
    let start = u64::from_le_bytes(start.unwrap().1[8..16].try_into().unwrap()) as usize;
    // Encodings of the count in eight bytes, signed and not.
    for encoding in [0x04, 0x0c] {
        let mut library = whole.clone();
        library[start + 2] = encoding;
        library[start + 8..start + 16].fill(0xfe);
        ask(&library);
    }
    // Where the table is, and where each entry is.
    for at in [start + 4, start + 16, start + 24, start + 32] {
        let mut library = whole.clone();
        library[at..at + 4].copy_from_slice(&0x7fff_0000_u32.to_le_bytes());
        ask(&library);
        library[at..at + 4].copy_from_slice(&0x8000_0010_u32.to_le_bytes());
        ask(&library);
    }
}
