//! goprof where a machine has not what it needs: no memory for a map, no descriptors
//! for what it attaches, no room on the disk. It says so in a line, leaves nothing
//! half done, and the agent goes on once there is room again.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ::goprof::process::Selection;
use ::goprof::session::{Config, Session};
use ::goprof::symbolize::Event;
use goprof_tests::agent::{self, Agent};
use goprof_tests::disk::Disk;
use goprof_tests::target::Target;
use goprof_tests::{command, go, goprof};

const LIMIT: Duration = Duration::from_secs(30);

/// A cgroup with a memory limit that this process is in until it is dropped.
struct SmallMemory {
    folder: PathBuf,
    /// The `cgroup.procs` of where it was before.
    before: PathBuf,
}

impl SmallMemory {
    #[track_caller]
    fn of(limit_bytes: u64) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").expect("our own cgroup");
        let path = |is_it: fn(&str) -> bool| {
            let mut lines = own.lines().map(|line| line.splitn(3, ':'));
            lines.find_map(|mut fields| {
                let controllers = fields.nth(1)?;
                is_it(controllers).then(|| fields.next().expect("a path"))
            })
        };
        let v1 = path(|controllers| controllers.split(',').any(|one| one == "memory"));
        let root = Path::new("/sys/fs/cgroup");
        let (root, own, file) = match v1 {
            Some(own) => (root.join("memory"), own, "memory.limit_in_bytes"),
            None => {
                let own = path(str::is_empty).expect("a cgroup of version 2");
                // It may be on already.
                let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
                (root.to_owned(), own, "memory.max")
            }
        };
        let folder = root.join(format!("goprof-test-{}", std::process::id()));
        let before = root.join(own.trim_start_matches('/')).join("cgroup.procs");
        fs::create_dir(&folder).expect("make a cgroup, as root");
        let cgroup = Self { folder, before };
        let limit = cgroup.folder.join(file);
        fs::write(limit, limit_bytes.to_string()).expect("a cgroup with a limit of memory");
        let own = std::process::id().to_string();
        fs::write(cgroup.folder.join("cgroup.procs"), own).expect("enter the cgroup");
        cgroup
    }
}

impl Drop for SmallMemory {
    fn drop(&mut self) {
        let own = std::process::id().to_string();
        let _ = fs::write(&self.before, own);
        let _ = fs::remove_dir(&self.folder);
    }
}

#[test]
fn without_memory_for_a_map_nothing_begins_and_a_line_says_so() {
    let prepare = |ring_bytes| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let config = Config {
                ring_bytes,
                ..Config::of(Selection::All, vec![Event::Cpu])
            };
            Session::prepare(config)
                .map(drop)
                .map_err(|e| format!("{e:#}"))
        })
    };
    let small = SmallMemory::of(128 << 20);
    let refused = prepare(512 << 20);
    println!("{refused:?}");
    let why = refused.expect_err("512 MB within 128 MB");
    assert!(!why.contains('\n') && why.contains("RECORDS"), "{why}");
    assert!(why.contains("memory"), "{why}");
    // What there is room for is taken as ever.
    assert_eq!(prepare(1 << 20), Ok(()));
    drop(small);
}

#[test]
fn without_descriptors_what_cannot_be_attached_is_said_in_a_line() {
    let target = Target::start(&go::build("busy_loop"), &[]);
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("p.pb.gz");
    let mut refused = Vec::new();
    for descriptors in [4, 28, 52, 56, 60, 64] {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={descriptors}:{descriptors}"));
        command
            .arg(goprof::binary())
            .args(["record", "-d", "200ms", "-p"]);
        command.arg(target.pid_arg()).arg("-o").arg(&file);
        let outcome = command::run(&mut command, LIMIT, "install util-linux");
        println!(
            "{descriptors}: {} {}",
            outcome.status,
            outcome.stderr.trim_end()
        );
        if outcome.status.success() {
            fs::remove_file(&file).expect("a profile");
            continue;
        }
        assert_eq!(outcome.code(), 1);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        assert!(!file.exists(), "half a profile");
        refused.push(outcome.stderr);
    }
    assert!(refused.len() >= 3, "{refused:#?}");
}

#[test]
fn a_disk_that_is_full_keeps_the_old_profile_and_says_so() {
    let target = Target::start(&go::build("busy_loop"), &[]);
    let disk = Disk::new("size=64k");
    let file = disk.path().join("p.pb.gz");
    fs::write(&file, "precious").expect("write a file");
    disk.fill("full", 0);
    let path = file.to_str().expect("UTF-8");
    for format in ["pprof", "folded"] {
        let args = [
            "record",
            "-d",
            "300ms",
            "-p",
            &target.pid_arg(),
            "-f",
            format,
        ];
        let outcome = goprof::run(&[&args[..], &["-o", path]].concat());
        println!("{}", outcome.stderr);
        assert_eq!(outcome.code(), 1, "{}", outcome.stderr);
        let last = outcome.stderr.lines().last().unwrap_or_default();
        assert!(
            last.contains("No space left") && last.contains(path),
            "{last}"
        );
        assert_eq!(fs::read_to_string(&file).expect("read it"), "precious");
        assert_eq!(
            fs::read_dir(disk.path()).expect("list it").count(),
            2,
            "litter"
        );
    }
}

#[test]
fn an_agent_whose_disk_is_full_counts_what_it_drops_and_goes_on_after() {
    let _target = Target::start(&go::build("busy_loop"), &[]);
    let disk = Disk::new("size=4m");
    let agent = Agent::start(disk.path(), &["--flush", "1s"]);
    agent.wait_for_any("goprof_windows_total{result=\"spooled\"}", 1.0, LIMIT);
    disk.fill("full", 0);
    let dropped = "goprof_spool_dropped_total";
    agent.wait_for_any(dropped, 2.0, LIMIT);
    let failed = agent.metric("goprof_windows_total{result=\"failed\"}");
    let full = agent.metric(dropped);
    fs::remove_file(disk.path().join("full")).expect("make room");
    let before = agent::objects(disk.path()).len();
    std::thread::sleep(Duration::from_secs(2));
    let outcome = agent.stop().succeeded();
    println!(
        "{full} dropped, {failed} windows failed\n{}",
        outcome.stderr
    );
    let after = agent::objects(disk.path()).len();
    assert!(after > before, "{before} objects before, {after} after");
    assert!(
        outcome.stderr.contains("No space left"),
        "{}",
        outcome.stderr
    );
    let left = agent::files(&disk.path().join("spool"));
    let left: Vec<_> = left
        .iter()
        .filter(|path| path.extension().is_some())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
