//! What the fuzz targets of `profiler/fuzz` work on: the fixtures, unpacked,
//! and how the bytes of an input are read. Judges nothing: the targets do.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use goprof::decode::{Event, decode};
use goprof::gobinary::FuncKind;
use goprof::process::{Identity, MapsLine, Objects, Process};
use profiler_ebpf::wire::{Header, Sample, Segment, flags, kind};
use zerocopy::IntoBytes as _;

use crate::command;
use crate::fixture::{self, Fixture};
use crate::memory;
use crate::seeds;

/// What is known of a case.
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its process.
    pub process: Process,
    /// Its records.
    pub records: Vec<Vec<u64>>,
    /// The binary with the tables that its records need.
    pub tables: Vec<u8>,
    /// Words that mean something to the process: those of its records that are
    /// addresses in Go's code, and the functions that are special to a stack.
    pub code: Vec<u64>,
    /// The same addresses, as the binary has them.
    pub link_addresses: Vec<u64>,
    /// Where in [`Known::tables`] the words are that are not zero.
    places: Vec<u32>,
}

impl Known {
    #[track_caller]
    fn open(name: String) -> Self {
        let fixture = Fixture::open(&name);
        let process = fixture.process(&mut Objects::default());
        let tables = fixture.tables();
        let (words, _) = tables.as_chunks::<8>();
        let places = words.iter().enumerate();
        let places = places.filter(|(_, word)| **word != [0; 8]);
        let places = places.map(|(index, _)| 8 * index as u32).collect();
        let mut known = Known {
            name,
            process,
            places,
            tables,
            records: fixture.records,
            code: Vec::new(),
            link_addresses: Vec::new(),
        };
        known.find_code();
        known
    }

    fn find_code(&mut self) {
        let link = |word: &u64| self.process.locate(*word)?.go_address(*word);
        let words: BTreeSet<u64> = self.records.iter().flatten().copied().collect();
        let mut code: Vec<(u64, u64)> = words
            .iter()
            .filter_map(|word| Some((*word, link(word)?)))
            .collect();
        let bias = code.first().map(|(word, link)| word.wrapping_sub(*link));
        let binary = self.process.go_object().and_then(|object| object.go());
        let special = binary.into_iter().flat_map(|binary| binary.functions());
        let special = special.filter(|function| {
            function.kind != FuncKind::Normal || function.top_frame || function.sp_write
        });
        for function in special {
            let bias = bias.expect("a case has an address in Go's code");
            for link in [function.entry, function.entry.wrapping_add(1)] {
                code.push((link.wrapping_add(bias), link));
            }
        }
        (self.code, self.link_addresses) = code.into_iter().unzip();
    }

    /// The offset in [`Known::tables`] of a word that is not zero.
    pub fn place(&self, number: u64) -> u64 {
        self.places[(number % self.places.len() as u64) as usize].into()
    }
}

/// Every case, in the order of their names.
#[track_caller]
pub fn known() -> &'static [Known] {
    static KNOWN: OnceLock<Vec<Known>> = OnceLock::new();
    KNOWN.get_or_init(|| fixture::cases().into_iter().map(Known::open).collect())
}

/// The bytes of an input as words, aligned as the ring buffer aligns a record;
/// a rest of less than eight bytes is left out.
pub fn words(data: &[u8]) -> Vec<u64> {
    let (words, _) = data.as_chunks::<8>();
    words.iter().map(|word| u64::from_ne_bytes(*word)).collect()
}

fn bytes(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_ne_bytes).collect()
}

/// An input of the target `walk`.
pub struct WalkInput<'a> {
    /// Where the walk begins.
    pub fp: u64,
    /// The address of the first word.
    pub base: u64,
    /// The memory; what lies around it cannot be read.
    pub memory: &'a [u64],
}

impl<'a> WalkInput<'a> {
    /// Reads an input; `None` where it is too short.
    pub fn of(words: &'a [u64]) -> Option<Self> {
        let (&[fp, base], memory) = words.split_first_chunk()?;
        Some(Self { fp, base, memory })
    }
}

