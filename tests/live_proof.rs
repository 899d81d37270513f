//! A layout of Go's runtime is used only where the process has it: versions that
//! lie, and versions that goprof does not know.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ::goprof::process::{NoLayout, Objects, Process};
use goprof_tests::go::{self, VERSIONS, Variant};
use goprof_tests::goprof::{self, Recording};
use goprof_tests::pprof::Stack;
use goprof_tests::quiet;
use goprof_tests::target::Target;

/// A copy of a program that says it was built with another version.
struct Disguised {
    file: PathBuf,
    #[expect(dead_code, reason = "dropping it removes the file")]
    dir: tempfile::TempDir,
}

fn disguise(program: &str, version: &str, variant: Variant, other: &str) -> Disguised {
    let own = format!("go{version}");
    assert_eq!(own.len(), other.len(), "the text is replaced in place");
    let mut bytes = std::fs::read(go::build_with(program, version, variant)).expect("a program");
    let magic = b"\xff Go buildinf:";
    let header = bytes.windows(magic.len()).position(|w| w == magic);
    // The header has 32 bytes, then comes the length of the version's text.
    let at = header.expect("build info") + 33;
    assert_eq!(&bytes[at..at + own.len()], own.as_bytes());
    bytes[at..at + own.len()].copy_from_slice(other.as_bytes());
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join(program);
    std::fs::write(&file, bytes).expect("write the program");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&file, mode).expect("make it executable");
    Disguised { file, dir }
}

/// The same of one whose DWARF has no such name any more.
fn disguise_lacking(name: &str, program: &str, version: &str, other: &str) -> Disguised {
    let disguised = disguise(program, version, Variant::Plain, other);
    let mut unpack = Command::new("objcopy");
    unpack.arg("--decompress-debug-sections");
    let unpacked = unpack.arg(&disguised.file).status();
    assert!(unpacked.expect("run objcopy, of binutils").success());
    let mut bytes = std::fs::read(&disguised.file).expect("a program");
    let name = [name.as_bytes(), b"\0"].concat();
    let places = bytes.windows(name.len()).enumerate();
    let places: Vec<usize> = places
        .filter(|(_, window)| *window == name)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty(), "its DWARF has the name");
    for at in places {
        bytes[at] = b'_';
    }
    std::fs::write(&disguised.file, bytes).expect("write the program");
    disguised
}

fn record(file: &Path) -> Recording {
    let _turn = quiet::measuring();
    let target = Target::start(file, &[]);
    goprof::record(&["-p", &target.pid_arg(), "-d", "2", "-r", "499"])
}

/// The share of samples with a goroutine's id, and of those in `main.burn` with
/// all of their callers.
fn shares(recording: &Recording) -> (f64, f64) {
    let profile = &recording.profile;
    assert!(profile.total() > 150, "{}", recording.outcome.stderr);
    let named = profile.share(|s| s.labels.contains_key("goid"));
    (named, profile.cumulative_share("main.burn"))
}

/// The one line that says what is off.
fn off_lines(recording: &Recording) -> Vec<&str> {
    let lines = recording.outcome.stderr.lines();
    lines
        .filter(|line| line.contains("no goroutine ids and labels"))
        .collect()
}

#[test]
fn a_version_that_lies_gives_plain_stacks_and_one_line() {
    // The structs of g moved between these, the function table did not.
    for (version, variant, other) in [
        ("1.23.9", Variant::Plain, "go1.22.9"),
        ("1.23.9", Variant::StrippedPie, "go1.22.9"),
        ("1.22.10", Variant::Stripped, "go1.23.10"),
    ] {
        let disguised = disguise("labels", version, variant, other);
        let recording = record(&disguised.file);
        let (with_id, burning) = shares(&recording);
        assert_eq!(with_id, 0.0, "{other}");
        assert!(burning > 0.9, "{other}\n{}", recording.profile.top(20));
        let off = off_lines(&recording);
        assert_eq!(off.len(), 1, "{}", recording.outcome.stderr);
        assert!(
            off[0].contains("not laid out as its version says"),
            "{}",
            off[0]
        );
        for stack in &recording.profile.stacks {
            assert!(!stack.labels.contains_key("path"), "{:?}", stack.labels);
        }
    }
}

#[test]
fn labels_of_another_form_than_the_versions_are_not_read() {
    // Between these two nothing changed but the form of labels.
    for (version, variant, other) in [
        ("1.24.11", Variant::Plain, "go1.23.11"),
        ("1.24.11", Variant::StrippedPie, "go1.23.11"),
        ("1.23.9", Variant::Plain, "go1.24.9"),
        ("1.23.9", Variant::StrippedPie, "go1.24.9"),
    ] {
        let disguised = disguise("labels", version, variant, other);
        let recording = record(&disguised.file);
        let (with_id, burning) = shares(&recording);
        assert!(with_id == 0.0 && burning > 0.9, "{other}");
        let off = off_lines(&recording);
        assert_eq!(off.len(), 1, "{}", recording.outcome.stderr);
        assert!(
            off[0].contains("its labels have another form"),
            "{}",
            off[0]
        );
        let labelled = |stack: &Stack| stack.labels.keys().any(|key| key != "pid");
        assert_eq!(recording.profile.share(labelled), 0.0, "{other}");
    }
}

