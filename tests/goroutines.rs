//! `goprof goroutines`: what it lists is held against what the program lists of
//! itself, at rest, and against what the program can be while it churns.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use goprof_tests::go::{self, NEWEST, Variant};
use goprof_tests::goprof;
use goprof_tests::pprof::Profile;
use goprof_tests::talker::Talker;
use serde_json::Value;

/// A goroutine, as either side lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Listed {
    state: String,
    functions: Vec<String>,
    created_by: Option<String>,
    parent: Option<u64>,
}

/// The program's own list, as `debug=2` has it.
fn own_list(talker: &mut Talker) -> BTreeMap<u64, Listed> {
    let folder = tempfile::tempdir().expect("make a folder");
    let path = folder.path().join("dump");
    talker.tell(&format!("dump {}", path.display()));
    let text = fs::read_to_string(path).expect("read the dump");
    let mut all = BTreeMap::new();
    for block in text.split("\n\n") {
        let mut lines = block.lines();
        let head = lines.next().expect("a head");
        let head = head.strip_prefix("goroutine ").expect("a goroutine");
        let (id, state) = head.split_once(" [").expect("a state");
        let state = state.split_once(']').expect("a state").0;
        let state = state.split(", ").next().expect("a state");
        let mut listed = Listed {
            state: state.to_owned(),
            ..Listed::default()
        };
        for line in lines.filter(|line| !line.starts_with('\t')) {
            match line.strip_prefix("created by ") {
                Some(creator) => {
                    let (creator, parent) = match creator.split_once(" in goroutine ") {
                        Some((creator, parent)) => (creator, parent.parse().ok()),
                        None => (creator, None),
                    };
                    listed.created_by = Some(creator.to_owned());
                    listed.parent = parent;
                }
                None => {
                    let (function, _) = line.rsplit_once('(').expect("a call");
                    listed.functions.push(function.to_owned());
                }
            }
        }
        all.insert(id.parse().expect("an id"), listed);
    }
    all
}

