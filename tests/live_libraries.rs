//! Go code that is not the program: plugins of Go programs, and Go libraries
//! that C programs link with or load, before or while goprof looks.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use goprof_tests::command;
use goprof_tests::go::{self, NEWEST, marked_line, source_dir};
use goprof_tests::goprof::{self, Recording};
use goprof_tests::pprof::{Profile, Stack};
use goprof_tests::target::Target;
use goprof_tests::{cache_dir, quiet};

/// Long enough for a build on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
const STRIP: &str = "-ldflags=-s -w";

/// Builds a program of `tests/go/` with cgo, by the flags of `go build`.
fn build(program: &str, version: &str, flags: &[&str], file: &Path) {
    let mut go = go::go(version);
    go.arg("build").args(flags).arg("-o").arg(file);
    go.arg(format!("./{program}")).env("CGO_ENABLED", "1");
    command::run(go.current_dir(source_dir("")), LIMIT, go::REMEDY).succeeded();
}

/// A directory for what a test builds; Go's own cache makes the second time
/// quick.
fn build_dir(name: &str) -> PathBuf {
    let dir = cache_dir().join(name);
    std::fs::create_dir_all(&dir).expect("make a directory to build in");
    dir
}

fn label<'s>(stack: &'s Stack, key: &str) -> Option<&'s str> {
    stack.labels.get(key).map(String::as_str)
}

/// All that goprof said, where a message needs it.
fn said(recording: &Recording) -> String {
    let top = recording.profile.top(20);
    format!("{}\n{top}", recording.outcome.stderr)
}

/// A host and its plugin.
fn build_plugin(version: &str, strip: &[&str]) -> (PathBuf, PathBuf) {
    let _turn = quiet::building();
    let dir = build_dir(&format!("plugin-go{version}-{}", strip.len()));
    let (host, code) = (dir.join("plugin_host"), dir.join("plugin_code.so"));
    build("plugin_host", version, strip, &host);
    let flags = [&["-buildmode=plugin"], strip].concat();
    build("plugin_code", version, &flags, &code);
    (host, code)
}

/// The plugin's functions are named, with their lines and the inlined one, and
/// the stack goes on into the host.
fn check_plugin(recording: &Recording) {
    let profile = &recording.profile;
    assert!(profile.total() >= 150, "{}", said(recording));
    let (mix, burn) = (
        marked_line("plugin_code", "mix"),
        marked_line("plugin_code", "burn"),
    );
    let is_whole = |stack: &Stack| {
        let frames = &stack.frames;
        let at = frames
            .iter()
            .position(|f| f.function.ends_with("plugin_code.burn"));
        let Some(at) = at else { return false };
        let names = &stack.names()[at + 1..];
        let caller = &frames[at + 1];
        names.len() == 4
            && names[0].ends_with("plugin_code.Work")
            && names[1..] == ["main.usePlugin", "main.main", "runtime.main"]
            && caller.line == burn
            && caller.file.ends_with("plugin_code/main.go")
            && label(stack, "goid") == Some("1")
    };
    let whole = profile.share(is_whole);
    assert!(whole > 0.95, "{whole} of stacks\n{}", said(recording));
    let inlined = profile.share(|stack| {
        let leaf = &stack.frames[0];
        leaf.function.ends_with("plugin_code.mix") && leaf.inlined
    });
    assert!(inlined > 0.01, "{inlined} inlined\n{}", said(recording));
    let at_mix = |stack: &Stack| {
        let physical = stack.frames.iter().find(|frame| !frame.inlined);
        physical.is_some_and(|frame| (mix - 1..=mix).contains(&frame.line))
    };
    assert!(profile.share(at_mix) > 0.9, "{}", said(recording));
}

#[test]
fn a_plugins_code_is_named_and_walked() {
    for version in ["1.21.13", "1.24.11", "1.26.6", NEWEST] {
        for strip in [&[][..], &[STRIP]] {
            let (host, code) = build_plugin(version, strip);
            let _turn = quiet::measuring();
            let path = code.to_str().expect("UTF-8");
            let target = Target::start(&host, &["-plugin", path]);
            let args = ["-p", &target.pid_arg(), "-d", "2", "-r", "499"];
            println!("go{version} {strip:?}");
            check_plugin(&goprof::record(&args));
        }
    }
}

#[test]
fn a_plugin_opened_during_the_recording_is_named() {
    let (host, code) = build_plugin(NEWEST, &[]);
    let _turn = quiet::measuring();
    let path = code.to_str().expect("UTF-8");
    let target = Target::start(&host, &["-plugin", path, "-after", "1s"]);
    let args = ["-p", &target.pid_arg(), "-d", "4", "-r", "499"];
    let recording = goprof::record(&args);
    // Opening it takes a while too.
    let open = recording.profile.cumulative_share("plugin.Open");
    assert!(open < 0.3, "{}", said(&recording));
    let burn = |s: &Stack| s.frames.iter().any(|f| f.function.ends_with("code.burn"));
    let burning = recording.profile.share(burn);
    assert!(burning + open > 0.95, "{burning}\n{}", said(&recording));
}

