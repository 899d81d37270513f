//! Processes in cgroups of any name, and who goprof says that they are.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use goprof::identity::{Identifier, Program, Target};
use goprof::process::{Objects, Process};

const REMEDY: &str = "this test makes cgroups: run it as root, with /sys/fs/cgroup mounted";

/// A cgroup made for a test, with those above it. Dropping it removes them, once
/// no process is in them.
pub struct Cgroup {
    top: PathBuf,
    folder: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup `path` (`/a/b`) in the hierarchy mounted at `mount`,
    /// below one that is this test's own.
    #[track_caller]
    pub fn make(mount: &Path, path: &str) -> Self {
        let top = mount.join(format!("goprof-test-{}", unique()));
        let folder = top.join(path.trim_start_matches('/'));
        fs::create_dir_all(&folder)
            .unwrap_or_else(|e| panic!("make the cgroup {}: {e}; {REMEDY}", folder.display()));
        Self { top, folder }
    }

    /// Puts a process in.
    #[track_caller]
    pub fn put(&self, pid: u32) {
        fs::write(self.folder.join("cgroup.procs"), pid.to_string())
            .unwrap_or_else(|e| panic!("put {pid} in {}: {e}", self.folder.display()));
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its id.
    #[track_caller]
    pub fn id(&self) -> u64 {
        fs::metadata(&self.folder).expect("look at a cgroup").ino()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.top);
    }
}

/// The name of a cgroup at the root of every hierarchy, for a container runtime
/// to put containers in. Dropping it removes it, once no process is in it.
pub struct CgroupName(String);

impl CgroupName {
    /// A name that nobody else has: `/goprof-test-…`.
    pub fn new() -> Self {
        Self(format!("/goprof-test-{}", unique()))
    }

    /// A path below it.
    pub fn path(&self, below: &str) -> String {
        format!("{}{below}", self.0)
    }
}

impl Default for CgroupName {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for CgroupName {
    fn drop(&mut self) {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
        let hierarchies = hierarchies.map(|entry| entry.path());
        for hierarchy in hierarchies.chain([root.to_path_buf()]) {
            remove(&hierarchy.join(self.0.trim_start_matches('/')));
        }
    }
}

/// Removes a cgroup and all below. A process that was just killed stays in its
/// cgroup for a moment.
fn remove(folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while folder.exists() && Instant::now() < deadline {
        remove_once(folder);
        if folder.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove_once(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_once(&entry.path());
    }
    let _ = fs::remove_dir(folder);
}

fn unique() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    format!("{}-{number}", std::process::id())
}

/// Where cgroup v2 is mounted.
#[track_caller]
pub fn unified() -> &'static Path {
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    mounts
        .into_iter()
        .find(|mount| mount.join("cgroup.controllers").exists())
        .unwrap_or_else(|| panic!("no cgroup v2 here; {REMEDY}"))
}

/// What a process runs, as a recording sees it.
#[track_caller]
pub fn program(pid: u32) -> Program {
    let process = Process::read(pid, &mut Objects::default());
    Program::of(&process.unwrap_or_else(|e| panic!("look at process {pid}: {e}")))
}

/// Identifies a process until `is_done`, as an agent does.
#[track_caller]
pub fn identify_until(
    identifier: &Identifier,
    pid: u32,
    program: &Program,
    limit: Duration,
    is_done: impl Fn(&Target) -> bool,
) -> Target {
    let deadline = Instant::now() + limit;
    loop {
        let target = identifier.identify(pid, program);
        if is_done(&target) {
            return target;
        }
        assert!(
            Instant::now() < deadline,
            "still {target:?}\n{:?}",
            identifier.sources()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
