//! Running the goprof command itself, as a user does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::command::{self, Outcome, Running};
use crate::pprof::Profile;

const BUILD: &str = "build it with `cargo build --package goprof`, or name another in \
     GOPROF_BIN; `cargo xtask test` does that by itself";

/// The goprof binary: `GOPROF_BIN`, else the newer of the release and the debug
/// build. Panics if there is none, or if the sources are newer.
#[track_caller]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("GOPROF_BIN") {
        return std::path::absolute(path).expect("an absolute path for GOPROF_BIN");
    }
    let builds = ["release", "debug"].map(|p| crate::target_dir().join(p).join("goprof"));
    let newest = builds
        .into_iter()
        .filter_map(|path| Some((modified(&path)?, path)))
        .max();
    let Some((built, path)) = newest else {
        panic!("goprof is not built; {BUILD}")
    };
    let (changed, source) = newest_source(&crate::workspace().join("profiler/src"));
    assert!(
        changed <= built,
        "{} is older than {}; {BUILD}",
        path.display(),
        source.display()
    );
    path
}

/// A command line of goprof, in a directory where a file that it should not
/// have left does no harm.
#[track_caller]
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).current_dir(crate::cache_dir());
    command
}

/// Runs goprof to its end, for at most a minute.
#[track_caller]
pub fn run(args: &[&str]) -> Outcome {
    command::run(&mut command(args), Duration::from_secs(60), BUILD)
}

/// Starts goprof.
#[track_caller]
pub fn start(args: &[&str]) -> Running {
    Running::start(&mut command(args), BUILD)
}

/// Starts a command of goprof that was made with [`command`].
#[track_caller]
pub fn start_command(command: &mut Command) -> Running {
    Running::start(command, BUILD)
}

/// What `goprof record` made.
pub struct Recording {
    /// What it said.
    pub outcome: Outcome,
    /// What it wrote.
    pub profile: Profile,
    /// The file it wrote.
    pub file: PathBuf,
    /// Keeps the file until the test ends.
    #[expect(dead_code, reason = "dropping it removes the file")]
    dir: tempfile::TempDir,
}

impl Recording {
    /// What a goprof that was started otherwise made: a file in a directory that
    /// is to be kept.
    pub fn new(outcome: Outcome, profile: Profile, file: PathBuf, dir: tempfile::TempDir) -> Self {
        Recording {
            outcome,
            profile,
            file,
            dir,
        }
    }
}

/// Runs `goprof record` with these arguments and an output file in a directory
/// of its own; panics unless it succeeds.
#[track_caller]
pub fn record(args: &[&str]) -> Recording {
    let dir = tempfile::tempdir().expect("make a directory for the profile");
    let file = dir.path().join("cpu.pb.gz");
    let outcome = run(&record_args(args, &file)).succeeded();
    Recording {
        profile: Profile::read(&file),
        outcome,
        file,
        dir,
    }
}

/// The arguments of `goprof record` with the output file before any `--`.
fn record_args<'a>(args: &[&'a str], file: &'a Path) -> Vec<&'a str> {
    let mut all = vec!["record", "-o", file.to_str().expect("a UTF-8 path")];
    all.extend(args);
    all
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).ok()?.modified().ok()
}

fn newest_source(dir: &Path) -> (SystemTime, PathBuf) {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("list {}: {e}", dir.display()));
    entries
        .map(|entry| {
            let path = entry.expect("read a directory").path();
            if path.is_dir() {
                newest_source(&path)
            } else {
                (modified(&path).expect("a source file has a time"), path)
            }
        })
        .max()
        .unwrap_or((SystemTime::UNIX_EPOCH, dir.to_path_buf()))
}
