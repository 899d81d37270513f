//! `goprof goroutines --core`: what it lists of cores is held against what the program
//! was before, and against what delve lists of them.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use goprof_tests::go::{self, NEWEST, Variant};
use goprof_tests::goprof;
use goprof_tests::listing::{Listed, list, list_of};
use goprof_tests::talker::Talker;
use serde_json::Value;

/// Has the kernel write cores into the folder of who crashes, until it is dropped.
struct CorePattern(Option<String>);

const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

impl CorePattern {
    fn plain() -> Self {
        let before = fs::read_to_string(CORE_PATTERN).expect("read the pattern of cores");
        if before.trim() == "core" {
            return Self(None);
        }
        fs::write(CORE_PATTERN, "core").expect("say where cores go: this takes root");
        Self(Some(before))
    }
}

impl Drop for CorePattern {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = fs::write(CORE_PATTERN, before.trim());
        }
    }
}

/// The one file in a folder whose name begins so.
fn only_file(folder: &Path, begins: &str) -> String {
    let entries = fs::read_dir(folder).expect("list the folder");
    let paths = entries.map(|entry| entry.expect("a file").path());
    let is_it = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(begins))
    };
    let found: Vec<PathBuf> = paths.filter(is_it).collect();
    assert_eq!(found.len(), 1, "{begins}: {found:?}");
    found[0].to_str().expect("UTF-8").to_owned()
}

/// Holds a core's list against that of the program when it ran. A thread that was
/// in a system call has frames of it that the runtime does not know while it runs.
fn is_as_before(core: &BTreeMap<u64, Listed>, before: &BTreeMap<u64, Listed>, what: &str) {
    let ids = |list: &BTreeMap<u64, Listed>| list.keys().copied().collect::<Vec<_>>();
    assert_eq!(ids(core), ids(before), "{what}");
    for (id, before) in before.iter().filter(|(id, _)| **id != 1) {
        let mut core = core[id].clone();
        let what = format!("{what}: goroutine {id}: {core:?}");
        assert!(core.functions.ends_with(&before.functions), "{what}");
        let more = core.functions.len() - before.functions.len();
        assert!(more == 0 || before.state == "syscall", "{what}");
        core.functions = before.functions.clone();
        assert_eq!(&core, before, "{what}");
    }
}

/// Starts a program that leaves a core in the folder when it crashes.
fn start_in(folder: &Path, program: &Path) -> Talker {
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -c unlimited; exec \"$0\" \"$@\""])
        .arg(program)
        .env("GOTRACEBACK", "crash")
        .stderr(Stdio::null())
        .current_dir(folder);
    Talker::start_command(&mut command)
}

fn cores_are_as_the_program_was(version: &str, variant: Variant) {
    let built = go::build_with("parked", version, variant);
    let folder = tempfile::tempdir().expect("make a folder");
    let program = folder.path().join("program");
    fs::copy(&built, &program).expect("copy the program");
    let mut talker = start_in(folder.path(), &program);
    talker.tell("collect");
    let (before, _) = list(&talker, &[]);
    let what = format!("go{version} {variant:?}");

    let output = folder.path().join("taken");
    let gcore = Command::new("gcore")
        .arg("-o")
        .arg(&output)
        .arg(talker.pid_arg())
        .output()
        .expect("gcore is missing: install gdb");
    assert!(gcore.status.success(), "{gcore:?}");
    let taken = only_file(folder.path(), "taken.");
    let (core, all) = list_of(&["--core", &taken]);
    is_as_before(&core, &before, &format!("{what} gcore"));
    assert!(
        core[&1].functions.contains(&"main.main".to_owned()),
        "{what}: {core:?}"
    );
    assert_eq!(all["crash"], Value::Null, "{what}");

    let _pattern = CorePattern::plain();
    let ended = talker.end("crash");
    assert!(ended.core_dumped(), "{what}: {ended}");
    let crashed = only_file(folder.path(), "core");
    // Where it was is nothing now.
    fs::remove_file(&program).expect("remove the program");
    let gone = goprof::run(&["goroutines", "--core", &crashed]);
    assert_eq!(gone.code(), 1, "{what}");
    assert!(gone.stderr.contains("--exe"), "{what}: {}", gone.stderr);
    let (core, all) = list_of(&["--core", &crashed, "--exe", built.to_str().expect("UTF-8")]);
    is_as_before(&core, &before, &format!("{what} kernel"));
    assert_eq!(all["crash"]["signal_name"], "SIGABRT", "{what}");
    assert_eq!(all["crash"]["goroutine"], 1, "{what}");
    assert_eq!(all["groups"][0]["goroutines"][0]["id"], 1, "{what}");
    let functions = &core[&1].functions;
    for function in ["runtime.sigpanic", "main.crash", "main.main"] {
        assert!(
            functions.iter().any(|f| f == function),
            "{what}: {functions:?}"
        );
    }
    // Half of it may do or not, but says so.
    let file = fs::File::options()
        .write(true)
        .open(&crashed)
        .expect("open the core");
    let len = file.metadata().expect("its size").len();
    file.set_len(len / 2).expect("cut the core");
    let exe = built.to_str().expect("UTF-8");
    let half = goprof::run(&["goroutines", "--core", &crashed, "--exe", exe]);
    match half.code() {
        0 => assert!(half.text().contains("cut off"), "{what}: {}", half.text()),
        code => assert!(
            code == 1 && half.stderr.lines().count() == 1,
            "{what}: {}",
            half.stderr
        ),
    }
    let other = goprof::run(&["goroutines", "--core", &crashed, "--exe", "/bin/sh"]);
    assert_eq!(other.code(), 1, "{what}");
}

