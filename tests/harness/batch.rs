//! Batches out of pprof files that `goprof record -a` wrote: one process for
//! each pid, with the labels that an agent would give it. For tests of the store
//! and measurements of its size on real profiles.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use goprof::identity::{Target, label};
use goprof::profile::{Batch, proto};
use goprof::symbolize::{
    Event, FrameKind, Function, FunctionId, Line, Location, LocationId, Mapping, MappingId,
    Process, ProcessId, Sample, SymbolizedWindow,
};

/// Reads a profile's message back into the window that it was made of.
#[track_caller]
pub fn from_pprof(raw: &proto::Profile) -> Batch {
    let text = |index: i64| raw.string_table[usize::try_from(index).expect("an index")].clone();
    let index = |id: u64| u32::try_from(id - 1).expect("ids count from 1");
    let functions = raw.function.iter().map(|f| Function {
        name: text(f.name),
        file: text(f.filename),
        start_line: u32::try_from(f.start_line).expect("a line"),
    });
    let mappings: Vec<Mapping> = raw
        .mapping
        .iter()
        .map(|m| Mapping {
            start: m.memory_start,
            end: m.memory_limit,
            offset: m.file_offset,
            file: text(m.filename),
            build_id: text(m.build_id),
        })
        .collect();
    let mut window = SymbolizedWindow {
        event: Event::Cpu,
        start: SystemTime::UNIX_EPOCH + Duration::from_nanos(unsigned(raw.time_nanos)),
        duration: Duration::from_nanos(unsigned(raw.duration_nanos)),
        period: unsigned(raw.period),
        processes: Vec::new(),
        samples: Vec::new(),
        locations: Vec::new(),
        functions: functions.collect(),
        mappings,
    };
    window.locations = raw
        .location
        .iter()
        .map(|l| location(l, &window, index))
        .collect();
    let mut pids: HashMap<u32, ProcessId> = HashMap::new();
    for sample in &raw.sample {
        let (process, labels) = owner(raw, sample);
        let id = *pids.entry(process.pid).or_insert_with(|| {
            window.processes.push(process);
            ProcessId(u32::try_from(window.processes.len() - 1).expect("few processes"))
        });
        let stack = sample.location_id.iter().map(|id| LocationId(index(*id)));
        window.samples.push(Sample {
            process: id,
            thread: None,
            goid: None,
            labels,
            stack: stack.collect(),
            block_bytes: None,
            values: [sample.value[0], sample.value[1], 0, 0],
        });
    }
    find_programs(&mut window);
    let targets = window.processes.iter().map(target).collect();
    Batch { window, targets }
}

/// Whose a sample is, and the labels that its program set.
fn owner(raw: &proto::Profile, sample: &proto::Sample) -> (Process, Vec<(String, String)>) {
    let text = |index: i64| raw.string_table[usize::try_from(index).expect("an index")].clone();
    let mut process = Process {
        pid: 0,
        comm: String::new(),
        exe: String::new(),
        cgroup_id: 0,
        go_version: String::new(),
    };
    let mut labels = Vec::new();
    for label in &sample.label {
        match text(label.key).as_str() {
            "pid" => process.pid = u32::try_from(label.num).expect("a pid"),
            "comm" => process.comm = text(label.str),
            "goid" | "tid" | "thread" => {}
            key => labels.push((key.to_owned(), text(label.str))),
        }
    }
    (process, labels)
}

fn location(
    raw: &proto::Location,
    window: &SymbolizedWindow,
    index: impl Fn(u64) -> u32,
) -> Location {
    let mapping = (raw.mapping_id != 0).then(|| MappingId(index(raw.mapping_id)));
    let line = |line: &proto::Line| Line {
        function: FunctionId(index(line.function_id)),
        line: u32::try_from(line.line).expect("a line"),
    };
    let lines: Vec<Line> = raw.line.iter().map(line).collect();
    let file = mapping.map_or("", |m| &window.mappings[m.0 as usize].file);
    let is_go = lines.iter().any(|line| {
        let file = &window.functions[line.function.0 as usize].file;
        file.ends_with(".go") || file.ends_with(".s")
    });
    Location {
        address: raw.address,
        mapping,
        kind: match (file.starts_with("[kernel"), is_go) {
            (true, _) => FrameKind::Kernel,
            (_, true) => FrameKind::Go,
            _ => FrameKind::Native,
        },
        lines,
        reason: None,
    }
}