/// The type by which the form of labels is known may be missing: another name
/// is as good as none.
#[test]
fn labels_of_another_form_show_in_memory_too() {
    for (version, other) in [("1.24.11", "go1.23.11"), ("1.23.9", "go1.24.9")] {
        let disguised = disguise("labels", version, Variant::Stripped, other);
        let mut bytes = std::fs::read(&disguised.file).expect("the program");
        let name = b"*pprof.labelMap";
        let at = bytes.windows(name.len()).position(|w| w == name);
        bytes[at.expect("the type's name") + 1] = b'q';
        std::fs::write(&disguised.file, bytes).expect("write the program");

        let _turn = quiet::measuring();
        let target = Target::start(&disguised.file, &[]);
        let mut objects = Objects::default();
        let process = Process::read(target.pid(), &mut objects).expect("a process");
        let own = process.go_object().and_then(|object| object.go());
        assert_eq!(own.expect("Go").label_format(), None);
        let mut told = 0;
        for _ in 0..1000 {
            if let Err(NoLayout::Unknown(why)) = process.go_layout() {
                told += u64::from(why.contains("its labels have another form"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // Often no goroutine has labels, or is between two.
        assert!(told > 0, "go{version} as {other}: never in 1,000 looks");
    }
}

#[test]
fn samples_taken_at_a_liars_word_are_lost_and_counted() {
    // Started by goprof: the first samples come before there is a goroutine to
    // hold the layout against.
    let disguised = disguise("goroutines", "1.23.9", Variant::Plain, "go1.22.9");
    let _turn = quiet::measuring();
    let program = disguised.file.to_str().expect("UTF-8");
    let args = ["-r", "999", "--", program, "-duration", "2s"];
    let recording = goprof::record(&args);
    let (with_id, burning) = shares(&recording);
    assert_eq!(with_id, 0.0, "{}", recording.outcome.stderr);
    assert!(burning > 0.9, "{}", recording.profile.top(20));
    assert_eq!(off_lines(&recording).len(), 1);
}

#[test]
fn a_newer_version_is_read_by_its_own_dwarf_or_plainly() {
    let whole = disguise("labels", "1.27.3", Variant::Plain, "go1.99.0");
    let recording = record(&whole.file);
    let (with_id, burning) = shares(&recording);
    assert!(
        with_id > 0.9 && burning > 0.9,
        "{}",
        recording.outcome.stderr
    );
    let labelled = recording.profile.share(|s| s.labels.contains_key("path"));
    assert!(labelled > 0.9, "{labelled}");
    assert_eq!(off_lines(&recording).len(), 0);

    let blind = disguise("labels", "1.27.3", Variant::Stripped, "go1.99.0");
    let recording = record(&blind.file);
    let (with_id, burning) = shares(&recording);
    assert!(
        with_id == 0.0 && burning > 0.9,
        "{}",
        recording.outcome.stderr
    );
    let off = off_lines(&recording);
    assert_eq!(off.len(), 1, "{}", recording.outcome.stderr);
    assert!(
        off[0].contains("go1.99.0") && off[0].contains("no DWARF"),
        "{}",
        off[0]
    );
}

/// What samples do without, CPU profiles have ids and labels without.
#[test]
fn a_field_that_only_lists_need_is_missed_by_lists_alone() {
    for (name, missing) in [
        ("waitsince", "no field waitsince in runtime.g"),
        ("waitlink", "no field waitlink in runtime.sudog"),
    ] {
        let lacking = disguise_lacking(name, "labels", "1.27.3", "go1.99.0");
        let recording = record(&lacking.file);
        let (with_id, burning) = shares(&recording);
        assert!(
            with_id > 0.9 && burning > 0.9,
            "{name}: {with_id} {burning}"
        );
        let labelled = recording.profile.share(|s| s.labels.contains_key("path"));
        assert!(labelled > 0.9, "{name}: {labelled}");
        assert_eq!(off_lines(&recording).len(), 0, "{name}");

        let target = Target::start(&lacking.file, &[]);
        let pid = target.pid_arg();
        for args in [
            &["goroutines"][..],
            &["leaks"],
            &["record", "-e", "goroutine"],
            &["record", "-e", "wall", "-d", "1"],
            &["record", "-e", "block", "-d", "1"],
        ] {
            let args = [args, &["-p", &pid]].concat();
            let outcome = goprof::run(&args);
            let said = &outcome.stderr;
            assert_eq!(outcome.code(), 1, "{name} {args:?}: {said}");
            let lines = said.lines().filter(|line| line.contains(missing));
            assert_eq!(lines.count(), 1, "{name} {args:?}: {said}");
            assert!(said.contains("go1.99.0"), "{name} {args:?}: {said}");
        }
        let stats = goprof::run(&["stats", "-p", &pid]);
        assert_eq!(stats.code(), 0, "{}", stats.stderr);
        assert!(stats.text().contains(missing), "{}", stats.text());
    }
}

/// Asks for the layout of a program again and again while it works, as fast as
/// that goes: what is read at a bad moment must not disprove it.
#[test]
fn a_busy_program_is_proven_every_time() {
    let mut slowest = Duration::ZERO;
    for version in VERSIONS {
        for program in ["goroutines", "stack_growth", "shop"] {
            let binary = go::build_with(program, version, Variant::StrippedPie);
            let _turn = quiet::measuring();
            let target = Target::start(&binary, &[]);
            let mut objects = Objects::default();
            let process = Process::read(target.pid(), &mut objects).expect("a process");
            for round in 0..300 {
                let before = Instant::now();
                let layout = process.go_layout();
                if round > 0 {
                    slowest = slowest.max(before.elapsed());
                }
                let proven = layout.as_ref().is_ok_and(|layout| layout.is_proven);
                assert!(proven, "go{version} {program}, round {round}: {layout:?}");
            }
        }
    }
    println!("the slowest proof took {slowest:?}");
}
