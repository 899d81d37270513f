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

fn cores_are_as_the_program_was(version: &str, variant: Variant) {
    let built = go::build_with("parked", version, variant);
    let folder = tempfile::tempdir().expect("make a folder");
    let program = folder.path().join("program");
    fs::copy(&built, &program).expect("copy the program");
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -c unlimited; exec \"$0\" \"$@\""])
        .arg(&program)
        .env("GOTRACEBACK", "crash")
        .stderr(Stdio::null())
        .current_dir(folder.path());
    let mut talker = Talker::start_command(&mut command);
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
