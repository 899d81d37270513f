//! Judges of the waits of goroutines. What the programs wait for is made so that, at any
//! time, a known number of goroutines waits in each place, or they count it themselves:
//! however slow the machine, the time there is known.

use anyhow::{Context, Result, bail, ensure};

use super::super::console::{Section, Stack, stacks};
use super::cpu::sum;

/// Between what is found and what is known. The program counts what goes before and after
/// a wait, too: there the traps of the probes are, which are dear on an emulated machine.
const LOCKED: (f64, f64) = (0.45, 1.15);
const STEADY: (f64, f64) = (0.75, 1.05);

/// The functions of contention that wait for a lock, in the order in which the program
/// says how long they did.
const LOCKS: [&str; 3] = ["main.holdLong", "main.holdShort", "main.holdCrowded"];
/// How many wait at any time in each of the others, but for moments.
const OTHERS: [(&str, f64); 5] = [
    ("main.readNetwork", 1.0),
    ("main.waitForGroup", 1.0),
    ("main.waitForBell", 1.0),
    ("main.produce", 1.0),
    ("main.selectWithTimeout", 1.0),
];

/// How many waited at a time for each lock, as the program says of all the time between
/// the first and the last that is heard of it.
fn told(section: &Section) -> Result<Vec<(&'static str, f64)>> {
    let read = |line: &str| -> Option<Vec<f64>> {
        let numbers = line.strip_prefix("waited ")?.split(' ');
        numbers.map(|word| word.parse().ok()).collect()
    };
    let all: Vec<Vec<f64>> = section.told.lines().filter_map(read).collect();
    let pair = all.first().zip(all.last());
    let (first, last) = pair.context("the program does not say how long it waited")?;
    ensure!(
        first.len() == 4 && last.len() == 4 && last[0] > first[0],
        "the program says too little"
    );
    let at_a_time = |at: usize| (last[at] - first[at]) / (last[0] - first[0]);
    let locks = LOCKS.iter().enumerate();
    Ok(locks.map(|(at, lock)| (*lock, at_a_time(at + 1))).collect())
}

/// Nanoseconds of the stacks that are `wanted`, by those of the recording.
fn waiting(stacks: &[Stack], seconds: f64, wanted: impl Fn(&Stack) -> bool) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "some minutes in nanoseconds")]
    let ns = sum(stacks, wanted) as f64;
    ns / 1e9 / seconds
}

/// Fails unless in each place nearly as many wait as are known to.
fn check(section: &Section, places: &[(&str, f64)], (least, most): (f64, f64)) -> Result<String> {
    let stacks = stacks(&section.output);
    let seconds = section.recorded_seconds()?;
    let mut seen = Vec::new();
    let mut wrong = Vec::new();
    for (function, due) in places {
        let found = waiting(&stacks, seconds, |stack| stack.has(function));
        let words = format!("{function} {found:.2} of {due:.2}");
        if !(due * least..=due * most).contains(&found) {
            wrong.push(words.clone());
        }
        seen.push(words);
    }
    ensure!(
        wrong.is_empty(),
        "as many wait at a time: {}; {}",
        wrong.join(", "),
        section.said.trim()
    );
    Ok(seen.join(", "))
}

/// What was held against whoever unlocked is what the others waited.
pub fn mutex(section: &Section) -> Result<String> {
    let seen = check(section, &told(section)?, LOCKED)?;
    // The stacks are of those that unlock, by the way that leads to the probe.
    let stacks = stacks(&section.output);
    let [all, unlocks] = [false, true].map(|at_unlock| {
        sum(&stacks, |stack| {
            let is_unlock = |frame: &&str| frame.contains("(*Mutex).Unlock");
            let is_lock = LOCKS.iter().any(|function| stack.has(function));
            is_lock && (!at_unlock || stack.user().last().as_ref().is_some_and(is_unlock))
        })
    });
    ensure!(
        unlocks * 100 >= all * 95,
        "{unlocks} of {all} ns end in Unlock"
    );
    let bell = sum(&stacks, |stack| stack.has("main.ringBell"));
    let group = sum(&stacks, |stack| stack.has("main.finish"));
    ensure!(
        bell > 0 && group > 0,
        "no waits for a Cond ({bell}) or a WaitGroup ({group})"
    );
    Ok(seen)
}

