//! Lists of goroutines: a program's own, what `goprof goroutines` says, and how the
//! two are held against each other.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::goprof;
use crate::talker::Talker;

/// A goroutine, as either side lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// What it does or waits for.
    pub state: String,
    /// Its functions, leaf first.
    pub functions: Vec<String>,
    /// Who started it.
    pub created_by: Option<String>,
    /// In which goroutine, where that is known.
    pub parent: Option<u64>,
}

/// The list that a program like `parked` makes of itself, as `debug=2` has it.
#[track_caller]
pub fn own_list(talker: &mut Talker) -> BTreeMap<u64, Listed> {
    let folder = tempfile::tempdir().expect("make a folder");
    let path = folder.path().join("dump");
    talker.tell(&format!("dump {}", path.display()));
    let text = std::fs::read_to_string(path).expect("read the dump");
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

/// The text of a value; empty where it is none.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What goprof says of a program, by goroutine; and all of it.
#[track_caller]
pub fn list(talker: &Talker, more: &[&str]) -> (BTreeMap<u64, Listed>, Value) {
    list_of(&[&["-p", &talker.pid_arg()], more].concat())
}

/// The same of what the arguments name.
#[track_caller]
pub fn list_of(args: &[&str]) -> (BTreeMap<u64, Listed>, Value) {
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

/// Panics unless both have the same goroutines, in the same states, with the same
/// functions and starts. The first one, which wrote its own list, reads the next
/// command by now.
#[track_caller]
pub fn assert_same(listed: &BTreeMap<u64, Listed>, own: &BTreeMap<u64, Listed>, what: &str) {
    assert!(listed.keys().eq(own.keys()), "{what}: other ids");
    for (id, own) in own {
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
}
