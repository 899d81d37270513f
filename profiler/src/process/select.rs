//! Which processes are wanted.

use std::{fs, io::ErrorKind};

use regex::Regex;

use super::{Identity, MapsLine, Process, ProcessTable, object::open_mapped};

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

    /// Whether `process` is wanted if it is a Go process.
    pub fn wants(&self, process: &Identity) -> bool {
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
    let mut at = pid;
    for _ in 0..MAX_GENERATIONS {
        match parent(at) {
            Some(parent) if parent == ancestor => return true,
            Some(parent) if parent > 1 => at = parent,
            // One in between has just exited, so that another stands in for it.
            None if at != pid => at = pid,
            _ => return false,
        }
    }
    false
}

fn parent(pid: u32) -> Option<u32> {
    status_field(pid, "PPid:")
}

/// How many bytes of the process's mappings are code; None where it is gone.
/// A kernel's sum that costs a fraction of what the list of mappings does.
pub fn code_bytes(pid: u32) -> Option<u64> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let kb = |key| {
        field(&status, key)?
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    };
    // The program's own and all else (`fs/proc/task_mmu.c`).
    Some((kb("VmExe:")? + kb("VmLib:")?) * 1024)
}

/// A number out of `/proc/PID/status`.
fn status_field(pid: u32, key: &str) -> Option<u32> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    field(&status, key)?.parse().ok()
}

/// What follows a key in `/proc/PID/status`.
fn field<'s>(status: &'s [u8], key: &str) -> Option<&'s str> {
    status
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(key.as_bytes()))
        .and_then(|value| std::str::from_utf8(value).ok())
        .map(str::trim)
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

/// How closely a process is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Its program alone: all there is of one that has just begun.
    Program,
    /// Also the libraries it has mapped: of a program in another language one
    /// may be Go. Takes a look at each.
    Libraries,
}

impl ProcessTable {
    /// Looks at what runs under `pid` now and, if it is a Go process that
    /// `selection` wants, adds it.
    pub fn consider(&mut self, pid: u32, selection: &Selection, depth: Depth) -> Considered {
        let found = match self.objects.find_executable(pid) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return Considered::Gone,
            Err(error) => return Considered::Unreadable(error),
        };
        // To look at a file takes a while; a short program may be gone then.
        let before = found.is_new().then(|| Glance::at(pid, selection));
        let exe = match self.objects.look_at(found) {
            Ok(exe) => exe,
            Err(error) => return Considered::Unreadable(error),
        };
        if exe.go().is_none() && depth == Depth::Program {
            return Considered::Other(exe);
        }
        let Ok(glance) = before.unwrap_or_else(|| Glance::at(pid, selection)) else {
            return Considered::Gone;
        };
        if !glance.is_wanted {
            return Considered::Other(exe);
        }
        let open = |line: &MapsLine| open_mapped(pid, line);
        let objects = &mut self.objects;
        let process = Process::from_maps(glance.identity, &glance.maps, objects, open);
        if process.go_object().is_some() {
            self.insert(process);
            Considered::Wanted
        } else if is_alive(pid) {
            Considered::Other(exe)
        } else {
            Considered::Gone
        }
    }
}

/// What there is to know of a process that is quickly read.
struct Glance {
    identity: Identity,
    is_wanted: bool,
    /// Its mappings, if it is wanted.
    maps: Vec<u8>,
}

impl Glance {
    /// Fails where the process is gone.
    fn at(pid: u32, selection: &Selection) -> std::io::Result<Self> {
        let identity = Identity::read(pid)?;
        // Asked first: it costs less than the mappings.
        let is_wanted = selection.wants(&identity);
        let maps = match is_wanted {
            true => fs::read(format!("/proc/{pid}/maps"))?,
            false => Vec::new(),
        };
        // Of one that exits there is still a name, but no memory and soon no
        // parent.
        if maps.is_empty() && !is_alive(pid) {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(Self {
            identity,
            is_wanted,
            maps,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_status_are_found() {
        // A name may be anything.
        let status = b"Name:\tPPid:\xff\nPPid:\t12\nVmLib:\t    1536 kB\n";
        assert_eq!(field(status, "PPid:"), Some("12"));
        assert_eq!(field(status, "VmLib:"), Some("1536 kB"));
        assert_eq!(field(status, "VmExe:"), None);
    }

    #[test]
    fn code_is_counted() {
        let bytes = code_bytes(std::process::id()).unwrap();
        assert!(bytes > 100_000, "{bytes}");
        assert_eq!(code_bytes(0), None);
    }
}
