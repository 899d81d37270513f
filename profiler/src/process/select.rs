//! Which processes are wanted.

use std::fs;

use regex::Regex;

use super::{Process, ProcessTable};

/// Most generations looked through for an ancestor.
const MAX_GENERATIONS: usize = 64;

/// A choice of processes. All but [`Selection::Pids`] may match processes that
/// begin later.
#[derive(Debug, Clone)]
pub enum Selection {
    /// These, whatever program they run.
    Pids(Vec<u32>),
    /// Every Go process.
    All,
    /// Every Go process whose name, or whose executable's name, matches.
    Name(Regex),
    /// Every Go process among the descendants of this process.
    DescendantsOf(u32),
}

impl Selection {
    /// Whether programs that begin during the recording can be wanted, other
    /// than those that a wanted process itself begins.
    pub fn watches_execs(&self) -> bool {
        !matches!(self, Selection::Pids(_))
    }

    /// Whether `process`, which is a Go process, is wanted.
    pub fn wants(&self, process: &Process) -> bool {
        match self {
            Selection::Pids(pids) => pids.contains(&process.pid),
            Selection::All => true,
            Selection::Name(name) => {
                let exe = process.exe.rsplit('/').next().unwrap_or_default();
                name.is_match(&process.comm) || name.is_match(exe)
            }
            Selection::DescendantsOf(ancestor) => descends_from(process.pid, *ancestor),
        }
    }
}

fn descends_from(pid: u32, ancestor: u32) -> bool {
    let mut pid = pid;
    for _ in 0..MAX_GENERATIONS {
        match parent(pid) {
            Some(parent) if parent == ancestor => return true,
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

fn parent(pid: u32) -> Option<u32> {
    status_field(pid, "PPid:")
}

/// A number out of `/proc/PID/status`.
fn status_field(pid: u32, key: &str) -> Option<u32> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    String::from_utf8_lossy(&status)
        .lines()
        .find_map(|line| line.strip_prefix(key))?
        .trim()
        .parse()
        .ok()
}

/// The process that `pid` is a thread of, where it is not a process itself.
pub fn process_of_thread(pid: u32) -> Option<u32> {
    status_field(pid, "Tgid:").filter(|process| *process != pid)
}

/// Whether `pid` is a process with at least one thread that has not exited.
pub fn is_alive(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    // A process that has exited but was not waited for shows its main thread
    // alone, as a zombie.
    match threads.take(2).count() {
        0 => false,
        1 => !fs::read(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            let stat = String::from_utf8_lossy(&stat);
            let state = stat.rsplit(')').next().unwrap_or("").trim_start();
            state.starts_with(['Z', 'X'])
        }),
        _ => true,
    }
}

/// Every pid there is, goprof's own left out.
pub fn all_pids() -> Vec<u32> {
    let own = std::process::id();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .collect()
}

impl ProcessTable {
    /// Looks at what runs under `pid` now and, if it is a Go program that
    /// `selection` wants, adds it.
    pub fn consider(&mut self, pid: u32, selection: &Selection) -> Considered {
        let exe = match self.objects.of_executable(pid) {
            Ok(exe) => exe,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Considered::Gone,
            Err(error) => return Considered::Unreadable(error),
        };
        if exe.go().is_none() {
            return Considered::Other(exe);
        }
        match Process::read(pid, &mut self.objects) {
            Ok(process) if selection.wants(&process) => {
                self.insert(process);
                Considered::Wanted
            }
            Ok(_) => Considered::Other(exe),
            Err(_) => Considered::Gone,
        }
    }
}

/// What became of a look at a process.
pub enum Considered {
    /// It is wanted and was added.
    Wanted,
    /// It is something else: not Go, or not selected. What it runs is given.
    Other(std::sync::Arc<super::Object>),
    /// It is gone, or is a kernel thread.
    Gone,
    /// Its executable cannot be read.
    Unreadable(std::io::Error),
}
