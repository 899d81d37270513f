//! Python packages from PyPI, installed beside the built programs and never into
//! the system.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{command, quiet};

/// How to get Python, for the message when it is missing.
pub const REMEDY: &str = "install python3 and python3-pip; `.ci/run` does that by itself";

/// The folder that has a package of an exact version, for `PYTHONPATH`. Fetches
/// it the first time.
#[track_caller]
pub fn package(requirement: &str) -> PathBuf {
    let folder = crate::cache_dir().join("python").join(requirement);
    if folder.exists() {
        return folder;
    }
    let _turn = quiet::building();
    let making = tempfile::tempdir_in(crate::cache_dir()).expect("make a folder to install in");
    let installed = making.path().join("installed");
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-cache-dir",
        "--disable-pip-version-check",
    ])
    .arg("--target")
    .arg(&installed)
    .arg(requirement);
    let outcome = command::run(&mut pip, Duration::from_secs(900), REMEDY);
    assert!(
        outcome.status.success(),
        "`{}` failed; {REMEDY}\n{}",
        outcome.command,
        outcome.stderr
    );
    std::fs::create_dir_all(folder.parent().expect("a parent")).expect("make a folder");
    // Another test may have been faster; its copy is as good.
    if std::fs::rename(&installed, &folder).is_err() {
        assert!(folder.exists(), "put {requirement} in place");
    }
    folder
}

/// A Python program that can import a package.
#[track_caller]
pub fn command(requirement: &str, program: &Path) -> Command {
    let mut command = Command::new("python3");
    command
        .arg(program)
        .env("PYTHONPATH", package(requirement))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Runs a Python command to its end and returns what it printed.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> String {
    command::run(command, limit, REMEDY)
        .succeeded()
        .text()
        .to_owned()
}
