//! What `goprof agent` takes of the CPU window by window: on a node that has nothing
//! to do, with many Go processes that sleep, and with every CPU busy in Go. Takes
//! eight minutes and a half.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Bench;
use super::agent::Agent;
use super::agent_memory::{CROWD, Crowd};
use super::process::Target;
use super::report::{Figure, Section};
use super::stats::Summary;

/// How long windows are, and how many are measured.
struct Length {
    window: Duration,
    windows: u32,
}

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let length = match bench.quick {
        true => Length {
            window: Duration::from_secs(4),
            windows: 2,
        },
        false => Length {
            // Half as long as they are by default: what a window costs counts twice.
            window: Duration::from_secs(30),
            windows: 3,
        },
    };
    bench.progress("agent-cpu: nothing to do");
    let (idle, _) = shares(bench, &length)?;
    let sleeping = {
        bench.progress(&format!("agent-cpu: {CROWD} processes that sleep"));
        let _crowd = Crowd::start(bench, 0.0)?;
        shares(bench, &length)?.0
    };
    let (busy, samples) = {
        bench.progress("agent-cpu: all CPUs busy");
        let program = bench.build_go("oracle")?;
        let _target = Target::start(&mut Command::new(program))?;
        shares(bench, &length)?
    };
    let (crowded, crowd_samples) = {
        bench.progress(&format!("agent-cpu: all CPUs busy, {CROWD} processes"));
        let _crowd = Crowd::start(bench, 1.5)?;
        shares(bench, &length)?
    };
    let figure = |id, what: &str, shares| Figure::new(id, what, "%", Summary::of(shares));
    let seconds = length.window.as_secs();
    Ok(Section {
        title: "CPU time of the agent, of one CPU",
        method: format!(
            "goprof agent with its defaults, 19 Hz, but for the places it writes to and windows \
             (flush) of {seconds} s; after the first window its CPU time, user and system, over \
             each of {} windows, to {:.2}%: the kernel tells it in hundredths of a second. What \
             the kernel does in the sampling interrupt is charged to the program \
             interrupted. Samples a window: {samples:.0} of one busy program, {crowd_samples:.0} \
             of {CROWD}.",
            length.windows,
            100.0 / (100.0 * length.window.as_secs_f64()),
        ),
        figures: vec![
            figure("agent.idle", "nothing to do", idle).goal("at most 0.5"),
            figure(
                "agent.sleeping",
                &format!("{CROWD} Go processes that sleep"),
                sleeping,
            )
            .goal("at most 0.5"),
            figure("agent.busy", "all CPUs busy in one Go program", busy).goal("at most 1"),
            figure(
                "agent.crowded",
                &format!("all CPUs busy in {CROWD} Go processes"),
                crowded,
            )
            .goal("at most 1"),
        ],
    })
}

/// The share of a CPU that an agent takes during each window, in percent, and
/// the samples that it took in one.
fn shares(bench: &Bench, length: &Length) -> Result<(Vec<f64>, f64)> {
    let flush = format!("{}s", length.window.as_secs());
    let mut agent = Agent::start(bench, &["--flush", &flush], None)?;
    sleep(length.window);
    let counted = |agent: &Agent| agent.metric("goprof_samples_total");
    let samples = counted(&agent).context("ask the agent")?;
    let mut shares = Vec::new();
    for _ in 0..length.windows {
        let (begun, before) = (Instant::now(), agent.cpu_s()?);
        sleep(length.window);
        let taken = agent.cpu_s()? - before;
        shares.push(taken / begun.elapsed().as_secs_f64() * 100.0);
    }
    let samples = counted(&agent)? - samples;
    agent.stop()?;
    Ok((shares, samples / f64::from(length.windows)))
}
