//! `cargo xtask fuzz`: runs the fuzz targets of `profiler/fuzz` on inputs made
//! of `bpf-fixtures/`. What they find is kept below the build folder; nothing
//! of the checkout changes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::workspace::Workspace;

/// Where the package of the fuzz targets lies.
pub const PACKAGE: &str = "profiler/fuzz";

const TARGETS: [&str; 11] = [
    "walk",
    "unwind",
    "call_frames",
    "gobinary",
    "gomemory",
    "records",
    "cores",
    "texts",
    "config",
    "queries",
    "spool",
];
/// Of these, how many go without the agent, which takes minutes to build: all that
/// the tests fuzz. The inputs of the others run as tests (`tests/fuzzing_agent.rs`).
const WITHOUT_AGENT: usize = 7;

/// Provided in the cache, as bpf-linker is.
const CARGO_FUZZ_VERSION: &str = "0.13.1";

/// An input that takes longer hangs, in seconds; most take microseconds.
const TIMEOUT_S: u64 = 10;
/// Longer than the longest record, in bytes.
const MAX_INPUT_BYTES: u64 = 32 * 1024;

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this target
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long to go on, in seconds, shared by the targets
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Only this input, such as a failed run has named
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
}

/// Fuzzes the target asked for, or each.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let targets = match &args.target {
        Some(target) => &[target.as_str()][..],
        None => &TARGETS,
    };
    run_targets(workspace, args, targets)
}

fn run_targets(workspace: &Workspace, args: &Args, targets: &[&str]) -> Result<()> {
    let agent = targets
        .iter()
        .any(|target| !TARGETS[..WITHOUT_AGENT].contains(target));
    let fuzzer = Fuzzer::prepare(workspace, agent)?;
    if let Some(input) = &args.input {
        return targets.iter().try_for_each(|target| {
            let mut run = fuzzer.command(target)?;
            command::run(run.arg(input))
        });
    }
    fuzzer.write_seeds()?;
    let seconds = (args.seconds / targets.len() as u64).max(1);
    let findings: Vec<String> = targets
        .iter()
        .filter_map(|target| fuzzer.fuzz(target, seconds).transpose())
        .collect::<Result<_>>()?;
    match findings.is_empty() {
        true => Ok(()),
        false => bail!("{}", findings.join("\n")),
    }
}

/// Fuzzes every target that goes without the agent, for a minute in all.
pub fn run_for_a_minute(workspace: &Workspace) -> Result<()> {
    let args = Args {
        target: None,
        seconds: 60,
        input: None,
    };
    run_targets(workspace, &args, &TARGETS[..WITHOUT_AGENT])
}

/// The targets, built.
struct Fuzzer<'a> {
    workspace: &'a Workspace,
    /// Everything that fuzzing makes.
    folder: PathBuf,
    /// The folder of the programs.
    programs: PathBuf,
}

impl<'a> Fuzzer<'a> {
    fn prepare(workspace: &'a Workspace, agent: bool) -> Result<Self> {
        if command::find("c++").is_none() {
            bail!("libFuzzer is built from C++: run `apt-get install g++`");
        }
        // cargo-fuzz has no way to ask for it, and would write the lock file.
        let manifest = format!("{PACKAGE}/Cargo.toml");
        let mut metadata = workspace.cargo();
        metadata.args(["metadata", "--locked", "--format-version=1"]);
        command::output(metadata.args(["--manifest-path", &manifest])).with_context(|| {
            format!(
                "{PACKAGE}/Cargo.lock does not fit the manifests: run \
                 `cargo metadata --format-version=1 --manifest-path {manifest}` and commit it"
            )
        })?;
        let cargo_fuzz = provide_cargo_fuzz(workspace)?;
        let folder = workspace.target().join("fuzz");
        let host = workspace.rustc_fact("host")?;
        eprintln!("xtask: building the fuzz targets (some minutes the first time)");
        let mut build = Command::new(cargo_fuzz);
        build
            .args(["fuzz", "build", "--fuzz-dir", PACKAGE])
            // The code under test is safe Rust: panics and failed checks are
            // what can go wrong in it. They need no sanitizer, which would
            // need an unstable compiler and run at half the speed.
            .args(["--sanitizer", "none", "--target", &host, "--target-dir"])
            .arg(&folder)
            .args(agent.then_some("--features=agent"))
            .current_dir(&workspace.root)
            // For this compiler and these flags alone.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_TARGET_DIR");
        command::output(&mut build).context("build the fuzz targets")?;
        Ok(Self {
            programs: folder.join(host).join("release"),
            workspace,
            folder,
        })
    }

    /// Writes the inputs to begin with, anew each time: the fixtures change.
    fn write_seeds(&self) -> Result<()> {
        let seeds = self.folder.join("seeds");
        if seeds.exists() {
            fs::remove_dir_all(&seeds).with_context(|| format!("remove {}", seeds.display()))?;
        }
        let mut write = self.workspace.cargo();
        write
            .args(["run", "--quiet", "--package", "goprof-tests"])
            .args(["--example", "fuzz_seeds", "--"])
            .arg(&seeds);
        command::run(&mut write)
    }

