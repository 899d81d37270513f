//! Heap profiles read from outside, held against those that programs write of
//! themselves at the same moment: of every version, plain, stripped and PIE.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ::goprof::gomemory::Live;
use ::goprof::process::{Objects, Process, Selection};
use ::goprof::session::{HeapRecording, HeapSession};
use ::goprof::symbolize::{Event, Symbolizer};
use goprof_tests::go::{self, EVERY_VERSION, NEWEST, Variant};
use goprof_tests::goprof::{self, Recording};
use goprof_tests::pprof::{Profile, Stack};
use goprof_tests::talker::Talker;
use goprof_tests::target::Target;
use goprof_tests::test_each_version;

/// The values of a heap profile: allocated and in use, in objects and bytes.
type Values = [i64; 4];

/// What a profile says of each site: its frames with their lines, and the size
/// of its blocks.
fn sites(profile: &Profile) -> BTreeMap<String, Values> {
    let mut sites: BTreeMap<String, Values> = BTreeMap::new();
    for stack in &profile.stacks {
        let values = sites.entry(site(stack)).or_default();
        for (sum, value) in values.iter_mut().zip(&stack.values) {
            *sum += value;
        }
    }
    sites.retain(|_, values| *values != [0; 4]);
    sites
}

fn site(stack: &Stack) -> String {
    let frames: Vec<String> = stack
        .frames
        .iter()
        .map(|frame| format!("{}:{}", frame.function, frame.line))
        .collect();
    let size = stack.labels.get("bytes").map_or("", String::as_str);
    format!("{size} {}", frames.join(" < "))
}

