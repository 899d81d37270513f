//! `cargo xtask ci`: every check a change has to pass, in the order that finds
//! mistakes soonest. The first failure stops it and is named.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain::BpfToolchain;
use crate::workspace::Workspace;
use crate::{command, ebpf, test, tidy};

type Step = (&'static str, fn(&Workspace) -> Result<()>);

const STEPS: [Step; 7] = [
    ("fmt", check_format),
    ("tidy", tidy::run),
    ("clippy, host", lint_host),
    ("clippy, BPF", lint_bpf),
    ("ebpf --check", |workspace| {
        ebpf::run(workspace, &ebpf::Args { check: true })
    }),
    ("no-op rebuild", rebuild),
    // Last, so that the last lines are the test runner's.
    ("test", |workspace| {
        test::run(workspace, &test::Args::default())
    }),
];

/// Runs every step.
pub fn run(workspace: &Workspace) -> Result<()> {
    for (number, (name, step)) in STEPS.iter().enumerate() {
        let number = number + 1;
        eprintln!("xtask: [{number}/{}] {name}", STEPS.len());
        let start = Instant::now();
        step(workspace).with_context(|| format!("step `{name}` failed"))?;
        if number < STEPS.len() {
            let seconds = start.elapsed().as_secs_f64();
            eprintln!(
                "xtask: [{number}/{}] {name}: passed in {seconds:.1} s",
                STEPS.len()
            );
        }
    }
    Ok(())
}

fn check_format(workspace: &Workspace) -> Result<()> {
    command::run(workspace.cargo().args(["fmt", "--all", "--check"])).context("run `cargo fmt`")
}

fn deny_warnings(clippy: &mut Command) -> Result<()> {
    command::run(clippy.args(["--", "--deny", "warnings"]))
}

fn lint_host(workspace: &Workspace) -> Result<()> {
    let mut clippy = workspace.cargo();
    deny_warnings(clippy.args(["clippy", "--workspace", "--all-targets"]))
}

fn lint_bpf(workspace: &Workspace) -> Result<()> {
    let toolchain = BpfToolchain::prepare(workspace)?;
    let target = workspace.target().join("bpf");
    let mut clippy = ebpf::cargo(workspace, &toolchain, "clippy")?;
    deny_warnings(clippy.arg("--target-dir").arg(target))
}

/// A build script whose inputs are declared wrongly runs each time, and takes
/// everything after it along.
fn rebuild(workspace: &Workspace) -> Result<()> {
    let build = || {
        let mut cargo = workspace.cargo();
        cargo.args(["build", "--package", "goprof", "--verbose"]);
        cargo
    };
    command::run(build().stderr(std::process::Stdio::null()))?;
    let second = build().output().context("build goprof again")?;
    let messages = String::from_utf8_lossy(&second.stderr);
    if !second.status.success() {
        bail!("the second build failed:\n{messages}");
    }
    let repeated = messages.lines().find(|line| {
        ["Dirty", "Compiling", "Running"].contains(&line.trim().split(' ').next().unwrap_or(""))
    });
    match repeated {
        Some(line) => bail!("a second build, with nothing changed, did work:{line}"),
        None => Ok(()),
    }
}
