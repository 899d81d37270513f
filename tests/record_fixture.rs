//! Records a fixture: `cargo xtask fixture NAME` runs it. Builds the case's
//! program, samples it with the real kernel side, and keeps the records with
//! the least of the machine that they need to be named again.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a tool of the tests: a failure is a panic"
)]

#[path = "record_fixture/trim.rs"]
mod trim;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use goprof::decode::{Event, decode};
use goprof::probe::{Options, Probes};
use goprof::process::{Objects, Process, ProcessTable, VDSO};
use goprof::ringbuf::Records;
use goprof::unwind::unwind;
use goprof_tests::fixture::{self, Case, Files, Recorded};
use goprof_tests::replay::{Settings, replay};
use goprof_tests::{go, target::Target};

const RATE_HZ: u32 = 499;
/// How long samples are waited for.
const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    let name = std::env::args().nth(1).expect("name a case");
    let mut case = Case::read(&name);
    let folder = fixture::folder(&name);
    let built = tempfile::tempdir().expect("make a folder to build in");
    let binary = built.path().join(&case.program);
    let flags: Vec<&str> = std::iter::once("-trimpath")
        .chain(case.flags.iter().map(String::as_str))
        .collect();
    go::go_build(&case.program, &case.go, &flags, &binary).succeeded();

    // Without an environment: it lies on the stack, and parts of the stack are
    // in the records.
    let mut command = Command::new(&binary);
    command.args(["-duration", "5m"]).env_clear();
    let target = Target::start_command(&mut command);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", target.pid()))
        .expect("read the program's mappings");
    let maps = public_maps(&maps, &binary, &case);
    let pid = target.pid();
    let vdso = built.path().join("vdso.so");
    std::fs::write(&vdso, vdso_of(pid, &maps)).expect("copy the vdso");
    let files = Files {
        program: &binary,
        vdso: Some(&vdso),
    };
    let process = case.process(pid, &maps, files, &mut Objects::default());

    let records = record(&case, &target, &process);
    let addresses = trim::code_words(&records, &process);
    fixture::pack(&folder.join("records.bin.gz"), &fixture::join(&records));
    std::fs::write(folder.join("maps.txt"), &maps).expect("write maps.txt");
    let symbols = kernel_symbols(&records);
    if !symbols.is_empty() {
        std::fs::write(folder.join("kallsyms.txt"), symbols).expect("write kallsyms.txt");
    }
    // What a replay shows; names of C functions come from no table of Go's.
    let replayed = |files: Files<'_>| {
        let mut table = ProcessTable::default();
        let process = case.process(pid, &maps, files, &mut table.objects);
        table.insert(process);
        let settings = Settings {
            rate_hz: RATE_HZ,
            threads: case.threads,
            kallsyms: &folder.join("kallsyms.txt"),
        };
        replay(&records, table, &settings).encode()
    };
    let needs = trim::Needs {
        addresses,
        replayed: &|program| replayed(Files { program, ..files }),
    };
    let trimmed = trim::trim(&binary, &needs);
    fixture::pack(&folder.join("tables.elf.gz"), &trimmed);
    if records.iter().any(|record| is_in_vdso(record, &process)) {
        let whole = std::fs::read(&vdso).expect("read the vdso");
        let with = |vdso: &Path| {
            let vdso = Some(vdso);
            replayed(Files { vdso, ..files })
        };
        let trimmed = trim::trim_vdso(&whole, &with);
        fixture::pack(&folder.join(fixture::VDSO_FILE), &trimmed);
    }

    let release = read("/proc/sys/kernel/osrelease");
    let number = release.trim().split(['-', '+']).next();
    case.recorded = Some(Recorded {
        kernel: number.unwrap_or_default().to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        rate_hz: RATE_HZ,
        pid,
        comm: case.program.clone(),
    });
    let text = toml::to_string(&case).expect("write TOML");
    std::fs::write(folder.join("case.toml"), text).expect("write case.toml");
    eprintln!("{name}: {} records", records.len());
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

/// The executable mappings, with the program where replays have it.
fn public_maps(maps: &str, binary: &Path, case: &Case) -> String {
    let built = binary.to_str().expect("a path in UTF-8");
    maps.lines()
        .filter(|line| line.split(' ').nth(1).is_some_and(|p| p.contains('x')))
        .map(|line| format!("{}\n", line.replace(built, &case.exe())))
        .collect()
}

/// The vdso that the process `pid` has mapped.
fn vdso_of(pid: u32, maps: &str) -> Vec<u8> {
    let line = maps.lines().find(|line| line.ends_with(VDSO));
    let (start, _) = line.expect("a vdso").split_once('-').expect("a range");
    let start = u64::from_str_radix(start, 16).expect("an address");
    let process = Process::read(pid, &mut Objects::default()).expect("read the process");
    let object = process.locate(start).and_then(|m| m.object.as_ref());
    std::fs::read(object.expect("a copy of the vdso").fd_path()).expect("read the copy")
}

