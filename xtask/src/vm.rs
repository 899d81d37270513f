//! `cargo xtask vm`: boots the kernels of Debian's releases in an emulator with
//! goprof and Go programs in a ramdisk, records there, and holds what comes out
//! against what the programs do. It installs nothing and changes no machine.

mod cases;
mod console;
mod guest;
mod kernels;
mod machine;
mod modules;
mod ramdisk;
mod report;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain;
use crate::command;
use crate::go::Go;
use crate::test;
use crate::workspace::Workspace;

use cases::{CASES, Case};
use kernels::{Arch, KERNELS};
use modules::Module;
use report::{Outcome, Report};

/// Arguments of `cargo xtask vm`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Only these kernels; all of them when absent, which writes docs/kernels.md
    #[arg(long, value_name = "SERIES", value_parser = KERNELS.map(|kernel| kernel.series))]
    pub kernel: Vec<String>,
    /// The processor
    #[arg(long, value_enum, default_value_t)]
    pub arch: Arch,
    /// Only these cases, as the tables name them
    #[arg(long, value_name = "CASE")]
    pub case: Vec<String>,
}

/// The oldest kernel and one in wide use, and of each the programs and CPU time
/// alone: what a change can break, in a minute.
pub fn run_short(workspace: &Workspace) -> Result<()> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    run(
        workspace,
        &Args {
            kernel: words(&["5.10", "6.1"]),
            case: words(&["cpu"]),
            ..Args::default()
        },
    )
}

/// Boots the kernels asked for, one after the other, and fails if one of them
/// gave what it should not.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let cases: Vec<&Case> = CASES
        .iter()
        .filter(|case| args.case.is_empty() || args.case.iter().any(|name| name == case.name))
        .collect();
    if cases.is_empty() {
        bail!("there is no such case: {}", args.case.join(", "));
    }
    machine::require(args.arch)?;
    let folder = workspace.target().join("vm").join(args.arch.name());
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let guest = Guest {
        programs: build_programs(workspace, args.arch, &cases, &folder)?,
        goprof: build_goprof(workspace, args.arch, &folder)?,
        busybox: kernels::busybox(workspace, args.arch)?,
    };
    let modules = wanted_modules(&cases, args.arch);
    let mut report = Report::default();
    for kernel in KERNELS {
        if !args.kernel.is_empty() && !args.kernel.iter().any(|series| series == kernel.series) {
            continue;
        }
        let unpacked = kernels::provide(workspace, &kernel, args.arch, &modules)?;
        eprintln!(
            "xtask: booting Linux {} ({})",
            kernel.series,
            args.arch.name()
        );
        let ramdisk = folder.join(format!("{}.cpio", kernel.series));
        fs::write(&ramdisk, guest.ramdisk(&cases, &unpacked.modules)?)
            .with_context(|| format!("write {}", ramdisk.display()))?;
        let console = machine::boot(args.arch, &unpacked.image, &ramdisk, cases.len())?;
        let kept = folder.join(format!("{}.log", kernel.series));
        fs::write(&kept, &console).with_context(|| format!("write {}", kept.display()))?;
        let outcome = Outcome::of(&kernel, args.arch, &cases, &console);
        outcome.print();
        report.outcomes.push(outcome);
    }
    if args.kernel.is_empty() && args.case.is_empty() {
        report.write(&workspace.root.join("docs/kernels.md"), args.arch)?;
    }
    report.verdict(&folder)
}

/// What goes into the ramdisk.
struct Guest {
    programs: Vec<(String, PathBuf)>,
    goprof: PathBuf,
    busybox: PathBuf,
}

impl Guest {
    fn ramdisk(&self, cases: &[&Case], modules: &[Module]) -> Result<Vec<u8>> {
        let mut archive = ramdisk::Archive::default();
        for folder in ["bin", "dev", "lib", "proc", "sys", "tmp"] {
            archive.folder(folder);
        }
        archive.program("bin/busybox", &read(&self.busybox)?);
        archive.link("bin/sh", "busybox");
        archive.program("bin/goprof", &read(&self.goprof)?);
        for (name, path) in &self.programs {
            archive.program(&format!("bin/{name}"), &read(path)?);
        }
        for module in modules {
            archive.program(&format!("lib/{}.ko", module.name), &module.content);
        }
        archive.program("init", guest::init(cases, modules).as_bytes());
        Ok(archive.finish())
    }
}

/// The modules that cases need of the kernel, by their names.
fn wanted_modules(cases: &[&Case], arch: Arch) -> Vec<&'static str> {
    let there = cases.iter().filter(|case| case.lacking != Some(arch));
    let modules = there.flat_map(|case| case.modules);
    modules.map(|module| guest::name_of(module)).collect()
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Builds the Go programs that the cases record, which load nothing.
fn build_programs(
    workspace: &Workspace,
    arch: Arch,
    cases: &[&Case],
    folder: &std::path::Path,
) -> Result<Vec<(String, PathBuf)>> {
    let go = Go::prepare(workspace)?;
    let mut names: Vec<&str> = cases.iter().map(|case| case.program).collect();
    names.sort_unstable();
    names.dedup();
    let build = |name: &str| {
        let path = folder.join(name);
        let mut build = go.command(None);
        build
            .args(["build", "-buildvcs=false", "-o"])
            .arg(&path)
            .arg(format!("./{name}"))
            .current_dir(workspace.root.join("tests/go"))
            .env("CGO_ENABLED", "0")
            .env("GOARCH", arch.go());
        command::run(&mut build)?;
        Ok((name.to_owned(), path))
    };
    names.into_iter().map(build).collect()
}

/// Builds goprof so that it loads nothing, and without what only debuggers read.
fn build_goprof(workspace: &Workspace, arch: Arch, folder: &std::path::Path) -> Result<PathBuf> {
    let goprof = folder.join("goprof");
    match arch {
        Arch::X86_64 => {
            let mut strip = Command::new(bpf_toolchain::objcopy(workspace)?);
            strip.arg("--strip-debug");
            strip.args([&test::build_static(workspace)?, &goprof]);
            strip.env("LD_LIBRARY_PATH", workspace.sysroot()?.join("lib"));
            command::output(&mut strip).context("strip goprof")?;
        }
        Arch::Aarch64 => {
            let built = build_for_arm64(workspace)?;
            fs::copy(&built, &goprof).with_context(|| format!("copy {}", built.display()))?;
        }
    }
    Ok(goprof)
}

/// The recorder alone: the agent has no other code for arm64, and takes as long.
fn build_for_arm64(workspace: &Workspace) -> Result<PathBuf> {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    const LINKER: &str = "aarch64-linux-gnu-gcc";
    if command::find(LINKER).is_none() {
        bail!(
            "{LINKER} links for arm64: run `apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross`"
        );
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", TARGET]);
    command::output(rustup.current_dir(&workspace.root))
        .context("get the standard library for arm64")?;
    let mut build = workspace.cargo();
    build
        .args(["rustc", "--package", "goprof", "--bin", "goprof"])
        .args(["--no-default-features", "--target", TARGET])
        .args([
            "--",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=debuginfo",
        ])
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
    command::run(&mut build).context("build goprof for arm64")?;
    Ok(workspace.target().join(TARGET).join("debug/goprof"))
}
