//! `goprof goroutines`: what it lists is held against what the program lists of
//! itself, at rest; how it is chosen, shown, and compared with another list.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use goprof_tests::go::{self, NEWEST, Variant};
use goprof_tests::goprof;
use goprof_tests::listing::{assert_same, list, own_list};
use goprof_tests::pprof::Profile;
use goprof_tests::talker::Talker;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

fn lists_what_the_program_lists(version: &str, variant: Variant) {
    let mut talker = Talker::start(&go::build_with("parked", version, variant), &[]);
    talker.tell("collect");
    let own = own_list(&mut talker);
    let (listed, all) = list(&talker, &[]);
    let what = format!("go{version} {variant:?}");
    assert_same(&listed, &own, &what);
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

#[test]
fn two_lists_are_compared() {
    let mut talker = Talker::start(&go::build("parked"), &[]);
    let folder = tempfile::tempdir().expect("make a folder");
    let path = |name: &str| {
        let path = folder.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    };
    let (before, after) = (path("before.json"), path("after.json"));
    let pid = talker.pid_arg();
    goprof::run(&["goroutines", "-p", &pid, "-o", &before]).succeeded();
    let same = goprof::run(&["goroutines", "--diff", &before, &before]).succeeded();
    let nothing = "stacks: 0 new, 0 grown, 0 shrunk, 0 gone, 18 with as many as before";
    assert!(same.text().contains(nothing), "{}", same.text());

    // 70 more that receive, with another start than the three there are; the sender
    // and those that take what is sent are done.
    talker.tell("many 70");
    talker.tell("drain");
    goprof::run(&["goroutines", "-p", &pid, "-o", &after]).succeeded();
    let compared = goprof::run(&["goroutines", "--diff", &before, &after]).succeeded();
    let text = compared.text();
    for part in [
        "20 goroutines, and ",
        " later 89\n",
        "\n+70 grown: 3 -> 73, 70 began\n  73 chan receive\n  70 created by main.answer at ",
        "\n  3 created by main.starts at ",
        "\n-1 gone: 1 -> 0, 1 ended\n  1 chan send\n",
        "\n    main.receives  ",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let said = goprof::run(&["goroutines", "--diff", &before, &after, "-f", "json"]);
    let all: Value = serde_json::from_slice(&said.succeeded().stdout).expect("JSON");
    assert_eq!(all["after"]["goroutines"], 89);
    let first = &all["changes"][0];
    assert_eq!(
        (&first["change"], &first["began"]),
        (&"grown".into(), &70.into())
    );
    assert_eq!((&first["before"], &first["after"]), (&3.into(), &73.into()));
    assert_eq!(first["states"]["chan receive"], 73);
    assert_eq!(first["created_by"][0]["function"], "main.answer");

    let profile = path("g.pb.gz");
    goprof::run(&["goroutines", "-p", &pid, "-o", &profile]).succeeded();
    for (args, code, part) in [
        (vec![before.as_str()], 2, "2 values required"),
        (
            vec![&before, "/no/such/file"],
            1,
            "cannot open /no/such/file",
        ),
        (vec![&before, &profile], 1, "is no list"),
        (vec![&before, &after, "-f", "pprof"], 2, "-diff_base"),
        (vec![&before, &after, "-p", "1"], 2, "--pid"),
        (vec![&before, &after, "--state", "waiting"], 2, "--state"),
    ] {
        let outcome = goprof::run(&[&["goroutines", "--diff"], &args[..]].concat());
        assert_eq!(outcome.code(), code, "{args:?}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains(part),
            "{args:?}: {}",
            outcome.stderr
        );
    }
}
