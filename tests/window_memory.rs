//! What a window takes while it is written is no more than was expected of it when
//! it was let grow so far: the memory limit is shared out by that.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use goprof::aggregate::{Owner, Window};
use goprof::identity::{Target, label};
use goprof::process::ProcessIndex;
use goprof::profile::{Batch, parquet};
use goprof::symbolize::{
    Event, FrameKind, Function, FunctionId, Line, Location, LocationId, Mapping, MappingId,
    Process, ProcessId, Sample, SymbolizedWindow,
};

/// As numbers that look like chance, and are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A load: so many processes, functions that they call at random, and frames.
struct Load {
    name: &'static str,
    processes: u32,
    functions: u64,
    depth: u64,
    labels: bool,
}

const LOADS: [Load; 4] = [
    // Hardly a stack comes twice, and hardly a function.
    Load {
        name: "huge programs",
        processes: 5,
        functions: 456_000,
        depth: 26,
        labels: false,
    },
    // Few functions in very many stacks.
    Load {
        name: "deep programs",
        processes: 5,
        functions: 2_000,
        depth: 120,
        labels: false,
    },
    Load {
        name: "many processes",
        processes: 200,
        functions: 4_000,
        depth: 12,
        labels: true,
    },
    Load {
        name: "shallow stacks",
        processes: 2,
        functions: 300,
        depth: 4,
        labels: true,
    },
];

/// Resident memory now, and the most since the last call, in bytes.
fn resident_bytes() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").expect("our own status");
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kb = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kb.expect("a number") * 1024
    };
    std::fs::write("/proc/self/clear_refs", "5").expect("a kernel that forgets the most");
    (bytes("VmRSS:"), bytes("VmHWM:"))
}

/// Adds stacks until a window is expected to take `bytes` when it is written.
fn fill(load: &Load, bytes: usize) -> (Window, Vec<(Owner, Vec<u64>)>) {
    let (mut window, mut all, mut chance) = (Window::default(), Vec::new(), Chance(7));
    while window.bytes_written() < bytes {
        let process = chance.below(load.processes.into());
        // As code repeats: the outer half of a stack is one of a few.
        let root = chance.below(load.functions.isqrt());
        let frame = |at, chance: &mut Chance| match at < load.depth / 2 {
            true => 0x40_0000 + chance.below(load.functions) * 1056,
            false => 0x40_0000 + (root * 31 + at) % load.functions * 1056 + 17,
        };
        let stack: Vec<u64> = (0..load.depth).map(|at| frame(at, &mut chance)).collect();
        let labels = match load.labels {
            true => vec![("path".to_owned(), format!("/{}", chance.below(400)))],
            false => Vec::new(),
        };
        let owner = Owner {
            process: ProcessIndex(u32::try_from(process).expect("few processes")),
            labels,
            ..Owner::default()
        };
        window.add(owner.clone(), &stack, 0);
        all.push((owner, stack));
    }
    (window, all)
}

/// What naming makes of it: a function for each address.
fn named(load: &Load, stacks: Vec<(Owner, Vec<u64>)>) -> Batch {
    let mut ids: HashMap<u64, LocationId> = HashMap::new();
    let (mut locations, mut functions) = (Vec::new(), Vec::new());
    let mut location = |address: u64| {
        *ids.entry(address).or_insert_with(|| {
            let id = u32::try_from(locations.len()).expect("few addresses");
            let number = address / 1056;
            functions.push(Function {
                name: format!(
                    "example.com/large/part{:02}.(*worker).handle{number:06}",
                    number % 58
                ),
                file: format!(
                    "/build/src/example.com/large/part{:02}/part.go",
                    number % 58
                ),
                start_line: id,
            });
            let function = FunctionId(id);
            let lines = vec![Line { function, line: id }];
            locations.push(Location {
                address,
                mapping: Some(MappingId(0)),
                kind: FrameKind::Go,
                lines,
                reason: None,
            });
            LocationId(id)
        })
    };
    let samples = stacks.into_iter().map(|(owner, stack)| Sample {
        process: ProcessId(owner.process.0),
        thread: None,
        goid: None,
        labels: owner.labels,
        block_bytes: None,
        stack: stack.into_iter().map(&mut location).collect(),
        values: [1, 1_000_000, 0, 0],
    });
    let samples = samples.collect();
    let process = |pid| Process {
        pid,
        comm: format!("worker{pid}"),
        exe: format!("/bin/worker{pid}"),
        cgroup_id: 0,
        go_version: "go1.26.8".to_owned(),
    };
    let target = |pid| Target {
        pid,
        labels: [(label::SERVICE_NAME, format!("service{pid}"))].into(),
        is_partial: false,
    };
    let mapping = Mapping {
        start: 0x40_0000,
        end: 0x4000_0000,
        offset: 0,
        file: "/bin/worker".to_owned(),
        build_id: String::new(),
    };
    Batch {
        targets: (0..load.processes).map(target).collect(),
        window: SymbolizedWindow {
            event: Event::Cpu,
            start: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            duration: Duration::from_secs(60),
            period: 1_000_000,
            processes: (0..load.processes).map(process).collect(),
            samples,
            locations,
            functions,
            mappings: vec![mapping],
        },
    }
}

fn encode(batch: &Batch, memory_bytes: usize) -> usize {
    let origin = parquet::Origin::default();
    let object = parquet::encode_within(batch, &origin, memory_bytes);
    object.expect("encode the window").len()
}

#[test]
fn a_window_takes_no_more_than_was_expected_while_it_is_written() {
    // So that the code itself is there.
    let (_, few) = fill(&LOADS[0], 1 << 20);
    encode(&named(&LOADS[0], few), 1 << 20);
    for share in [16 << 20, 32 << 20] {
        for load in &LOADS {
            let (for_writer, for_window) = parquet::share_out(share);
            let (window, stacks) = fill(load, for_window);
            let (samples, held) = (stacks.len(), window.bytes());
            goprof::memory::trim();
            // What the test itself has: nothing of it is given back meanwhile.
            let (before, _) = resident_bytes();
            let batch = named(load, stacks);
            goprof::memory::trim();
            let (named, _) = resident_bytes();
            let object = encode(&batch, for_writer);
            let (_, most) = resident_bytes();
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let taken = most.saturating_sub(before);
            println!(
                "{}: {samples} samples, {:.1} MiB held, {:.1} named, {:.1} at most of {}; object {:.2}",
                load.name,
                mib(held as u64),
                mib(named.saturating_sub(before)),
                mib(taken),
                share >> 20,
                mib(object as u64),
            );
            assert!(taken <= share as u64, "{}: {taken} bytes", load.name);
        }
    }
}
