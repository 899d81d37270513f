//! Processes in cgroups of any name, and who goprof says that they are.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
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
        static MADE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = MADE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let top = mount.join(format!("goprof-test-{}-{number}", std::process::id()));
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

    /// Its id.
    #[track_caller]
    pub fn id(&self) -> u64 {
        fs::metadata(&self.folder).expect("look at a cgroup").ino()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let mut folder = self.folder.as_path();
        // A process that was just killed stays in its cgroup for a moment.
        let deadline = Instant::now() + Duration::from_secs(5);
        while folder.starts_with(&self.top) {
            if fs::remove_dir(folder).is_err() {
                if Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            let Some(above) = folder.parent() else { break };
            folder = above;
        }
    }
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
