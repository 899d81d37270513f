//! Tens of thousands of goroutines, held against the program's own list; and stacks
//! read while a program churns, none of which may be false.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use goprof_tests::go::{self, NEWEST, Variant};
use goprof_tests::listing::{assert_same, list, own_list, text};
use goprof_tests::talker::Talker;

/// How many goroutines there are, a whole number of each kind that a crowd has.
const CROWD: usize = 3334 * 15;
/// How many stacks are read while the program churns; more, if that takes less time
/// than `CHURNS`.
const CHURNED_STACKS: u64 = 10_000;
const CHURNS: Duration = Duration::from_secs(4);

#[test]
fn fifty_thousand_are_as_the_program_lists_them() {
    let mut talker = Talker::start(&go::build_with("parked", NEWEST, Variant::StrippedPie), &[]);
    talker.tell(&format!("crowd {CROWD}"));
    let (listed, all) = list(&talker, &[]);
    let own = own_list(&mut talker);
    assert!(own.len() > CROWD, "{}", own.len());
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
