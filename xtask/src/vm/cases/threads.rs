//! Judges of the time that threads are off the CPU, held against what the kernel counts
//! of them, which the program says at its end.

use anyhow::{Context, Result, ensure};

use super::super::console::{Section, Stack, stacks};
use super::cpu::sum;

/// Enough of Go's processors for every thread, so that none waits for one of them,
/// and no signals to take a goroutine off its thread.
pub const ENVIRONMENT: &str = "GOMAXPROCS=16 GODEBUG=asyncpreemptoff=1";

#[expect(clippy::cast_precision_loss, reason = "some minutes in nanoseconds")]
fn seconds(stacks: &[Stack], wanted: impl Fn(&Stack) -> bool) -> f64 {
    sum(stacks, wanted) as f64 / 1e9
}

/// How long a part of the program was off the CPU, as it says itself.
fn truth(section: &Section, part: &str) -> Result<f64> {
    let begin = format!("total {part} ");
    let lines = section.output.lines();
    let mut told = lines.filter_map(|line| line.strip_prefix(&begin)?.split(' ').next());
    let ns = told.next().and_then(|word| word.parse::<f64>().ok());
    let ns = ns.with_context(|| format!("the program says nothing of {part}"))?;
    Ok(ns / 1e9)
}

/// Each way of being off the CPU takes as long as the kernel counts.
pub fn off_cpu(section: &Section) -> Result<String> {
    let stacks = stacks(&section.output);
    let mut seen = Vec::new();
    for part in ["sleeps", "blocks", "contends"] {
        let truth = truth(section, part)?;
        let function = format!("main.{part}");
        let found = seconds(&stacks, |stack| stack.has(&function));
        ensure!(truth > 1.0, "{part} waited for {truth:.2} s only");
        ensure!(
            (found / truth - 1.0).abs() < 0.1,
            "{part}: {found:.2} s of {truth:.2}; {}",
            section.said.trim()
        );
        seen.push(format!("{part} {found:.2} s of {truth:.2}"));
    }
    let slept = seconds(&stacks, |stack| stack.has("main.sleeps"));
    let named = seconds(&stacks, |stack| {
        let mut frames = stack.frames.iter();
        stack.has("main.sleeps") && frames.any(|frame| frame.contains("nanosleep_[k]"))
    });
    ensure!(
        named > slept * 0.9,
        "{named:.2} of {slept:.2} s of sleep are in the kernel's nanosleep"
    );
    Ok(seen.join(", "))
}

/// Four threads have one CPU: three of them wait at any time. The time of another thread
/// is what that is held against: ticks, which what is running is seen by, get lost on an
/// emulated machine.
pub fn combined(section: &Section) -> Result<String> {
    let stacks = stacks(&section.output);
    let of = |function: &str, leaf: &str| {
        let is_leaf = |stack: &Stack| leaf.is_empty() || stack.frames.last() == Some(&leaf);
        seconds(&stacks, |stack| stack.has(function) && is_leaf(stack))
    };
    let elapsed = section.recorded_seconds()?;
    let thread = of("main.blocks", "");
    ensure!(
        (elapsed * 0.65..=elapsed * 1.05).contains(&thread),
        "a thread has {thread:.2} s of {elapsed}; {}",
        section.said.trim()
    );
    let waited = of("main.contends", "[waiting for a CPU]") / thread;
    let ran = of("main.contends", "[running]");
    ensure!(
        (2.4..=3.6).contains(&waited) && ran > 0.0,
        "{waited:.2} threads of 4 on one CPU wait, and run for {ran:.2} s; {}",
        section.said.trim()
    );
    let blocked = of("main.blocks", "[blocked]") / thread;
    ensure!(
        blocked > 0.5,
        "a thread is blocked for {blocked:.2} of its time"
    );
    Ok(format!(
        "{waited:.2} threads of 4 on one CPU wait, one of {thread:.2} s in {elapsed} is blocked \
         for {blocked:.2} of it"
    ))
}