/// How Go code comes into a C program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Linked {
    /// Its library is loaded after the start.
    Loaded,
    /// Its library is loaded by the dynamic linker.
    Shared,
    /// It is in the program.
    Archive,
}

/// A C program called `name`, and the library that it is to load.
fn build_host(version: &str, linked: Linked, name: &str) -> (PathBuf, Option<PathBuf>) {
    let _turn = quiet::building();
    let dir = build_dir(&format!("go_library-go{version}-{linked:?}"));
    let (mode, library) = match linked {
        Linked::Archive => ("-buildmode=c-archive", dir.join("libgo_library.a")),
        _ => ("-buildmode=c-shared", dir.join("libgo_library.so")),
    };
    build("go_library", version, &[mode, STRIP], &library);
    let host = dir.join(name);
    let mut cc = Command::new("cc");
    cc.arg("-O1").arg("-o").arg(&host);
    cc.arg(source_dir("go_library/host/host.c"));
    match linked {
        Linked::Loaded => cc.arg("-ldl"),
        // Whole: the program's references to it are weak.
        _ => cc
            .arg("-Wl,--no-as-needed,--whole-archive")
            .arg(&library)
            .args(["-Wl,--no-whole-archive", "-ldl", "-lpthread"])
            .arg(format!("-Wl,-rpath,{}", dir.display())),
    };
    command::run(&mut cc, LIMIT, "install gcc").succeeded();
    (host, (linked == Linked::Loaded).then_some(library))
}

/// The command that starts a host; it loads its library after `delay_ms`.
fn host_command(host: &Path, library: Option<&Path>, delay_ms: u32) -> Command {
    let mut command = Command::new(host);
    command.arg(delay_ms.to_string()).args(library);
    command
}

/// The Go code of the process `pid` is there, called from C and in a goroutine
/// of its own, each under its goroutine's id.
#[track_caller]
fn check_library(recording: &Recording, pid: u32) {
    let pid = pid.to_string();
    let ours = |stack: &Stack| label(stack, "pid").is_none_or(|p| p == pid);
    let profile = &recording.profile;
    let all = profile.share(ours);
    let called = |stack: &Stack| ours(stack) && stack.has("main.GoWork");
    let background = |stack: &Stack| ours(stack) && stack.has("main.inBackground");
    for (what, has) in [
        ("called from C", &called as &dyn Fn(&Stack) -> bool),
        ("in the background", &background),
    ] {
        // Each loop has half of the process's time, less what came before.
        let share = profile.share(has);
        assert!(
            share > 0.2 * all,
            "{what}: {share} of {all}\n{}",
            said(recording)
        );
        let with_id = profile.share(|stack| has(stack) && label(stack, "goid").is_some());
        assert!(with_id > 0.95 * share, "{what}: {with_id} of {share}");
    }
    let mut ids: [Vec<&str>; 2] = [Vec::new(), Vec::new()];
    for stack in &profile.stacks {
        let Some(id) = label(stack, "goid") else {
            continue;
        };
        if called(stack) {
            ids[0].push(id);
        } else if background(stack) {
            ids[1].push(id);
        }
    }
    assert!(ids[0].iter().all(|id| !ids[1].contains(id)), "{ids:?}");
}

/// Records everything while `start` starts a host, for seven seconds.
fn record_while(args: &[&str], start: impl FnOnce() -> Target) -> (Recording, Target) {
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("cpu.pb.gz");
    let output = file.to_str().expect("UTF-8");
    let args = [&["record", "-d", "7", "-r", "499", "-o", output], args].concat();
    let running = goprof::start(&args);
    // It says nothing without a terminal; its programs are loaded in less.
    std::thread::sleep(Duration::from_secs(3));
    let target = start();
    let outcome = running.finish(LIMIT).succeeded();
    let profile = Profile::read(&file);
    (Recording::new(outcome, profile, file, dir), target)
}

const ALL_LINKED: [Linked; 3] = [Linked::Loaded, Linked::Shared, Linked::Archive];

#[test]
fn a_c_program_with_go_in_it_is_a_go_process() {
    for linked in ALL_LINKED {
        let (host, library) = build_host(NEWEST, linked, "go_in_c");
        let _turn = quiet::measuring();
        let target = Target::start_command(&mut host_command(&host, library.as_deref(), 0));
        std::thread::sleep(Duration::from_millis(300));
        let pid = target.pid_arg();
        for who in [&["-p", &pid][..], &["-a"], &["-n", "^go_in_c$"]] {
            println!("{linked:?} {who:?}");
            let args = [who, &["-d", "2", "-r", "499"]].concat();
            check_library(&goprof::record(&args), target.pid());
        }
    }
}