/// The same, by those that waited.
pub fn mutex_waiters(section: &Section) -> Result<String> {
    let seen = check(section, &told(section)?, LOCKED)?;
    let others = [("main.waitForGroup", 1.0), ("main.waitForBell", 1.0)];
    let others = check(section, &others, STEADY)?;
    Ok(format!("{seen}, {others}"))
}

/// Every kind of wait, by those that waited.
pub fn block(section: &Section) -> Result<String> {
    let locks = check(section, &told(section)?, LOCKED)?;
    let others = check(section, &OTHERS, STEADY)?;
    Ok(format!("{locks}, {others}"))
}

/// The same, of which a part was watched: by chance alone each is off by some tenths.
pub fn block_in_windows(section: &Section) -> Result<String> {
    ensure!(
        section.said.contains(" windows, "),
        "it does not say what was watched"
    );
    let places = [&told(section)?[..], &OTHERS].concat();
    let stacks = stacks(&section.output);
    let is_known = |stack: &Stack| places.iter().any(|(function, _)| stack.has(function));
    let due: f64 = places.iter().map(|(_, due)| due).sum();
    let found = waiting(&stacks, section.recorded_seconds()?, is_known);
    ensure!(
        (due * 0.65..=due * 1.25).contains(&found),
        "{found:.2} wait at a time, not {due:.2}; {}",
        section.said.trim()
    );
    let watched = section.said.lines().find(|line| line.contains("watched"));
    let watched = watched.and_then(|line| line.split_once("watched "));
    let (share, _) = watched
        .and_then(|(_, rest)| rest.split_once('%'))
        .context("it does not say how much was watched")?;
    Ok(format!(
        "{found:.2} of {due:.2} wait at a time, watched {share}% of it"
    ))
}

/// Goroutines of waiting by what they do, all the time.
const GOROUTINES: [(&str, f64); 3] = [
    ("main.receives", 40.0),
    ("main.sleeps", 10.0),
    ("main.alternate", 8.0),
];

/// A snapshot stands for the time until the next, so that none of it is lost.
pub fn wall(section: &Section) -> Result<String> {
    let seen = check(section, &GOROUTINES, (0.95, 1.05))?;
    let stacks = stacks(&section.output);
    let seconds = section.recorded_seconds()?;
    let of = |function: &str| waiting(&stacks, seconds, |stack| stack.has(function));
    let (long, short) = (of("main.waitsLong"), of("main.waitsShort"));
    let found = long / (long + short);
    let told = section.told.lines().rev().find_map(|line| {
        let mut numbers = line.strip_prefix("done ")?.split(' ');
        let mut next = || numbers.next()?.parse::<f64>().ok();
        next().zip(next())
    });
    let Some((long, short)) = told else {
        bail!("the program does not say how long it waited");
    };
    let truth = long / (long + short);
    // A snapshot takes so long there that the short waits are over before they are read.
    ensure!(
        (truth - 0.1..truth + 0.25).contains(&found),
        "{found:.2} of the time in the long wait, not {truth:.2}"
    );
    Ok(format!("{seen}; long waits {found:.2} of {truth:.2}"))
}

/// Those there are at the moment.
pub fn goroutine(section: &Section) -> Result<String> {
    let stacks = stacks(&section.output);
    for (function, due) in [
        ("main.receives", 40),
        ("main.sleeps", 10),
        ("main.spins", 1),
    ] {
        let count = sum(&stacks, |stack| stack.has(function));
        ensure!(count == due, "{count} goroutines of {due} in {function}");
    }
    let all = sum(&stacks, |_| true);
    ensure!((60..=61).contains(&all), "{all} goroutines of 60");
    Ok(format!("{all} goroutines"))
}