/// Whether the stack of a record has a frame in the vdso.
fn is_in_vdso(record: &[u64], process: &Process) -> bool {
    let Ok(Event::Sample(sample)) = decode(fixture::bytes_of(record)) else {
        return false;
    };
    let mut frames = Vec::new();
    unwind(&sample, process, &mut frames);
    let path = |address: &u64| process.locate(*address).map(|m| &m.path);
    frames
        .iter()
        .any(|address| path(address).is_some_and(|path| path == VDSO))
}

/// Samples the program until there are enough records.
fn record(case: &Case, target: &Target, process: &Process) -> Vec<Vec<u64>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("start the runtime");
    runtime.block_on(async {
        let mut probes = Probes::load(&Options {
            kernel_stacks: case.kernel_stacks,
            watch_execs: false,
            block_io: false,
            kernel_io: false,
            ring_bytes: 8 << 20,
            cpu: true,
            off_cpu: false,
        })
        .expect("load the probes");
        let mut targets = probes.take_targets().expect("the targets");
        let mut ring = Records::new(probes.take_ring().expect("the ring")).expect("the records");
        let layout = process.go_layout().expect("the layout of the runtime").go;
        targets
            .insert(target.pid(), layout)
            .expect("add the target");
        probes.attach_cpu(RATE_HZ).expect("attach the sampler");

        let mut kept = Kept::default();
        let deadline = Instant::now() + LIMIT;
        while kept.records.len() < case.records {
            assert!(
                Instant::now() < deadline,
                "{} of {} records came in {LIMIT:?}",
                kept.records.len(),
                case.records
            );
            ring.ready().await;
            ring.drain(usize::MAX, |record| kept.consider(record, case, process));
        }
        kept.records.truncate(case.records);
        kept.records
    })
}

/// The records chosen so far.
#[derive(Default)]
struct Kept {
    records: Vec<Vec<u64>>,
    instructions: HashSet<u64>,
}

impl Kept {
    fn consider(&mut self, record: &[u8], case: &Case, process: &Process) {
        let Ok(Event::Sample(sample)) = decode(record) else {
            return;
        };
        let mut frames = Vec::new();
        unwind(&sample, process, &mut frames);
        if let Some(wanted) = &case.function
            && !frames
                .iter()
                .any(|address| is_in(process, *address, wanted))
        {
            return;
        }
        if let Some(wanted) = &case.mapping
            && process
                .locate(sample.thread.ip)
                .is_none_or(|m| m.path != *wanted)
        {
            return;
        }
        let in_file = |address: &u64| process.locate(*address).is_some_and(|m| m.object.is_some());
        let new = self.instructions.insert(sample.thread.ip);
        let lost = frames.get(1) != sample.thread.callers.first().map(|call| call - 1).as_ref();
        let enough = self.records.len() >= case.as_they_come && !new && sample.kernel.is_empty();
        let plain = case.only_lost_callers && !lost;
        let user_only = case.kernel_stacks && sample.kernel.is_empty() && !new;
        if !frames.iter().all(in_file) || enough || plain || user_only {
            return;
        }
        let (words, rest) = record.as_chunks::<8>();
        assert!(rest.is_empty(), "a record of whole words");
        let words = words.iter().map(|word| u64::from_ne_bytes(*word));
        self.records.push(words.collect());
    }
}

/// Whether an address is in a function of Go's, inlined there or not.
fn is_in(process: &Process, address: u64, function: &str) -> bool {
    let mut frames = Vec::new();
    let found = process.locate(address).and_then(|mapped| {
        let binary = mapped.object.as_ref()?.go()?;
        binary.frames(mapped.go_address(address)?, &mut frames).ok()
    });
    found.is_some() && frames.iter().any(|frame| frame.name == function)
}

/// The lines of `/proc/kallsyms` that name the kernel addresses in `records`,
/// with the symbol that ends each.
fn kernel_symbols(records: &[Vec<u64>]) -> String {
    let table = read("/proc/kallsyms");
    let mut symbols: BTreeMap<u64, &str> = BTreeMap::new();
    for line in table.lines() {
        let address = line.split(' ').next().expect("an address");
        let address = u64::from_str_radix(address, 16).expect("an address");
        symbols.entry(address).or_insert(line);
    }
    let mut kept: BTreeMap<u64, &str> = BTreeMap::new();
    for record in records {
        let Ok(Event::Sample(sample)) = decode(fixture::bytes_of(record)) else {
            continue;
        };
        for address in sample.kernel {
            for call in [*address, address - 1] {
                kept.extend(symbols.range(..=call).next_back());
                kept.extend(symbols.range(call + 1..).next());
            }
        }
    }
    kept.values().map(|line| format!("{line}\n")).collect()
}