/// An input of the target `unwind`.
pub struct UnwindInput<'a> {
    /// Index of the case in [`known`].
    pub case: usize,
    /// The record.
    pub record: &'a [u64],
}

impl<'a> UnwindInput<'a> {
    /// Reads an input; `None` where it is too short.
    pub fn of(words: &'a [u64]) -> Option<Self> {
        let (case, record) = words.split_first()?;
        let case = (case % known().len() as u64) as usize;
        Some(Self { case, record })
    }
}

/// An input of the target `gobinary`.
pub enum BinaryInput<'a> {
    /// A file.
    Whole(&'a [u64]),
    /// The binary of a case with some words changed.
    Patched {
        /// Index of the case in [`known`].
        case: usize,
        /// Which word, for [`Known::place`], and its new value.
        patches: &'a [[u64; 2]],
    },
}

impl<'a> BinaryInput<'a> {
    /// Reads an input; `None` where it is too short.
    pub fn of(words: &'a [u64]) -> Option<Self> {
        let (case, rest) = words.split_first()?;
        let cases = known().len() as u64;
        Some(match case % (cases + 1) {
            0 => Self::Whole(rest),
            case => Self::Patched {
                case: case as usize - 1,
                patches: rest.as_chunks().0,
            },
        })
    }
}

/// Changes some words of an input of the target `unwind` to ones that mean
/// something to its process. Says whether it could.
pub fn mutate_record(input: &mut [u8], seed: u32) -> bool {
    let Some(read) = words(input).first().copied() else {
        return false;
    };
    let known = &known()[(read % known().len() as u64) as usize];
    let (input, _) = input.as_chunks_mut::<8>();
    let mut dice = u64::from(seed);
    let mut roll = |sides: usize| {
        // Knuth's MMIX generator; its high bits are the better ones.
        dice = dice.wrapping_mul(6364136223846793005);
        dice = dice.wrapping_add(1442695040888963407);
        (dice >> 33) as usize % sides.max(1)
    };
    if input.len() < 2 {
        return false;
    }
    for _ in 0..=roll(4) {
        let from = u64::from_ne_bytes(input[1 + roll(input.len() - 1)]);
        let word = match roll(4) {
            // Often the stack pointer, the frame pointer or a saved one.
            0 => from,
            1 => from.wrapping_add(8 * roll(64) as u64),
            2 => from.wrapping_sub(8 * roll(64) as u64),
            _ => known.code[roll(known.code.len())],
        };
        input[1 + roll(input.len() - 1)] = word.to_ne_bytes();
    }
    true
}

/// A record of a thread in user code: `thread` with its counts set to those of
/// `callers` and `slice`.
pub fn record(thread: Segment, callers: &[u64], slice: &[u64]) -> Vec<u64> {
    let head = Sample {
        header: Header {
            kind: kind::SAMPLE,
            cpu: 0,
            time_ns: 0,
            pid: 1,
            tid: 1,
        },
        cgroup_id: 0,
        comm: [0; 16],
        goid: 0,
        thread: Segment {
            frames: callers.len() as u16,
            slice_words: slice.len() as u16,
            ..thread
        },
        goroutine: Segment::default(),
        kernel_frames: 0,
        labels_words: 0,
        labels: 0,
        labels_missed: 0,
        flags: flags::IN_USER,
        reserved: 0,
    };
    words(&[head.as_bytes(), callers.as_bytes(), slice.as_bytes()].concat())
}

/// C with frames of each kind that compilers describe: none, pushed registers,
/// a frame pointer because the size is not known, and no return.
const NATIVE: &str = "
int leaf(int a) { return a * 3; }
__attribute__((noinline)) long pushes(long *p, long n)
{
	long sum = 0;
	for (long i = 0; i < n; i++)
		sum += p[i] * p[n - i] + pushes(p + i, n / 2) * pushes(p, i / 3);
	return sum;
}
long unknown_size(long n, long (*use)(char *, long))
{
	char *room = __builtin_alloca(n);
	return use(room, n) + pushes((long *)room, n);
}
__attribute__((noreturn)) void never(void (*f)(void))
{
	for (;;)
		f();
}
";