#[test]
fn a_c_program_that_begins_during_the_recording_is_found() {
    for linked in ALL_LINKED {
        let (host, library) = build_host(NEWEST, linked, "go_in_c");
        let _turn = quiet::measuring();
        println!("{linked:?}");
        let start = || Target::start_command(&mut host_command(&host, library.as_deref(), 0));
        let (recording, target) = record_while(&["-n", "^go_in_c$"], start);
        check_library(&recording, target.pid());
    }
}

#[test]
fn a_library_loaded_long_after_the_start_is_found() {
    for version in ["1.21.13", "1.24.11", NEWEST] {
        let (host, library) = build_host(version, Linked::Loaded, "late_go_in_c");
        let _turn = quiet::measuring();
        // It runs before goprof does, and loads its library while that runs.
        let command = &mut host_command(&host, library.as_deref(), 4500);
        let target = Target::start_command(command);
        let (recording, target) = record_while(&["-a"], || target);
        println!("go{version}");
        check_library(&recording, target.pid());
    }
}

#[test]
fn a_c_program_as_the_command_is_found() {
    let (host, library) = build_host(NEWEST, Linked::Loaded, "go_in_c");
    let _turn = quiet::measuring();
    let library = library.expect("a library to load");
    let words = [host.to_str(), Some("100"), library.to_str()].map(|w| w.expect("UTF-8"));
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("cpu.pb.gz");
    let output = file.to_str().expect("UTF-8");
    let args = ["record", "-d", "3", "-r", "499", "-o", output, "--"];
    let running = goprof::start(&[&args[..], &words].concat());
    std::thread::sleep(Duration::from_millis(4500));
    // It waits for its command, which works for ever.
    let child = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.pid()));
    let child = child.expect("goprof waits for its command");
    let child: i32 = child.trim().parse().expect("one child");
    command::send_signal(child as u32, libc::SIGTERM);
    let outcome = running.finish(LIMIT);
    assert_eq!(outcome.code(), 128 + libc::SIGTERM, "{}", outcome.stderr);
    let profile = Profile::read(&file);
    check_library(&Recording::new(outcome, profile, file, dir), child as u32);
}

/// The library of another version, so that nothing of it is shared.
const OTHER: &str = "1.23.9";

/// Of the stacks in one library's code: their share, and that of those among
/// them with a goroutine's id.
fn shares_in(profile: &Profile, library: &str, function: &str) -> (f64, f64) {
    let has = |stack: &Stack| {
        let mut frames = stack.frames.iter();
        frames.any(|f| f.function == function && f.mapping == library)
    };
    let all = profile.share(has);
    let known = profile.share(|stack| has(stack) && label(stack, "goid").is_some());
    (all, known / all)
}

/// Both libraries' stacks have names; the ids are those of one runtime's
/// goroutines, and a line says which.
#[track_caller]
fn check_two_runtimes(recording: &Recording, libraries: [&str; 2]) {
    let lines = recording.outcome.stderr.lines();
    let said_so: Vec<&str> = lines
        .filter(|line| line.contains("goroutine ids and labels"))
        .collect();
    let expected = |own: &str, other: &str| {
        format!("goroutine ids and labels of {own} alone: {other} has a Go runtime of its own")
    };
    let [a, b] = libraries;
    let (own, other) = match said_so[..] {
        [line] if line.ends_with(&expected(a, b)) => (a, b),
        [line] if line.ends_with(&expected(b, a)) => (b, a),
        _ => panic!("{}", said(recording)),
    };
    for function in ["main.GoWork", "main.inBackground"] {
        let (all, known) = shares_in(&recording.profile, own, function);
        assert!(all > 0.1 && known > 0.95, "{own} {function}: {all} {known}");
        let (all, known) = shares_in(&recording.profile, other, function);
        assert!(
            all > 0.1 && known == 0.0,
            "{other} {function}: {all} {known}"
        );
    }
}

#[test]
fn of_two_runtimes_one_has_ids_and_a_line_says_which() {
    let (host, first) = build_host(NEWEST, Linked::Loaded, "two_go_in_c");
    let (_, second) = build_host(OTHER, Linked::Loaded, "two_go_in_c");
    let libraries = [first, second].map(|library| library.expect("a library to load"));
    let paths = [0, 1].map(|index: usize| libraries[index].to_str().expect("UTF-8"));
    let _turn = quiet::measuring();
    // Both are there when goprof begins, or the second comes while it runs.
    for delay_ms in [0, 1500] {
        let mut command = Command::new(&host);
        command.arg(delay_ms.to_string()).args(paths);
        let target = Target::start_command(&mut command);
        std::thread::sleep(Duration::from_millis(delay_ms + 300));
        let args = ["-p", &target.pid_arg(), "-d", "6", "-r", "499"];
        println!("the second {delay_ms} ms after the first");
        check_two_runtimes(&goprof::record(&args), paths);
    }
}
