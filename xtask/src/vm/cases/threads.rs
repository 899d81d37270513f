//! Judges of the time that threads are off the CPU, held against what the kernel counts
//! of them, which the program says at its end.

use anyhow::{Context, Result, ensure};

use super::super::console::{Section, Stack, stacks};
use super::cpu::sum;

/// Enough of Go's processors for every thread, so that none waits for one of them,
/// and no signals to take a goroutine off its thread.
pub const ENVIRONMENT: &str = "GOMAXPROCS=16 GODEBUG=asyncpreemptoff=1";

/// Its threads that want the one CPU.
const CONTENDING: f64 = 4.0;

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

/// Four threads have one CPU: three of them wait at any time.
pub fn combined(section: &Section) -> Result<String> {
    let stacks = stacks(&section.output);
    let of = |leaf: &str| {
        seconds(&stacks, |stack| {
            stack.has("main.contends") && stack.frames.last() == Some(&leaf)
        })
    };
    let (ran, waited) = (of("[running]"), of("[waiting for a CPU]"));
    let elapsed = section.recorded_seconds()?;
    let due = CONTENDING * elapsed;
    ensure!(
        ((ran + waited) / due - 1.0).abs() < 0.1,
        "{ran:.2} s running and {waited:.2} s waiting of {due} s; {}",
        section.said.trim()
    );
    ensure!(
        (2.0..=4.5).contains(&(waited / ran)),
        "{ran:.2} s running for {waited:.2} s waiting, of four threads on one CPU"
    );
    let slept = seconds(&stacks, |stack| {
        stack.has("main.sleeps") && stack.frames.last() == Some(&"[blocked]")
    });
    ensure!(
        (elapsed * 0.8..=elapsed * 1.05).contains(&slept),
        "{slept:.2} s asleep of {elapsed}"
    );
    Ok(format!(
        "{ran:.2} s running and {waited:.2} s waiting of {due}, {slept:.2} s asleep of {elapsed}"
    ))
}