#[test]
fn cores_are_as_the_programs_were() {
    cores_are_as_the_program_was("1.21.13", Variant::Plain);
    cores_are_as_the_program_was("1.26.6", Variant::StrippedPie);
    cores_are_as_the_program_was(NEWEST, Variant::Stripped);
}

/// A goroutine, as delve lists it: where in the program's own code it is, and what it
/// waits for.
#[derive(Debug)]
struct Delves {
    function: String,
    reason: Option<String>,
    is_chosen: bool,
}

/// What delve lists of a core.
fn delves_list(program: &Path, core: &str) -> BTreeMap<u64, Delves> {
    let folder = tempfile::tempdir().expect("make a folder");
    let commands = folder.path().join("commands");
    fs::write(&commands, "goroutines\nexit\n").expect("write commands");
    let listed = Command::new(go::tool("github.com/go-delve/delve/cmd/dlv"))
        .arg("core")
        .args([program, Path::new(core)])
        .args([
            "--check-go-version=false",
            "--allow-non-terminal-interactive=true",
        ])
        .arg("--init")
        .arg(&commands)
        .stdin(Stdio::null())
        .output()
        .expect("run delve");
    let text = String::from_utf8_lossy(&listed.stdout);
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let (mark, rest) = line.split_at(line.len().min(2));
        let Some((id, rest)) = rest
            .strip_prefix("Goroutine ")
            .and_then(|r| r.split_once(" - "))
        else {
            continue;
        };
        // `User: FILE:LINE FUNCTION (0xPC) [REASON]`, without the reason of one that runs.
        let mut words = rest.split_once(": ").expect("a place").1.split(' ');
        let function = words.nth(1).expect("a function").to_owned();
        let reason = rest.split_once(" [").map(|(_, reason)| reason);
        let reason = reason.and_then(|reason| reason.strip_suffix(']'));
        let goroutine = Delves {
            function,
            reason: reason.map(str::to_owned),
            is_chosen: mark.starts_with('*'),
        };
        all.insert(id.parse().expect("an id"), goroutine);
    }
    assert!(!all.is_empty(), "delve says: {text}");
    all
}

fn delve_lists_the_same(version: &str) {
    let program = go::build_with("parked", version, Variant::Plain);
    let folder = tempfile::tempdir().expect("make a folder");
    let mut talker = start_in(folder.path(), &program);
    talker.tell("many 980");
    let ended = {
        let _pattern = CorePattern::plain();
        talker.end("crash")
    };
    assert!(ended.core_dumped(), "{version}: {ended}");
    let core = only_file(folder.path(), "core");
    let theirs = delves_list(&program, &core);
    let (ours, all) = list_of(&["--core", &core, "--system"]);
    assert!(theirs.len() > 1000, "{version}: {}", theirs.len());
    assert!(ours.keys().eq(theirs.keys()), "{version}: other ids");
    for (id, theirs) in &theirs {
        let ours = &ours[id];
        let what = format!("{version}: goroutine {id}: {ours:?}, delve has {theirs:?}");
        assert!(ours.functions.contains(&theirs.function), "{what}");
        if let Some(reason) = &theirs.reason {
            assert_eq!(&ours.state, reason, "{what}");
        }
        // The one that ended it is the one that delve goes to, and is our first.
        assert_eq!(theirs.is_chosen, all["crash"]["goroutine"] == *id, "{what}");
    }
    let first = &all["groups"][0]["goroutines"][0]["id"];
    assert_eq!(first, &all["crash"]["goroutine"], "{version}");
    assert_eq!(all["crash"]["signal_name"], "SIGABRT", "{version}");
}

#[test]
fn delve_lists_the_same_of_a_core() {
    delve_lists_the_same("1.21.13");
    delve_lists_the_same(NEWEST);
}
