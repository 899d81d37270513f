//! Real servers to profile: Debian's packages, unpacked beside the built
//! programs and never installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command;
use crate::quiet;

const REMEDY: &str = "this test runs on Debian or Ubuntu, where apt-get and dpkg-deb come with \
     the system";

/// Where a package lies unpacked: as if `/` were that directory. Fetches it
/// the first time.
#[track_caller]
pub fn package(name: &str) -> PathBuf {
    let dir = crate::cache_dir().join("debian").join(name);
    if dir.exists() {
        return dir;
    }
    let _turn = quiet::building();
    let making = tempfile::tempdir_in(crate::cache_dir()).expect("make a directory to unpack in");
    // apt drops its rights for downloads and must be able to write here.
    open_to_all(making.path());
    let unpacked = making.path().join("unpacked");
    download(name, making.path());
    let archive = archive_in(making.path(), name);
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("-x").arg(archive).arg(&unpacked);
    command::run(&mut unpack, Duration::from_secs(120), REMEDY).succeeded();
    std::fs::create_dir_all(dir.parent().expect("a parent")).expect("make a directory");
    // Another test may have been faster; its copy is as good.
    if std::fs::rename(&unpacked, &dir).is_err() {
        assert!(dir.exists(), "put the package {name} in place");
    }
    dir
}

/// Where the libraries of a package lie that this system lacks, as
/// `LD_LIBRARY_PATH` has it. Fetches them the first time.
#[track_caller]
pub fn libraries(name: &str) -> String {
    let mut wanted = missing_libraries(name);
    let below: Vec<String> = wanted.iter().flat_map(|l| missing_libraries(l)).collect();
    wanted.extend(below);
    let folders = wanted.iter().flat_map(|library| {
        let root = package(library);
        let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
        ["lib", "usr/lib"].map(|folder| root.join(folder).join(&triplet))
    });
    let folders = folders.filter(|folder| folder.exists());
    let folders: Vec<String> = folders.map(|f| f.display().to_string()).collect();
    folders.join(":")
}

/// The libraries that a package depends on and that are not installed.
#[track_caller]
fn missing_libraries(name: &str) -> Vec<String> {
    let mut depends = Command::new("apt-cache");
    depends.args(["depends", "--no-recommends", "--no-suggests", name]);
    let outcome = command::run(&mut depends, Duration::from_secs(60), REMEDY).succeeded();
    let lines = outcome
        .text()
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    let libraries = lines.filter(|library| library.starts_with("lib"));
    let is_missing = |library: &&str| {
        let mut query = Command::new("dpkg");
        query.args(["--status", library]);
        !command::run(&mut query, Duration::from_secs(60), REMEDY)
            .status
            .success()
    };
    libraries.filter(is_missing).map(str::to_owned).collect()
}

#[track_caller]
fn download(name: &str, dir: &Path) {
    let mut download = Command::new("apt-get");
    download.args(["download", name]).current_dir(dir);
    let outcome = command::run(&mut download, Duration::from_secs(300), REMEDY);
    assert!(
        outcome.status.success(),
        "`{}` failed; if the package list is missing or old, run `apt-get update`\n{}",
        outcome.command,
        outcome.stderr
    );
}

#[track_caller]
fn archive_in(dir: &Path, name: &str) -> PathBuf {
    let entries = std::fs::read_dir(dir).expect("list what apt fetched");
    entries
        .map(|e| e.expect("read a directory").path())
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .unwrap_or_else(|| panic!("apt-get fetched no package {name}"))
}

fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let all = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(dir, all).expect("open a directory to apt");
}