/// Panics unless every value of every site of the program's own code is within 1%
/// of what the program says itself, and no site is missing or made up.
#[track_caller]
fn assert_same(ours: &Profile, own: &Profile, what: &str) {
    let of_main = |profile| {
        let mut sites = sites(profile);
        // Writing the profile allocates.
        sites.retain(|site, _| !site.contains("main.writeProfile"));
        sites
    };
    let (ours, own) = (of_main(ours), of_main(own));
    assert!(own.len() > 100, "{what}: {} sites", own.len());
    let mut wrong = Vec::new();
    for site in own.keys().chain(ours.keys()) {
        let of = |sites: &BTreeMap<String, Values>| sites.get(site).copied().unwrap_or_default();
        let (ours, own) = (of(&ours), of(&own));
        let is_close = |(a, b): (&i64, &i64)| (a - b).abs() <= b.abs() / 100 + 1;
        if !ours.iter().zip(&own).all(is_close) {
            wrong.push(format!("{site}\n  ours {ours:?}, its own {own:?}"));
        }
    }
    wrong.dedup();
    assert!(
        wrong.is_empty(),
        "{what}: {} of {} sites differ:\n{}",
        wrong.len(),
        own.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
}

/// The sum of a value over a profile.
fn sum(profile: &Profile, index: usize) -> i64 {
    profile.stacks.iter().map(|stack| stack.values[index]).sum()
}

fn assert_within(ours: i64, own: i64, share: f64, what: &str) {
    let off = (ours - own).abs() as f64 / own as f64;
    assert!(
        off <= share,
        "{what}: {ours} for {own}: {:.2}% off",
        off * 100.0
    );
}

fn record(event: &str, program: &Talker, more: &[&str]) -> Recording {
    let mut args = vec!["-e", event, "-p"];
    let pid = program.pid_arg();
    args.push(&pid);
    args.extend(more);
    goprof::record(&args)
}

/// What the program says of itself.
fn own(program: &mut Talker, name: &str, dir: &Path) -> Profile {
    let path = dir.join(format!("{name}.pb.gz"));
    program.tell(&format!("{name} {}", path.display()));
    Profile::read(&path)
}

fn check_version(version: &str) {
    for variant in [Variant::Plain, Variant::Stripped, Variant::Pie] {
        check_program(version, variant);
    }
}

fn check_program(version: &str, variant: Variant) {
    let what = format!("go{version} {variant:?}");
    let dir = tempfile::tempdir().expect("make a directory");
    // Each processor of Go's draws its first sample before the program sets the rate,
    // and the first processor before the environment is read: a megabyte of it could
    // be missing in Go's own profile, and be allocated at any time while others
    // allocate too. So there is one, and what comes first takes it over that sample.
    let mut command = Command::new(go::build_with("alloc_sites", version, variant));
    command.envs([("GODEBUG", "memprofilerate=512"), ("GOMAXPROCS", "1")]);
    let mut program = Talker::start_command(&mut command);
    for words in ["round", "round", "round", "free", "free", "settle"] {
        program.tell(words);
    }
    let stats = memstats(&mut program);
    let first = record("heap", &program, &[]).profile;
    for words in ["round", "round", "round", "round", "free", "settle"] {
        program.tell(words);
    }
    let grown = memstats(&mut program);
    let theirs = own(&mut program, "heap", dir.path());
    let ours = record("heap", &program, &[]);
    assert_same(&ours.profile, &theirs, &format!("{what}, heap"));
    for (index, stat, name) in [(1, 0, "TotalAlloc"), (3, 1, "HeapAlloc")] {
        let found = sum(&ours.profile, index) - sum(&first, index);
        let own = grown[stat] - stats[stat];
        assert_within(found, own, 0.02, &format!("{what}, {name}"));
    }
    check_types(&ours.profile, &what);
    check_allocs(&mut program, dir.path(), &what);
}

/// `TotalAlloc`, `HeapAlloc` and more of `runtime.MemStats`.
fn memstats(program: &mut Talker) -> Vec<i64> {
    let stats = program.tell("memstats");
    let numbers = stats.split(' ').map(|n| n.parse().expect("a number"));
    numbers.collect()
}

/// What is allocated while goprof records, and nothing before, against the
/// difference of two profiles of the program's own.
fn check_allocs(program: &mut Talker, dir: &Path, what: &str) {
    let before = own(program, "allocs", dir);
    let file = dir.join("ours.pb.gz");
    let pid = program.pid_arg();
    let path = file.to_str().expect("UTF-8");
    let running = goprof::start(&["record", "-e", "allocs", "-p", &pid, "-o", path]);
    wait_until_read(running.pid(), program.pid());
    program.tell("round");
    program.tell("settle");
    running.signal(libc::SIGINT);
    running.finish(Duration::from_secs(60)).succeeded();
    let after = own(program, "allocs", dir);
    let ours = Profile::read(&file);
    assert_eq!(ours.text(ours.raw.default_sample_type), "alloc_space");
    let (before, after) = (sites(&before), sites(&after));
    let mut wrong = Vec::new();
    for (site, values) in &sites(&ours) {
        if !site.contains("main.round") {
            continue;
        }
        let old = before.get(site).copied().unwrap_or_default();
        let new = after.get(site).copied().unwrap_or_default();
        for index in 0..4 {
            let own = new[index] - old[index];
            // Objects are scaled by their mean size, and that of what came since is not that
            // of all: the difference of two profiles of Go's is off by it.
            let share = if index % 2 == 0 { 25 } else { 100 };
            if (values[index] - own).abs() > own.abs() / share + 2 {
                wrong.push(format!("{site}: {values:?} for {old:?} to {new:?}"));
            }
        }
    }
    assert!(sites(&ours).len() > 50, "{what}");
    assert!(
        wrong.is_empty(),
        "{what}, allocs: {:#?}",
        &wrong[..wrong.len().min(5)]
    );
}

/// Waits until goprof has read what was there before it began: it holds the
/// program's memory open from then on.
#[track_caller]
fn wait_until_read(goprof: u32, program: u32) {
    let memory = PathBuf::from(format!("/proc/{program}/mem"));
    let folder = format!("/proc/{goprof}/fd");
    let deadline = Instant::now() + Duration::from_secs(20);
    let is_open = || {
        let links = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        links
            .filter_map(|link| std::fs::read_link(link.path()).ok())
            .any(|path| path == memory)
    };
    while !is_open() {
        assert!(
            Instant::now() < deadline,
            "goprof does not read the program"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    // Reading takes some milliseconds.
    std::thread::sleep(Duration::from_millis(500));
}

/// Sites that say what they allocate.
fn check_types(profile: &Profile, what: &str) {
    let type_in = |function: &str| {
        let of = |stack: &&Stack| stack.frames.first().is_some_and(|f| f.function == function);
        let stacks = profile.stacks.iter().filter(of);
        let types: Vec<&str> = stacks
            .filter_map(|stack| stack.labels.get("type").map(String::as_str))
            .collect();
        types
    };
    for (function, kind) in [
        ("main.allocLeaf", "main.leaf"),
        ("main.alloc16", "[2]int64"),
        ("main.newNode", "main.node"),
        ("main.allocBuffer", "[]uint8"),
        ("main.allocPointers", "[]*main.node"),
        ("main.allocAppended", "[]int32"),
        ("main.allocChannel", "chan *main.node"),
    ] {
        let types = type_in(function);
        assert!(
            types.contains(&kind),
            "{what}: {function} allocates {types:?}"
        );
    }
    let typed = profile
        .stacks
        .iter()
        .filter(|s| s.labels.contains_key("type"));
    let share = typed.count() as f64 / profile.stacks.len() as f64;
    assert!(
        share > 0.6,
        "{what}: the type is known at {:.0}% of sites",
        share * 100.0
    );
}

test_each_version! {
    check_version, EVERY_VERSION:
    go_1_19 "1.19.13",
    go_1_20 "1.20.14",
    go_1_21 "1.21.13",
    go_1_22 "1.22.10",
    go_1_23 "1.23.9",
    go_1_24 "1.24.11",
    go_1_25 "1.25.5",
    go_1_26 "1.26.6",
    go_1_27 "1.27.3",
}

/// The word at `runtime.MemProfileRate` of a program.
fn rate_of(pid: u32) -> u64 {
    let mut objects = Objects::default();
    let process = Process::read(pid, &mut objects).expect("a process");
    let memory = Live::open(pid).expect("its memory");
    let program = process.go_program(&memory).expect("Go");
    program.mem_profile_rate().expect("the rate").1
}

#[test]
fn a_program_without_a_heap_profile_is_told_and_can_have_one() {
    for version in EVERY_VERSION {
        let binary = go::build_with("alloc_unread", version, Variant::Stripped);
        let target = Target::start(&binary, &[]);
        let pid = target.pid_arg();
        let outcome = goprof::run(&["record", "-e", "heap", "-p", &pid]);
        let said = &outcome.stderr;
        assert_eq!((outcome.code(), said.lines().count()), (1, 1), "{said}");
        assert!(said.contains("linker left it out"), "{said}");
        assert!(said.contains("--enable-memprofile"), "{said}");
        assert_eq!(rate_of(target.pid()), 0);

        let args = ["-e", "allocs", "--enable-memprofile", "-d", "2", "-p", &pid];
        let recording = goprof::record(&args);
        let said = &recording.outcome.stderr;
        assert!(said.contains("wrote runtime.MemProfileRate"), "{said}");
        let share = recording.profile.stacks.iter();
        let share: i64 = share
            .filter(|stack| stack.has("main.allocate"))
            .map(|stack| stack.values[1])
            .sum();
        let all = sum(&recording.profile, 1);
        println!("go{version}: {share} of {all} bytes in main.allocate");
        assert!(all > 20_000_000 && share * 10 > all * 9, "{share} of {all}");
        assert_eq!(rate_of(target.pid()), 0, "put back");
    }
}

#[test]
fn the_rate_is_put_back_when_the_recording_is_stopped_early() {
    let binary = go::build_with("alloc_unread", NEWEST, Variant::Plain);
    let target = Target::start(&binary, &[]);
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("heap.pb.gz");
    let path = file.to_str().expect("UTF-8");
    let pid = target.pid_arg();
    let args = [
        "record",
        "-e",
        "allocs",
        "--enable-memprofile",
        "-p",
        &pid,
        "-o",
        path,
    ];
    let running = goprof::start(&args);
    let deadline = Instant::now() + Duration::from_secs(20);
    while rate_of(target.pid()) == 0 {
        assert!(Instant::now() < deadline, "the rate was never set");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(500));
    running.signal(libc::SIGTERM);
    running.finish(Duration::from_secs(60)).succeeded();
    assert_eq!(rate_of(target.pid()), 0);
    assert!(Profile::read(&file).total() > 0);
}

#[test]
fn a_rate_that_changes_is_read_as_it_is() {
    let binary = go::build_with("alloc_sites", NEWEST, Variant::Plain);
    let mut program = Talker::start(&binary, &["-rate", "4096"]);
    program.tell("round");
    program.tell("settle");
    assert_eq!(record("heap", &program, &[]).profile.raw.period, 4096);
    program.tell("rate 0");
    let pid = program.pid_arg();
    let outcome = goprof::run(&["record", "-e", "heap", "-p", &pid]);
    assert_eq!(outcome.code(), 1);
    assert!(
        outcome.stderr.contains("MemProfileRate is 0"),
        "{}",
        outcome.stderr
    );
}

/// Bytes that a recording says were allocated.
fn allocated(recording: &HeapRecording) -> i64 {
    let samples = recording.window.samples.iter();
    samples.map(|sample| sample.values[1]).sum()
}

#[test]
fn what_was_not_read_or_kept_before_is_not_taken_for_new() {
    let mut command = Command::new(go::build("alloc_sites"));
    command.env("GODEBUG", "memprofilerate=512");
    let mut program = Talker::start_command(&mut command);
    program.tell("round");
    program.tell("settle");
    let pid = program.pid();
    let mut symbolizer = Symbolizer::default();
    let mut windows = |max_kept_bytes, wanted: [bool; 2], program: &mut Talker| {
        let is_it = |process: &Process| process.pid == pid;
        let mut session =
            HeapSession::start_where(Event::Allocs, max_kept_bytes, |p| is_it(p) && wanted[0]);
        program.tell("round");
        let first = session.rotate(&mut symbolizer, |p| is_it(p) && wanted[1]);
        program.tell("round");
        let second = session.rotate(&mut symbolizer, is_it);
        program.tell("round");
        let before = memstats(program)[0];
        program.tell("round");
        let round = memstats(program)[0] - before;
        let third = session.rotate(&mut symbolizer, is_it);
        ([first, second, third], round)
    };

    // Read from the start on: a round, one, and two.
    let (read, round) = windows(usize::MAX, [true, true], &mut program);
    let rounds = read
        .each_ref()
        .map(|window| allocated(window) as f64 / round as f64);
    assert!(
        rounds
            .iter()
            .zip([1.0, 1.0, 2.0])
            .all(|(is, be)| (is - be).abs() < 0.3),
        "{rounds:?}"
    );

    // Wanted only since the second: what it has by then is not of that window.
    let (late, round) = windows(usize::MAX, [false, false], &mut program);
    assert_eq!(late.each_ref().map(|window| window.late), [0, 1, 0]);
    assert_eq!(late.each_ref().map(|window| window.read.len()), [0, 0, 1]);
    let rounds = late
        .each_ref()
        .map(|window| allocated(window) as f64 / round as f64);
    assert!(
        rounds
            .iter()
            .zip([0.0, 0.0, 2.0])
            .all(|(is, be)| (is - be).abs() < 0.3),
        "{rounds:?}"
    );

    // No room to keep it: it is never known what is new.
    let (not_kept, _) = windows(1000, [true, true], &mut program);
    assert_eq!(not_kept.each_ref().map(|window| window.not_kept), [1; 3]);
    assert_eq!(not_kept.each_ref().map(allocated), [0; 3]);
    assert!(
        not_kept[0]
            .notes()
            .iter()
            .any(|note| note.contains("no room"))
    );
    let session = HeapSession::start_within(Event::Allocs, Selection::Pids(vec![pid]), 1000);
    let once = session.finish(&mut symbolizer);
    assert_eq!(
        (once.not_kept, once.read.len(), allocated(&once)),
        (1, 0, 0)
    );
}

#[test]
fn doctor_says_whether_there_is_a_heap_profile() {
    let line_of = |pid: &str| {
        let said = goprof::run(&["doctor", "-p", pid]);
        let mut lines = said.text().lines();
        let line = lines.find(|line| line.contains("heap profile"));
        line.expect("a line about it").to_owned()
    };
    let unread = Target::start(&go::build("alloc_unread"), &[]);
    let line = line_of(&unread.pid_arg());
    assert!(line.contains("linker left it out"), "{line}");
    let read = Talker::start(&go::build("alloc_sites"), &["-rate", "0"]);
    let line = line_of(&read.pid_arg());
    assert!(line.contains("on: samples once in 524288 bytes"), "{line}");
}