/// Gives each process the executable that most of its Go frames lie in.
fn find_programs(window: &mut SymbolizedWindow) {
    let mut seen: HashMap<ProcessId, BTreeMap<&str, u64>> = HashMap::new();
    for sample in &window.samples {
        for id in &sample.stack {
            let location = &window.locations[id.0 as usize];
            if let (FrameKind::Go, Some(mapping)) = (location.kind, location.mapping) {
                let file = window.mappings[mapping.0 as usize].file.as_str();
                *seen
                    .entry(sample.process)
                    .or_default()
                    .entry(file)
                    .or_default() += sample.values[0].unsigned_abs();
            }
        }
    }
    for (id, files) in seen {
        let most = files.into_iter().max_by_key(|(_, count)| *count);
        let file = most.map_or("", |(file, _)| file);
        window.processes[id.0 as usize].exe = file.to_owned();
    }
}

/// What an agent would say of a process in a pod of its own.
fn target(process: &Process) -> Target {
    // Ids as random as real ones are, but the same in each run.
    let mut id = String::new();
    let mut state = u64::from(process.pid);
    while id.len() < 64 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        id.push_str(&format!("{:08x}", state >> 32));
    }
    let labels = [
        (label::SERVICE_NAME, process.comm.clone()),
        (label::NAMESPACE, "default".to_owned()),
        (
            label::POD,
            format!("{}-{}-{}", process.comm, &id[..9], &id[9..14]),
        ),
        (label::CONTAINER, process.comm.clone()),
        (label::CONTAINER_ID, id),
        (label::EXE, process.exe.clone()),
        (label::MODULE, format!("example.com/{}", process.comm)),
        (label::MODULE_VERSION, "v1.2.3".to_owned()),
        (label::GO_VERSION, "go1.26.8".to_owned()),
    ];
    Target {
        pid: process.pid,
        labels: labels.into(),
        is_partial: false,
    }
}

/// The batch's part that belongs to one process, as a window of its own.
pub fn of_process(window: &SymbolizedWindow, process: ProcessId) -> SymbolizedWindow {
    let mut part = SymbolizedWindow {
        processes: vec![window.processes[process.0 as usize].clone()],
        samples: Vec::new(),
        locations: Vec::new(),
        functions: Vec::new(),
        mappings: Vec::new(),
        ..*window
    };
    let mut locations = HashMap::new();
    let mut functions = HashMap::new();
    let mut mappings = HashMap::new();
    for sample in window.samples.iter().filter(|s| s.process == process) {
        let mut sample = sample.clone();
        sample.process = ProcessId(0);
        for id in &mut sample.stack {
            *id = *locations.entry(*id).or_insert_with(|| {
                let mut location = window.locations[id.0 as usize].clone();
                location.mapping = location.mapping.map(|m| {
                    let own = &window.mappings[m.0 as usize];
                    MappingId(place(&mut mappings, m, &mut part.mappings, own))
                });
                for line in &mut location.lines {
                    let own = &window.functions[line.function.0 as usize];
                    let id = place(&mut functions, line.function, &mut part.functions, own);
                    line.function = FunctionId(id);
                }
                part.locations.push(location);
                LocationId(u32::try_from(part.locations.len() - 1).expect("few locations"))
            });
        }
        part.samples.push(sample);
    }
    part
}

/// Two windows as one, of all their processes: the first's time.
pub fn join(mut node: Batch, mut one: Batch) -> Batch {
    let ours = &mut node.window;
    let theirs = &mut one.window;
    let (processes, locations) = (ours.processes.len() as u32, ours.locations.len() as u32);
    let (functions, mappings) = (ours.functions.len() as u32, ours.mappings.len() as u32);
    for location in &mut theirs.locations {
        location.mapping = location.mapping.map(|m| MappingId(m.0 + mappings));
        for line in &mut location.lines {
            line.function = FunctionId(line.function.0 + functions);
        }
    }
    for sample in &mut theirs.samples {
        sample.process = ProcessId(sample.process.0 + processes);
        for id in &mut sample.stack {
            *id = LocationId(id.0 + locations);
        }
    }
    ours.processes.append(&mut theirs.processes);
    ours.locations.append(&mut theirs.locations);
    ours.functions.append(&mut theirs.functions);
    ours.mappings.append(&mut theirs.mappings);
    ours.samples.append(&mut theirs.samples);
    node.targets.append(&mut one.targets);
    node
}

/// The place of an item in a table of its own, where it is put the first time.
fn place<I: std::hash::Hash + Eq, T: Clone>(
    places: &mut HashMap<I, u32>,
    id: I,
    table: &mut Vec<T>,
    item: &T,
) -> u32 {
    *places.entry(id).or_insert_with(|| {
        table.push(item.clone());
        u32::try_from(table.len() - 1).expect("a small table")
    })
}

#[track_caller]
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).expect("a value that is not negative")
}
