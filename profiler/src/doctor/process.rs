//! Process: one process by its pid, what runs in it and where its file is.
//! Looks from outside; the process notices nothing.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::PathBuf};

use serde::Serialize;

use super::{Check, memory, place::status_field, program};
use crate::process::{Objects, Process, is_alive, process_of_thread};

/// What was found about one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessReport {
    /// Its pid.
    pub pid: u32,
    /// Its name, empty where it has none.
    pub comm: String,
    /// What was looked at, until the first failure.
    pub checks: Vec<Check>,
}

/// Looks at a process and the program in it.
pub fn process(pid: u32) -> ProcessReport {
    let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    ProcessReport {
        pid,
        comm: status_field(&status, "Name").unwrap_or_default().to_owned(),
        checks: checks(pid, &status),
    }
}

/// Checks what needs no rights: that `pid` is a process. Says what it is else,
/// with the remedy if there is one.
///
/// # Errors
/// There is none, or it is a thread.
pub fn existing(pid: u32) -> Result<(), (String, Option<String>)> {
    if !is_alive(pid) {
        return Err((format!("there is no process {pid}"), None));
    }
    match process_of_thread(pid) {
        Some(process) => Err((
            format!("{pid} is a thread of process {process}"),
            Some(format!("use -p {process}")),
        )),
        None => Ok(()),
    }
}

fn checks(pid: u32, status: &str) -> Vec<Check> {
    let check = |found: String| Check::ok("process", "process", found);
    if let Err((found, remedy)) = existing(pid) {
        let remedy = remedy.unwrap_or_else(|| "look for it: pgrep -l NAME".into());
        return vec![check(found).fail(remedy)];
    }
    let mut checks = vec![check(describe(status))];
    let mut objects = Objects::default();
    let object = match objects.of_executable(pid) {
        Ok(object) => object,
        Err(error) => {
            checks.push(unreadable(&error));
            return checks;
        }
    };
    checks.push(file(pid, &object.path));
    let mapped = Process::read(pid, &mut objects);
    checks.extend(program::checks(&object, mapped.as_ref().ok()));
    if let Ok(process) = &mapped
        && process.go_object().is_some()
    {
        checks.push(memory::heap_profile(process));
    }
    checks
}

/// Uid, threads and, for a process of a container, its pid there.
fn describe(status: &str) -> String {
    let field = |key: &str| status_field(status, key);
    let uid = field("Uid").and_then(|ids| ids.split_whitespace().next());
    let mut text = format!("uid {}", uid.unwrap_or("unknown"));
    match field("Threads") {
        Some("1") => text.push_str(", 1 thread"),
        Some(threads) => text.push_str(&format!(", {threads} threads")),
        None => {}
    }
    let mut pids = field("NSpid").unwrap_or_default().split_whitespace();
    if let (Some(_), Some(inner)) = (pids.next(), pids.next_back()) {
        text.push_str(&format!("; pid {inner} in its container"));
    }
    text
}

fn unreadable(error: &io::Error) -> Check {
    let check = |found: String| Check::ok("file", "file", found);
    match error.kind() {
        io::ErrorKind::NotFound => check("none: a kernel thread, or just exited".into())
            .fail("choose a process that runs a Go program"),
        io::ErrorKind::PermissionDenied => check("cannot be read: permission denied".into())
            .fail("run goprof as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"),
        _ => check(format!("cannot be read: {error}")).fail("see that the file can be read"),
    }
}

/// Whether the file that runs is still the one at its path.
fn file(pid: u32, path: &str) -> Check {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let inside = path.strip_prefix('/').unwrap_or(path);
    let running = fs::metadata(format!("/proc/{pid}/exe"));
    let now = fs::metadata(PathBuf::from(format!("/proc/{pid}/root")).join(inside));
    let identity = |status: fs::Metadata| (status.dev(), status.ino());
    judge_file(path, running.ok().map(identity), now.ok().map(identity))
}

fn judge_file(path: &str, running: Option<(u64, u64)>, now: Option<(u64, u64)>) -> Check {
    let found = match now {
        _ if running.is_some() && running == now => path.to_owned(),
        Some(_) => format!("{path}, replaced since; goprof reads the one that runs"),
        None => format!("{path}, deleted since; goprof reads it all the same"),
    };
    Check::ok("file", "file", found)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_container_process_tells_its_pid_there() {
        let status = "Name:\tserver\nUid:\t1000\t1000\t1000\t1000\nThreads:\t7\nNSpid:\t812\t1\n";
        assert_eq!(
            describe(status),
            "uid 1000, 7 threads; pid 1 in its container"
        );
        let status = "Uid:\t0\t0\t0\t0\nThreads:\t1\nNSpid:\t812\n";
        assert_eq!(describe(status), "uid 0, 1 thread");
    }

    #[test]
    fn the_file_that_runs_is_compared_with_its_path() {
        let found = |running, now| judge_file("/bin/a", running, now).found;
        assert_eq!(
            judge_file("/bin/a", Some((1, 2)), Some((1, 2))).found,
            "/bin/a"
        );
        assert!(found(Some((1, 2)), None).starts_with("/bin/a, deleted"));
        assert!(found(Some((1, 2)), Some((1, 3))).starts_with("/bin/a, replaced"));
    }

    #[test]
    fn nothing_runs_under_a_pid_past_the_last() {
        let report = process(u32::MAX >> 2);
        assert_eq!(report.checks.len(), 1);
        assert_eq!(report.checks[0].status, Status::Fail);
        assert!(report.checks[0].found.contains("there is no process"));
    }

    #[test]
    fn this_test_is_no_go_program() {
        let report = process(std::process::id());
        let last = report.checks.last().unwrap();
        assert_eq!((last.id, last.status), ("program", Status::Fail));
        assert!(last.found.contains("not a Go program"), "{}", last.found);
    }
}
