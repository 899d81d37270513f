//! `cargo xtask ci`: every check a change has to pass, in the order that finds
//! mistakes soonest. The first failure stops it and is named.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain::BpfToolchain;
use crate::workspace::Workspace;
use crate::{command, ebpf, fuzz, test, tidy, vm};

type Step = (&'static str, fn(&Workspace) -> Result<()>);

const STEPS: [Step; 9] = [
    ("fmt", check_format),
    ("tidy", tidy::run),
    ("clippy", lint_host),
    ("clippy-no-agent", lint_without_agent),
    ("clippy-bpf", lint_bpf),
    ("ebpf-check", |workspace| {
        ebpf::run(workspace, &ebpf::Args { check: true })
    }),
    ("rebuild", rebuild),
    ("vm", vm::run_short),
    // Last, so that the last lines are the test runner's.
    ("test", |workspace| {
        test::run(workspace, &test::Args::default())
    }),
];

/// Arguments of `cargo xtask ci`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these steps, in their usual order
    #[arg(value_name = "STEP", value_parser = STEPS.map(|(name, _)| name))]
    steps: Vec<String>,
}

/// Runs the steps asked for, or every one.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let wanted: Vec<&Step> = STEPS
        .iter()
        .filter(|(name, _)| args.steps.is_empty() || args.steps.iter().any(|step| step == name))
        .collect();
    let count = wanted.len();
    for (index, (name, step)) in wanted.into_iter().enumerate() {
        let number = index + 1;
        eprintln!("xtask: [{number}/{count}] {name}");
        let start = Instant::now();
        step(workspace).with_context(|| format!("step `{name}` failed"))?;
        if *name != "test" {
            let seconds = start.elapsed().as_secs_f64();
            eprintln!("xtask: [{number}/{count}] {name}: passed in {seconds:.1} s");
        }
    }
    Ok(())
}

fn check_format(workspace: &Workspace) -> Result<()> {
    let check = |package: &[&str]| {
        let mut fmt = workspace.cargo();
        command::run(fmt.args(["fmt", "--check"]).args(package)).context("run `cargo fmt`")
    };
    check(&["--all"])?;
    check(&["--manifest-path", &fuzz_manifest()])
}

/// The fuzz targets are a workspace of their own.
fn fuzz_manifest() -> String {
    format!("{}/Cargo.toml", fuzz::PACKAGE)
}

fn deny_warnings(clippy: &mut Command) -> Result<()> {
    command::run(clippy.args(["--", "--deny", "warnings"]))
}

fn lint_host(workspace: &Workspace) -> Result<()> {
    let mut clippy = workspace.cargo();
    deny_warnings(clippy.args(["clippy", "--workspace", "--all-targets"]))?;
    let mut clippy = workspace.cargo();
    clippy.args(["clippy", "--locked", "--manifest-path", &fuzz_manifest()]);
    clippy.arg("--all-features");
    deny_warnings(clippy.arg("--target-dir").arg(workspace.target()))
}

/// The demo and the benchmark build goprof so.
fn lint_without_agent(workspace: &Workspace) -> Result<()> {
    let mut clippy = workspace.cargo();
    clippy.args(["clippy", "--package", "goprof", "--all-targets"]);
    deny_warnings(clippy.arg("--no-default-features"))
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
