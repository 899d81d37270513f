//! `goprof goroutines`: what it lists is held against what the program lists of
//! itself, at rest, and against what the program can be while it churns.

use std::collections::{BTreeMap, HashMap};
use std::fs;
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
    let pid = talker.pid_arg();
    let args = [&["goroutines", "-p", &pid, "-f", "json"], more].concat();
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
    // The collection has seen all of them wait, and not before the program began.
    let groups = all["groups"].as_array().expect("groups");
    let members = groups.iter().filter_map(|g| g["goroutines"].as_array());
    for member in members.flatten().filter(|m| m["id"] != 1) {
        let waits = member["waits_at_least_ns"].as_u64().expect("a time");
        assert!(waits < 300_000_000_000, "{what}: {member}");
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
