//! Where a program's binary can be when it is profiled: deleted, replaced,
//! in another mount namespace, under another root, in another pid namespace.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

use goprof_tests::go;
use goprof_tests::pprof::Profile;
use goprof_tests::target::Target;
use goprof_tests::{goprof, quiet};

const PROGRAM: &str = "busy_loop";

/// A copy of the busy loop in a directory of its own.
fn copy() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("make a directory");
    let copy = dir.path().join(PROGRAM);
    std::fs::copy(go::build(PROGRAM), &copy).expect("copy the program");
    (dir, copy)
}

/// Records a process for two seconds; its functions must be named, and its
/// mapping must have the path `file`.
#[track_caller]
fn check(pid: u32, file: &Path) {
    let args = ["-p", &pid.to_string(), "-d", "2", "-r", "499"];
    let profile: Profile = goprof::record(&args).profile;
    assert!(profile.total() >= 250, "{} samples", profile.total());
    let (named, frames) = profile.named_share(PROGRAM);
    assert!(named >= 0.99, "{named} of {frames} frames are named");
    for function in ["main.spinThree", "main.spinOne", "main.mix"] {
        let share = profile.cumulative_share(function);
        assert!(share >= 0.1, "{function} has {share}\n{}", profile.top(20));
    }
    let first = &profile.raw.mapping[0];
    assert_eq!(profile.text(first.filename), file.to_str().expect("UTF-8"));
}

#[test]
fn a_deleted_binary_is_named() {
    let (dir, binary) = copy();
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    std::fs::remove_file(&binary).expect("remove the binary");
    check(target.pid(), &binary);
    drop(dir);
}

#[test]
fn a_replaced_binary_is_named_by_what_runs() {
    let (dir, binary) = copy();
    let other = go::build("closures");
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    let new = dir.path().join("new");
    std::fs::copy(other, &new).expect("copy another program");
    std::fs::rename(&new, &binary).expect("put it in the place of the first");
    check(target.pid(), &binary);
}

#[test]
fn a_binary_seen_only_in_another_mount_namespace_is_named() {
    let binary = go::build(PROGRAM);
    let _turn = quiet::measuring();
    let dir = tempfile::tempdir().expect("make a directory");
    let hidden = dir.path().join(PROGRAM);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec"]);
    command.arg("mount -t tmpfs none \"$1\"; cp \"$2\" \"$3\"; exec \"$3\" -duration 5m");
    command.arg("sh").arg(dir.path()).arg(&binary).arg(&hidden);
    let target = Target::start_command(&mut command);
    assert!(!hidden.exists(), "{} is seen from here", hidden.display());
    check(target.descendant(PROGRAM), &hidden);
}

#[test]
fn a_binary_under_another_root_is_named() {
    let (dir, binary) = copy();
    let _turn = quiet::measuring();
    let mut command = Command::new("unshare");
    command.args(["--mount", "chroot"]).arg(dir.path());
    command.arg(format!("/{PROGRAM}")).args(["-duration", "5m"]);
    let target = Target::start_command(&mut command);
    let pid = target.descendant(PROGRAM);
    // A tool that looked at this path in its own root would find this.
    std::fs::write(&binary, "not the program").expect_err("the file is being executed");
    // It shares our mount namespace, where the kernel shows the path from our
    // root.
    check(pid, &binary);
}

#[test]
fn a_process_in_another_pid_namespace_is_profiled() {
    let binary = go::build(PROGRAM);
    let _turn = quiet::measuring();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(&binary).args(["-duration", "5m"]);
    let target = Target::start_command(&mut command);
    let pid = target.descendant(PROGRAM);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read its status");
    let inner = status
        .lines()
        .find(|l| l.starts_with("NSpid:"))
        .expect("its pids");
    assert!(
        inner.ends_with("\t1"),
        "{inner}: not the first of a namespace"
    );
    check(pid, &binary);
}
