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
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain;
use crate::command;
use crate::go::Go;
use crate::test;
use crate::workspace::Workspace;

use cases::{CASES, Case};
use kernels::{Arch, KERNELS, Kernel};
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
    /// Boot nothing: judge again what each kernel gave the last time
    #[arg(long)]
    pub kept: bool,
}

/// The oldest kernel and one in wide use, and of each the programs, CPU time, a device's
/// requests and what both are too old for: what a change can break, in a minute.
pub fn run_short(workspace: &Workspace) -> Result<()> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    run(
        workspace,
        &Args {
            kernel: words(&["5.10", "6.1"]),
            case: words(&["cpu", "mutex", "io, how much"]),
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
    let folder = workspace.target().join("vm").join(args.arch.name());
    let machines = match args.kept {
        true => None,
        false => Some(Machines::prepare(workspace, args.arch, &cases, &folder)?),
    };
    let mut report = Report::default();
    for kernel in KERNELS {
        if !args.kernel.is_empty() && !args.kernel.iter().any(|series| series == kernel.series) {
            continue;
        }
        let kept = folder.join(format!("{}.log", kernel.series));
        if let Some(machines) = &machines {
            let console = machines.boot(workspace, &kernel, &cases)?;
            fs::write(&kept, &console).with_context(|| format!("write {}", kept.display()))?;
        }
        let console = fs::read_to_string(&kept)
            .with_context(|| format!("read what Linux {} gave the last time", kernel.series))?;
        let outcome = Outcome::of(&kernel, args.arch, &cases, &console);
        outcome.print();
        report.outcomes.push(outcome);
    }
    if args.kernel.is_empty() && args.case.is_empty() {
        report.write(&workspace.root.join("docs/kernels.md"), args.arch)?;
    }
    report.verdict(&folder)
}

/// What goes into the ramdisk of every kernel.
struct Machines<'a> {
    arch: Arch,
    folder: &'a Path,
    programs: Vec<(String, PathBuf)>,
    goprof: PathBuf,
    busybox: PathBuf,
}

impl<'a> Machines<'a> {
    fn prepare(
        workspace: &Workspace,
        arch: Arch,
        cases: &[&Case],
        folder: &'a Path,
    ) -> Result<Self> {
        machine::require(arch)?;
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self {
            arch,
            folder,
            programs: build_programs(workspace, arch, cases, folder)?,
            goprof: build_goprof(workspace, arch, folder)?,
            busybox: kernels::busybox(workspace, arch)?,
        })
    }

    /// Boots a kernel, and returns what it wrote on its console.
    fn boot(&self, workspace: &Workspace, kernel: &Kernel, cases: &[&Case]) -> Result<String> {
        let (arch, series) = (self.arch, kernel.series);
        let modules = wanted_modules(cases, arch);
        let unpacked = kernels::provide(workspace, kernel, arch, &modules)?;
        eprintln!("xtask: booting Linux {series} ({})", arch.name());
        let ramdisk = self.folder.join(format!("{series}.cpio"));
        let tried = cases.iter().filter(|case| case.lacking != Some(arch));
        let tried: Vec<&Case> = tried.copied().collect();
        fs::write(&ramdisk, self.ramdisk(&tried, &unpacked.modules)?)
            .with_context(|| format!("write {}", ramdisk.display()))?;
        machine::boot(arch, &unpacked.image, &ramdisk, cases.len())
    }

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
    folder: &Path,
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
fn build_goprof(workspace: &Workspace, arch: Arch, folder: &Path) -> Result<PathBuf> {
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
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
        // Nothing else is built for it that this could be of a piece with, and the
        // emulator is slow enough.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    command::run(&mut build).context("build goprof for arm64")?;
    Ok(workspace.target().join(TARGET).join("debug/goprof"))
}
