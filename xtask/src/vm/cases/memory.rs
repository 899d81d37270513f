//! Judges of what is read out of the program's memory, and of allocations.

use anyhow::{Context, Result, bail, ensure};

use super::super::console::{Section, stacks};
use super::cpu::sum;

/// alloc_sites allocates in its rounds, at known sites.
pub fn allocations(section: &Section) -> Result<String> {
    let stacks = stacks(&section.output);
    let sites = ["main.allocBuffer", "main.allocTable", "main.allocNode"];
    for site in sites {
        let bytes = sum(&stacks, |stack| stack.has(site) && stack.has("main.round"));
        ensure!(bytes > 0, "nothing was allocated in {site}");
    }
    let all = sum(&stacks, |_| true);
    let rounds = sum(&stacks, |stack| stack.has("main.round"));
    ensure!(
        rounds * 10 >= all * 9,
        "main.round has {rounds} of {all} bytes"
    );
    Ok(format!("{} kB in {} stacks", all / 1024, stacks.len()))
}

const PARKED: u64 = 10_000;
/// 10,000 parked ones, three busy ones and main.
const GOROUTINES: u64 = 10_004;

/// As many as the program has.
pub fn goroutines(section: &Section) -> Result<String> {
    let read: serde_json::Value =
        serde_json::from_str(&section.output).context("it writes no JSON")?;
    let groups = read["groups"].as_array().context("it lists no groups")?;
    let counts = groups.iter().filter_map(|group| group["count"].as_u64());
    let count: u64 = counts.sum();
    ensure!(count == GOROUTINES, "{count} goroutines of {GOROUTINES}");
    // Those that wait were all begun by main's literal, and their stacks go back to it.
    let is_parked = |group: &&serde_json::Value| {
        let frames = group["stack"].as_array().into_iter().flatten();
        let mut functions = frames.filter_map(|frame| frame["function"].as_str());
        functions.any(|function| function == "main.main.func1")
    };
    let parked = groups.iter().filter(is_parked);
    let parked: u64 = parked.filter_map(|group| group["count"].as_u64()).sum();
    ensure!(
        parked == PARKED,
        "stacks of {parked} parked ones of {PARKED}"
    );
    Ok(format!("{count} goroutines in {} groups", groups.len()))
}

/// As many, as the runtime counts.
pub fn stats(section: &Section) -> Result<String> {
    let read: serde_json::Value =
        serde_json::from_str(&section.output).context("it writes no JSON")?;
    match read["goroutines"]["alive"].as_u64() {
        Some(count) if count >= GOROUTINES => Ok(format!("{count} goroutines counted")),
        other => bail!("{other:?} goroutines counted"),
    }
}

/// The bytes of a block that each place of alloc_mix takes in eight rounds, but for the one
/// that allocates once in them: a slow machine gets through thirty rounds in what is watched.
const MIX: [(&str, f64); 8] = [
    ("main.often", 8.0 * 69.0 * 112.0),
    ("main.seldom", 8.0 * 10.0 * 112.0),
    ("main.tiny", 8.0 * 92.0 * 8.0),
    ("main.small", 8.0 * 46.0 * 24.0),
    ("main.pointers", 8.0 * 46.0 * 48.0),
    ("main.buffers", 8.0 * 4.0 * 1024.0),
    ("main.tables", 8.0 * 3.0 * 896.0),
    ("main.texts", 8.0 * 23.0 * 64.0),
];

/// Each place has its share of the bytes, by the mix that the program is known to have.
#[expect(clippy::cast_precision_loss, reason = "some gigabytes")]
pub fn mix(section: &Section) -> Result<String> {
    let stacks = stacks(&section.output);
    let of = |function: &str| sum(&stacks, |stack| stack.user().last() == Some(function)) as f64;
    let all: f64 = MIX.iter().map(|(function, _)| of(function)).sum();
    ensure!(
        of("main.large") > 0.0,
        "nothing was allocated in main.large"
    );
    let known: f64 = MIX.iter().map(|(_, bytes)| bytes).sum();
    let mut seen = Vec::new();
    let mut wrong = Vec::new();
    for (function, bytes) in MIX {
        let found = of(function) / all * 100.0;
        let due = bytes / known * 100.0;
        let words = format!("{function} {found:.1}% of {due:.1}%");
        // Of some 1,500 samples a small share has few.
        let most = if due < 5.0 { 0.5 } else { 0.3 };
        if (found / due - 1.0).abs() > most {
            wrong.push(words.clone());
        }
        seen.push(words);
    }
    ensure!(
        wrong.is_empty(),
        "{}; {}",
        wrong.join(", "),
        section.said.trim()
    );
    Ok(seen.join(", "))
}