    /// The command of a target, with what holds for every run.
    fn command(&self, target: &str) -> Result<Command> {
        let failures = self.make_folder("failures")?;
        let mut prefix = OsString::from("-artifact_prefix=");
        prefix.push(failures.join(format!("{target}-")));
        let mut command = Command::new(self.programs.join(target));
        command
            .arg(format!("-timeout={TIMEOUT_S}"))
            .arg(format!("-max_len={MAX_INPUT_BYTES}"))
            .arg(prefix)
            .current_dir(&self.workspace.root);
        Ok(command)
    }

    /// Runs a target. Says what failed and how to see it again, if something did.
    fn fuzz(&self, target: &str, seconds: u64) -> Result<Option<String>> {
        let corpus = self.make_folder(&format!("corpus/{target}"))?;
        let log = self.folder.join(format!("{target}.log"));
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut fuzz = self.command(target)?;
        fuzz.arg(format!("-max_total_time={seconds}"))
            .arg("-print_final_stats=1")
            .arg(corpus)
            .arg(self.folder.join("seeds").join(target))
            .stderr(output);
        let status = fuzz
            .status()
            .with_context(|| format!("start `{}`", command::line(&fuzz)))?;
        let said = fs::read(&log).with_context(|| format!("read {}", log.display()))?;
        let said = String::from_utf8_lossy(&said);
        if !status.success() {
            return Ok(Some(finding(target, &said, &log)));
        }
        let inputs = after(&said, "stat::number_of_executed_units:").unwrap_or("?");
        eprintln!("xtask: fuzz {target}: {inputs} inputs in {seconds} s, none failed");
        Ok(None)
    }

    fn make_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }
}

/// What a run that failed has to say.
fn finding(target: &str, said: &str, log: &Path) -> String {
    // The panic's own words, else libFuzzer's.
    let why = said
        .lines()
        .skip_while(|line| !line.contains("panicked at"));
    let mut why: Vec<&str> = why.take(2).collect();
    if why.is_empty() {
        why = said
            .lines()
            .filter(|line| line.contains("ERROR:"))
            .collect();
    }
    let reproduce = match after(said, "Test unit written to ") {
        Some(input) => format!("cargo xtask fuzz {target} --input {input}"),
        None => format!("cargo xtask fuzz {target}"),
    };
    format!(
        "fuzzing `{target}` failed:\n  {}\n  see {}; to run it again:\n    {reproduce}",
        why.join("\n  "),
        log.display()
    )
}

/// The rest of the line behind `mark`.
fn after<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(mark)?;
    rest.lines().next().map(str::trim)
}

/// Builds cargo-fuzz once, and returns the path of the binary.
fn provide_cargo_fuzz(workspace: &Workspace) -> Result<PathBuf> {
    let name = format!("cargo-fuzz-{CARGO_FUZZ_VERSION}");
    let root = workspace.cache.join(name);
    let program = root.join("bin/cargo-fuzz");
    let works = || command::output(Command::new(&program).arg("--version"));
    if works().is_ok() {
        return Ok(program);
    }
    eprintln!("xtask: building cargo-fuzz {CARGO_FUZZ_VERSION} (about 90 s, once)");
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    let mut install = workspace.cargo();
    install
        .args(["install", "cargo-fuzz", "--force", "--locked", "--quiet"])
        .args(["--version", CARGO_FUZZ_VERSION, "--root"])
        .arg(&root)
        .current_dir(&root)
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS");
    command::run(&mut install).context("build cargo-fuzz")?;
    works().context("start the cargo-fuzz just built")?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PANIC: &str = "\
INFO: Seed: 1
thread '<unnamed>' panicked at targets/unwind.rs:51:9:
4096 frames
note: run with `RUST_BACKTRACE=1`
==7== ERROR: libFuzzer: deadly signal
Test unit written to target/fuzz/failures/unwind-crash-0a
Base64: AA==
";

    #[test]
    fn a_finding_says_what_failed_and_how_to_see_it_again() {
        let text = finding("unwind", PANIC, Path::new("the.log"));
        assert!(
            text.contains("targets/unwind.rs:51:9:\n  4096 frames\n"),
            "{text}"
        );
        let line = "cargo xtask fuzz unwind --input target/fuzz/failures/unwind-crash-0a";
        assert!(text.ends_with(line), "{text}");
    }

    #[test]
    fn a_finding_without_a_panic_has_libfuzzers_words() {
        let said = "x\n==7== ERROR: libFuzzer: timeout after 10 seconds\n";
        let text = finding("walk", said, Path::new("the.log"));
        assert!(text.contains("timeout after 10 seconds"), "{text}");
        assert!(text.ends_with("cargo xtask fuzz walk"), "{text}");
    }
}
