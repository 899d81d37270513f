//! Replay: records of `bpf-fixtures/` through decode, unwind, aggregate,
//! symbolize and pprof, compared with each case's `expected.txt`. Needs no
//! root; `UPDATE_EXPECT=1` writes the files anew.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use goprof::process::ProcessTable;
use goprof::profile::proto;
use goprof_tests::fixture::{self, Fixture};
use goprof_tests::pprof::{Frame, Profile};
use goprof_tests::replay::{Replay, Settings, replay};

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        const CASES: &[&str] = &[$(stringify!($name)),*];
    };
}

cases! {
    busy_loop,
    cgo_call,
    cgo_callback,
    closures,
    collector,
    deep_recursion,
    generics,
    go1_21,
    go1_24,
    inlined_leaf,
    kernel_frames,
    leaf_of_two_callers,
    leaf_prologue,
    map_access,
    memmove,
    nested_callback,
    pie_stripped,
    sha256_asm,
    signal_handler,
    stack_growth,
    vdso,
}

#[test]
fn every_fixture_is_replayed() {
    assert_eq!(fixture::cases(), CASES);
}

#[track_caller]
fn check(name: &str) {
    let fixture = Fixture::open(name);
    let replay = replay_fixture(&fixture);
    let profile = Profile::decode(&replay.encode());
    check_values(&fixture, &profile);
    let found = render(&replay, &profile);

    let path = fixture::folder(name).join("expected.txt");
    if std::env::var_os("UPDATE_EXPECT").is_some_and(|value| value == "1") {
        std::fs::write(&path, &found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("read {}: {e}; UPDATE_EXPECT=1 writes it", path.display()));
    if let Some(at) = first_difference(&expected, &found) {
        panic!(
            "{} line {}:\nexpected: {}\n   found: {}\n\
             the whole text is:\n{found}\nUPDATE_EXPECT=1 accepts it",
            path.display(),
            at + 1,
            expected.lines().nth(at).unwrap_or("(nothing)"),
            found.lines().nth(at).unwrap_or("(nothing)"),
        );
    }
}

fn first_difference(expected: &str, found: &str) -> Option<usize> {
    let lines = expected.lines().count().max(found.lines().count());
    (0..lines).find(|at| expected.lines().nth(*at) != found.lines().nth(*at))
}

fn replay_fixture(fixture: &Fixture) -> Replay {
    let mut table = ProcessTable::default();
    let process = fixture.process(&mut table.objects);
    table.insert(process);
    let settings = Settings {
        rate_hz: fixture.recorded.rate_hz,
        threads: fixture.case.threads,
        kallsyms: &fixture.kallsyms,
    };
    replay(&fixture.records, table, &settings)
}

/// What must hold of every profile and would drown in the text.
#[track_caller]
fn check_values(fixture: &Fixture, profile: &Profile) {
    assert_eq!(profile.total(), fixture.records.len() as u64, "samples");
    for sample in &profile.raw.sample {
        assert_eq!(sample.value.len(), profile.raw.sample_type.len());
        assert_eq!(sample.value[1], sample.value[0] * profile.raw.period);
    }
    for location in &profile.raw.location {
        let mapping = profile.raw.mapping.iter();
        let mut mapping = mapping.filter(|mapping| mapping.id == location.mapping_id);
        let mapping = mapping.next().expect("a location has its mapping");
        let range = mapping.memory_start..mapping.memory_limit;
        assert!(range.contains(&location.address), "{location:x?}");
    }
}

/// The profile as text: header, mappings, and stacks with the same frames
/// and labels as one, most seen first.
fn render(replay: &Replay, profile: &Profile) -> String {
    let raw = &profile.raw;
    let kind =
        |of: &proto::ValueType| format!("{} in {}", profile.text(of.r#type), profile.text(of.unit));
    let mut out = String::new();
    for value in &raw.sample_type {
        writeln!(out, "value: {}", kind(value)).unwrap();
    }
    let period = raw.period_type.as_ref().map(kind).unwrap_or_default();
    writeln!(out, "period: {} {period}", raw.period).unwrap();
    for comment in &raw.comment {
        writeln!(out, "comment: {}", profile.text(*comment)).unwrap();
    }
    for process in &replay.window.processes {
        writeln!(out, "process: {} {}", process.exe, process.go_version).unwrap();
    }
    for mapping in &raw.mapping {
        render_mapping(&mut out, profile, mapping);
    }
    for (end, count) in &replay.ends {
        writeln!(out, "stacks {}: {count}", end.describe()).unwrap();
    }
    writeln!(out, "frames named: {}", replay.naming.named).unwrap();
    for (reason, count) in &replay.naming.unnamed {
        writeln!(out, "frames unnamed, {}: {count}", reason.describe()).unwrap();
    }

    let mut stacks: BTreeMap<String, u64> = BTreeMap::new();
    for stack in &profile.stacks {
        let labels = stack
            .labels
            .iter()
            .map(|(key, value)| format!(" {key}={value}"));
        let text = format!(
            "{}\n{}",
            labels.collect::<String>(),
            render_frames(&stack.frames)
        );
        *stacks.entry(text).or_default() += stack.count;
    }
    let mut stacks: Vec<(String, u64)> = stacks.into_iter().collect();
    stacks.sort_by(|a, b| (b.1, &a.0).cmp(&(a.1, &b.0)));
    for (text, count) in stacks {
        write!(out, "\n{count}:{text}").unwrap();
    }
    out
}

fn render_mapping(out: &mut String, profile: &Profile, mapping: &proto::Mapping) {
    let flags = [
        (mapping.has_functions, "functions"),
        (mapping.has_filenames, "filenames"),
        (mapping.has_line_numbers, "line numbers"),
        (mapping.has_inline_frames, "inline frames"),
    ];
    let flags: Vec<&str> = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
    writeln!(
        out,
        "mapping: {} {:x}-{:x} at {:x}, build id {:?}, has {}",
        profile.text(mapping.filename),
        mapping.memory_start,
        mapping.memory_limit,
        mapping.file_offset,
        profile.text(mapping.build_id),
        flags.join(", "),
    )
    .unwrap();
}

/// One line a frame, leaf first; a frame that repeats is one line.
fn render_frames(frames: &[Frame]) -> String {
    let mut out = String::new();
    let mut rest = frames;
    while let Some(frame) = rest.first() {
        let line = render_frame(frame);
        let times = rest.iter().take_while(|f| render_frame(f) == line).count();
        match times {
            1 => writeln!(out, "    {line}").unwrap(),
            _ => writeln!(out, "    {line} ({times} times)").unwrap(),
        }
        rest = &rest[times..];
    }
    out
}

fn render_frame(frame: &Frame) -> String {
    let mut line = frame.function.clone();
    if frame.is_kernel() {
        line.push_str(" [kernel]");
        return line;
    }
    write!(
        line,
        " {}:{} (from {})",
        frame.file, frame.line, frame.start_line
    )
    .unwrap();
    if frame.inlined {
        line.push_str(" inlined");
    }
    line
}