/// A small C library with call frame information, built by the machine's `cc`.
#[track_caller]
pub fn native_library() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("make a folder to build in");
    let source = folder.path().join("native.c");
    let library = folder.path().join("native.so");
    std::fs::write(&source, NATIVE).expect("write the source");
    let mut cc = Command::new("cc");
    cc.args([
        "-shared",
        "-fPIC",
        "-nostdlib",
        "-O2",
        "-fomit-frame-pointer",
    ])
    .args(["-fasynchronous-unwind-tables", "-s"])
    .args(["-Wl,-z,noseparate-code", "-Wl,-z,max-page-size=4096", "-o"])
    .args([&library, &source]);
    let remedy = "run `apt-get install gcc libc6-dev`";
    command::run(&mut cc, Duration::from_secs(60), remedy).succeeded();
    std::fs::read(&library).expect("read the library")
}

/// Where [`native_process`] has its file, and how much of it.
pub const NATIVE_RANGE: Range<u64> = 0x40_0000..0x41_0000;

/// A process that has mapped a file that is not Go's.
pub fn native_process(file: &File) -> Process {
    let Range { start, end } = NATIVE_RANGE;
    let path = "/fixture/native.so";
    let identity = Identity {
        pid: 1,
        comm: "native".to_owned(),
        exe: path.to_owned(),
    };
    let maps = format!("{start:x}-{end:x} r-xp 00000000 00:01 1 {path}");
    let open = |_: &MapsLine| file.try_clone().ok();
    Process::from_maps(identity, maps.as_bytes(), &mut Objects::default(), open)
}

/// Inputs to begin with, by target: most are made of the fixtures' records and
/// binaries.
pub fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let mut walk = Vec::new();
    let mut unwind = Vec::new();
    let mut gobinary = Vec::new();
    for (case, known) in known().iter().enumerate() {
        for record in &known.records {
            unwind.push(bytes(std::iter::once(case as u64).chain(record.clone())));
        }
        walk.extend(known.records.iter().filter_map(|record| walk_seed(record)));
        gobinary.extend(binary_seeds(case as u64 + 1, known));
    }
    let gomemory = (0..known().len()).map(|case| bytes(memory::seed(case as u64)));
    let mut all = vec![
        ("walk", walk),
        ("unwind", unwind),
        ("gobinary", gobinary),
        ("call_frames", vec![native_library()]),
        ("gomemory", gomemory.collect()),
    ];
    all.extend(seeds::all());
    all
}

/// The chain of a record as frames of two words each, one behind the other.
fn walk_seed(record: &[u64]) -> Option<Vec<u8>> {
    let Ok(Event::Sample(sample)) = decode(fixture::bytes_of(record)) else {
        return None;
    };
    let fp = sample.thread.fp & !7;
    let frames = sample.thread.callers.iter().enumerate();
    let chain = frames.flat_map(|(index, caller)| [fp + 16 * (index as u64 + 1), *caller]);
    Some(bytes([fp, fp].into_iter().chain(chain).chain([0, 0])))
}

/// The binary's headers as a file, and its first words and some of the others
/// as patches that change nothing yet.
fn binary_seeds(case: u64, known: &Known) -> Vec<Vec<u8>> {
    const PATCHES: usize = 16;
    const SEEDS: usize = 24;
    let patch = |number: u64| {
        let at = known.place(number) as usize;
        let word: [u8; 8] = known.tables[at..at + 8].try_into().expect("eight bytes");
        [number, u64::from_ne_bytes(word)]
    };
    let whole = words(&known.tables[..4096.min(known.tables.len())]);
    let mut seeds = vec![bytes(std::iter::once(0).chain(whole))];
    let step = known.places.len().div_ceil(SEEDS);
    let starts = (0..8).map(|index| index * PATCHES);
    for start in starts.chain((0..SEEDS).map(|index| index * step)) {
        let patches = (start..start + PATCHES).flat_map(|number| patch(number as u64));
        seeds.push(bytes(std::iter::once(case).chain(patches)));
    }
    seeds
}
