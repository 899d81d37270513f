//! Tens of thousands of goroutines, held against the program's own list; and stacks
//! read while a program churns, none of which may be false. `GOPROF_CROWD_GOROUTINES`
//! says how many there are, a million say.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use goprof_tests::go::{self, NEWEST, Variant};
use goprof_tests::listing::{assert_same, list, own_list, text};
use goprof_tests::talker::Talker;

/// How many goroutines there are where it is not said.
const CROWD: usize = 50_000;
/// How many kinds a crowd has: as many of each.
const KINDS: usize = 15;
/// How many stacks are read while the program churns; more, if that takes less time
/// than `CHURNS`.
const CHURNED_STACKS: u64 = 10_000;
const CHURNS: Duration = Duration::from_secs(4);

#[test]
fn a_crowd_is_as_the_program_lists_it() {
    let asked = std::env::var("GOPROF_CROWD_GOROUTINES").ok();
    let asked = asked.map(|text| text.parse().expect("GOPROF_CROWD_GOROUTINES: a number"));
    let crowd = asked.unwrap_or(CROWD).next_multiple_of(KINDS);
    let mut talker = Talker::start(&go::build_with("parked", NEWEST, Variant::StrippedPie), &[]);
    talker.tell(&format!("crowd {crowd}"));
    let (listed, all) = list(&talker, &[]);
    let own = own_list(&mut talker);
    assert!(own.len() > crowd, "{}", own.len());
    let states: std::collections::HashSet<&str> = own
        .values()
        .map(|goroutine| goroutine.state.as_str())
        .collect();
    assert!(states.len() >= 10, "{states:?}");
    let took_ms = all["took_ns"].as_u64().expect("a time") / 1_000_000;
    println!("{} goroutines in {took_ms} ms", own.len());
    assert_same(&listed, &own, "a crowd");
}

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
    let begun = Instant::now();
    let (mut stacks, mut lists, mut calls) = (0, 0, HashMap::new());
    while begun.elapsed() < CHURNS || stacks < CHURNED_STACKS {
        let (_, all) = list(&talker, &[]);
        lists += 1;
        for group in all["groups"].as_array().expect("groups") {
            let frames = group["stack"].as_array().expect("frames");
            let mut is_known = false;
            for pair in frames.windows(2) {
                let (callee, caller) = (text(&pair[0]["function"]), text(&pair[1]["function"]));
                let Some(must) = callers.get(callee.as_str()) else {
                    continue;
                };
                is_known = true;
                assert_eq!(*must, caller, "{frames:?}");
                // Each is called at one place.
                let line = pair[1]["line"].as_u64();
                assert_eq!(*calls.entry(callee).or_insert(line), line, "{frames:?}");
            }
            if is_known {
                stacks += group["count"].as_u64().expect("a count");
            }
        }
        assert!(lists < 1000, "{stacks} stacks in {lists} lists");
    }
    println!("{stacks} stacks in {lists} lists, {:?}", begun.elapsed());
    assert!(calls.len() == 4, "{calls:?}");
}