/// Whether Go's tracebacks leave a function out.
fn is_hidden(function: &str) -> bool {
    let of_runtime = function.strip_prefix("runtime.");
    of_runtime.is_some_and(|name| !name.starts_with(char::is_uppercase))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What goprof says, by goroutine; and all of it.
fn list(talker: &Talker, more: &[&str]) -> (BTreeMap<u64, Listed>, Value) {
    list_of(&[&["-p", &talker.pid_arg()], more].concat())
}

/// The same of what the arguments name.
fn list_of(args: &[&str]) -> (BTreeMap<u64, Listed>, Value) {
    let args = [&["goroutines", "-f", "json"], args].concat();
    let outcome = goprof::run(&args).succeeded();
    let all: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    let mut listed = BTreeMap::new();
    for group in all["groups"].as_array().expect("groups") {
        let frames = group["stack"].as_array().expect("frames").iter();
        let functions: Vec<String> = frames.map(|frame| text(&frame["function"])).collect();
        let members = group["goroutines"].as_array().expect("goroutines");
        assert_eq!(group["count"].as_u64(), Some(members.len() as u64));
        for member in members {
            let waits = member["state"] == "waiting";
            let state = &member[if waits { "wait_reason" } else { "state" }];
            let creator = member.get("created_by");
            let goroutine = Listed {
                state: text(state),
                functions: functions.clone(),
                created_by: creator.map(|creator| text(&creator["function"])),
                parent: member.get("parent").and_then(Value::as_u64),
            };
            let id = member["id"].as_u64().expect("an id");
            assert!(
                listed.insert(id, goroutine).is_none(),
                "{id} is there twice"
            );
        }
    }
    (listed, all)
}

fn lists_what_the_program_lists(version: &str, variant: Variant) {
    let mut talker = Talker::start(&go::build_with("parked", version, variant), &[]);
    talker.tell("collect");
    let own = own_list(&mut talker);
    let (listed, all) = list(&talker, &[]);
    let what = format!("go{version} {variant:?}");
    let ids = |list: &BTreeMap<u64, Listed>| list.keys().copied().collect::<Vec<_>>();
    assert_eq!(ids(&listed), ids(&own), "{what}: {all}");
    for (id, own) in &own {
        let mut listed = listed[id].clone();
        let what = format!("{what}: goroutine {id}: {listed:?}");
        assert!(!listed.functions.is_empty(), "{what}");
        listed.functions.retain(|function| !is_hidden(function));
        if *id == 1 {
            // It wrote its own list, and reads the next command now.
            assert_eq!(listed.state, "syscall", "{what}");
            assert_eq!(
                listed.functions.last().map(String::as_str),
                Some("main.main")
            );
            continue;
        }
        // 1.19 and 1.20 do not say who the parent is.
        assert_eq!(&listed, own, "{what}");
    }
    waits_for_what_it_should(&mut talker, version, &all);
    // The collection has seen all of them wait, and not before the program began.
    let groups = all["groups"].as_array().expect("groups");
    let members = groups.iter().filter_map(|g| g["goroutines"].as_array());
    for member in members.flatten().filter(|m| m["id"] != 1) {
        let waits = member["waits_at_least_ns"].as_u64().expect("a time");
        assert!(waits < 300_000_000_000, "{what}: {member}");
    }
}

/// The addresses that goroutines wait for are those that the program says.
fn waits_for_what_it_should(talker: &mut Talker, version: &str, all: &Value) {
    let said = talker.tell("addresses");
    let mut said = said.split(' ');
    let mut address = || said.next().expect("an address").to_owned();
    let (empty, full, other) = (address(), address(), address());
    let (mutex, group) = (address(), address());
    // Its reasons tell mutexes since 1.20, groups since 1.24.
    let part_of = |what, address: String, since: u32, offset| {
        let minor = version
            .split('.')
            .nth(1)
            .and_then(|minor| minor.parse().ok());
        if minor.is_some_and(|minor: u32| minor >= since) {
            return (what, address);
        }
        let address = u64::from_str_radix(&address[2..], 16).expect("an address");
        ("semaphore", format!("{:#x}", address + offset))
    };
    let mutex = part_of("mutex", mutex, 20, 4);
    let group = part_of("waitgroup", group, 24, 8);
    let waited = all["waited_for"].as_array().expect("places");
    for (place, count) in [
        (("channel", empty), 8),
        (("channel", full), 2),
        (("channel", other), 1),
        (mutex, 1),
        (group, 1),
    ] {
        let is_it = |found: &&Value| found["what"] == place.0 && found["address"] == place.1;
        let found = waited.iter().find(is_it);
        let what = format!("go{version} {place:?}: {waited:?}");
        let waiters = found.and_then(|found| found["goroutines"].as_array());
        assert_eq!(waiters.expect(&what).len(), count, "{what}");
    }
}

#[test]
fn every_version_lists_what_the_program_lists() {
    for (index, version) in go::EVERY_VERSION.into_iter().enumerate() {
        // One build of each: both forms come with both halves of the versions.
        let variants = [Variant::Plain, Variant::StrippedPie];
        lists_what_the_program_lists(version, variants[index % 2]);
    }
}

#[test]
fn the_profile_is_the_programs_own() {
    let mut talker = Talker::start(&go::build("parked"), &[]);
    let folder = tempfile::tempdir().expect("make a folder");
    let (own, file) = (folder.path().join("own"), folder.path().join("g.pb.gz"));
    talker.tell(&format!("profile {}", own.display()));
    let output = file.to_str().expect("UTF-8");
    let pid = talker.pid_arg();
    let said = goprof::run(&["goroutines", "-p", &pid, "-o", output]).succeeded();
    assert!(said.stderr.contains("20 goroutines in "), "{}", said.stderr);
    // All but the one that wrote its own profile meanwhile.
    let stacks = |profile: &Profile| {
        let mut stacks: HashMap<String, u64> = HashMap::new();
        for stack in &profile.stacks {
            let frames = stack.frames.iter();
            let functions: Vec<&str> = frames.map(|frame| frame.function.as_str()).collect();
            if !functions.contains(&"main.main") {
                let key = format!("{functions:?} {:?}", stack.labels);
                *stacks.entry(key).or_default() += stack.count;
            }
        }
        stacks
    };
    let (own, ours) = (Profile::read(&own), Profile::read(&file));
    let kind = &ours.raw.sample_type[0];
    assert_eq!(
        (ours.text(kind.r#type), ours.text(kind.unit)),
        ("goroutine", "count")
    );
    let without_pid = |stacks: HashMap<String, u64>| -> BTreeMap<String, u64> {
        let keys = stacks.into_iter();
        keys.map(|(key, count)| (key.replace(&format!("\"pid\": \"{pid}\""), ""), count))
            .collect()
    };
    assert_eq!(without_pid(stacks(&ours)), without_pid(stacks(&own)));
}

#[test]
fn goroutines_are_chosen_and_shown() {
    let mut talker = Talker::start(&go::build_with("parked", NEWEST, Variant::Stripped), &[]);
    talker.tell("collect");
    let count = |more: &[&str]| list(&talker, more).0.len();
    assert_eq!(count(&["--state", "syscall"]), 2);
    assert_eq!(count(&["--state", "waiting"]), 18);
    assert_eq!(count(&["--state", "waiting", "--state", "syscall"]), 20);
    assert_eq!(count(&["--reason", "^select"]), 2);
    assert_eq!(count(&["--function", r"^main\.receives$"]), 4);
    assert_eq!(count(&["--label", "path=^/api$"]), 1);
    assert_eq!(count(&["--label", "path=^/other$"]), 0);
    assert_eq!(count(&["--older-than", "1h"]), 0);
    assert!(count(&["--system"]) > 20);
    let pid = talker.pid_arg();
    let shown = goprof::run(&["goroutines", "-p", &pid, "--function", "main"]).succeeded();
    let text = shown.text();
    for part in [
        "20 goroutines in 18 groups",
        "of the runtime's own are left out",
        "\n3 goroutines\n",
        ": sync.Mutex.Lock, for ",
        " at least, created by main.starts in goroutine 1 at ",
        "labels path=/api, tenant=blue",
        "    main.isInlined (inlined)  ",
        "tests/go/parked/main.go:",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

/// How long the program churns while it is read.
const CHURNS: Duration = Duration::from_secs(4);

#[test]
fn no_stack_is_false_while_the_program_churns() {
    let mut talker = Talker::start(&go::build("parked"), &[]);
    talker.tell("churn");
    let callers = HashMap::from([
        ("main.innerOne", "main.one"),
        ("main.innerTwo", "main.two"),
        ("main.one", "main.alternates"),
        ("main.two", "main.alternates"),
    ]);
    let until = Instant::now() + CHURNS;
    let (mut reads, mut calls) = (0, HashMap::new());
    while Instant::now() < until || reads == 0 {
        let (_, all) = list(&talker, &[]);
        for group in all["groups"].as_array().expect("groups") {
            let frames = group["stack"].as_array().expect("frames");
            for pair in frames.windows(2) {
                let (callee, caller) = (text(&pair[0]["function"]), text(&pair[1]["function"]));
                let Some(must) = callers.get(callee.as_str()) else {
                    continue;
                };
                reads += group["count"].as_u64().expect("a count");
                assert_eq!(*must, caller, "{frames:?}");
                // Each is called at one place.
                let line = pair[1]["line"].as_u64();
                assert_eq!(*calls.entry(callee).or_insert(line), line, "{frames:?}");
            }
        }
    }
    println!("{reads} calls seen");
    assert!(calls.len() == 4, "{calls:?}");
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let own = std::process::id().to_string();
    for (args, code, part) in [
        (vec!["-p", "4194304"], 1, "there is no process 4194304"),
        (vec!["-p", own.as_str()], 1, "is not a Go program"),
        (vec!["-p", "0"], 2, "0"),
        (vec![], 2, "--pid"),
        (vec!["--core", "/bin/sh"], 1, "not an ELF core file"),
        (vec!["--core", "/no/such/file"], 1, "cannot open"),
        (vec!["--core", "/bin/sh", "-p", "1"], 2, "--pid"),
        (vec!["-p", "1", "--exe", "/bin/sh"], 2, "--exe"),
        (vec!["-p", own.as_str(), "--state", "asleep"], 2, "asleep"),
        (vec!["-p", own.as_str(), "--label", "x"], 2, "KEY=RE"),
        (vec!["-p", own.as_str(), "-o", "/no/such/folder/x"], 1, ""),
    ] {
        let outcome = goprof::run(&[&["goroutines"], &args[..]].concat());
        assert_eq!(outcome.code(), code, "{args:?}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains(part),
            "{args:?}: {}",
            outcome.stderr
        );
        if code == 1 {
            assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        }
    }
}

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
