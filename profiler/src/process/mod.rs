//! Processes: who they are, what code they have mapped. Reads `/proc`; knows
//! nothing of samples.

mod call_frames;
pub mod code;
mod descriptors;
mod goroutines;
mod maps;
mod object;
mod proof;
mod runtimes;
mod select;
mod waits;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

pub use descriptors::open_by_kind;
pub use goroutines::{Layout, NoLayout};
pub use maps::{MAX_MAPPINGS, MapsLine, parse as parse_maps};
pub use object::{Code, Object, Objects};
pub use select::{Considered, Depth, Selection, all_pids, code_bytes, is_alive, process_of_thread};
pub use waits::span_layout;

/// What `/proc/PID/maps` calls the code that the kernel maps into each process.
/// There is no file behind it, but it is built like one.
pub const VDSO: &str = "[vdso]";
/// How long to wait before a process's mappings are read again because an
/// address lay in none of them.
const REREAD_AFTER: Duration = Duration::from_millis(200);

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Process id, in the pid namespace goprof runs in.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// The executable, as the process sees it.
    pub exe: String,
}

impl Identity {
    /// Who the process is now.
    ///
    /// # Errors
    /// It is gone or a kernel thread, or `/proc` does not let us see it.
    pub fn read(pid: u32) -> std::io::Result<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let exe = fs::read_link(folder.join("exe"))?;
        let exe = exe.to_string_lossy();
        Ok(Self {
            pid,
            comm: comm(&folder),
            exe: exe.strip_suffix(" (deleted)").unwrap_or(&exe).to_owned(),
        })
    }
}

/// A program that runs in a process: what stands between an exec and the next,
/// or the exit.
pub struct Process {
    /// Process id, in the pid namespace goprof runs in.
    pub pid: u32,
    /// Its name at first sight.
    pub comm: String,
    /// The executable, as the process sees it.
    pub exe: String,
    /// The id of its cgroup, from its first sample; 0 before.
    pub cgroup_id: u64,
    mappings: Vec<Mapped>,
    /// See [`Process::go_object`].
    go: Option<Arc<Object>>,
    read_at: Instant,
    code: Mutex<code::Remembered>,
}

/// An executable mapping and what is behind it.
#[derive(Clone)]
pub struct Mapped {
    /// First address.
    pub start: u64,
    /// Address past the last.
    pub end: u64,
    /// Offset of `start` in the file, in bytes.
    pub offset: u64,
    /// The file, `[vdso]` and the like, or empty.
    pub path: String,
    /// Whether there is a file.
    pub has_file: bool,
    /// The file, where it could be opened; of the vdso a copy.
    pub object: Option<Arc<Object>>,
    /// What to subtract from an address to get the file's own (link-time)
    /// address; for Go objects only.
    bias: Option<u64>,
}

impl Mapped {
    /// The link-time address in the Go object behind this mapping.
    pub fn go_address(&self, address: u64) -> Option<u64> {
        Some(address.wrapping_sub(self.bias?))
    }

    /// The offset in the file of an address.
    pub fn file_offset(&self, address: u64) -> u64 {
        (address - self.start).wrapping_add(self.offset)
    }
}

impl Clone for Process {
    /// For whoever changes a process that somebody else looks at, too. What was
    /// asked about the code goes over to the copy: only the newest is asked.
    fn clone(&self) -> Self {
        let mut code = self.code.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            pid: self.pid,
            comm: self.comm.clone(),
            exe: self.exe.clone(),
            cgroup_id: self.cgroup_id,
            mappings: self.mappings.clone(),
            go: self.go.clone(),
            read_at: self.read_at,
            code: Mutex::new(std::mem::take(&mut code)),
        }
    }
}

impl Process {
    /// Looks at a process as it is now.
    ///
    /// # Errors
    /// It is gone, or `/proc` does not let us see it.
    pub fn read(pid: u32, objects: &mut Objects) -> std::io::Result<Self> {
        Self::of(Identity::read(pid)?, objects)
    }

    /// Looks at what the process of this identity has mapped now.
    ///
    /// # Errors
    /// It is gone, or `/proc` does not let us see it.
    pub fn of(identity: Identity, objects: &mut Objects) -> std::io::Result<Self> {
        let pid = identity.pid;
        let text = fs::read(format!("/proc/{pid}/maps"))?;
        let open = |line: &MapsLine| object::open_mapped(pid, line);
        Ok(Self::from_maps(identity, &text, objects, open))
    }

    /// A process whose `/proc/PID/maps` reads `text`; `open` opens the file of
    /// a mapping that `objects` does not know yet, and what stands for one
    /// behind the mapping [`VDSO`].
    pub fn from_maps(
        identity: Identity,
        text: &[u8],
        objects: &mut Objects,
        open: impl Fn(&MapsLine) -> Option<File>,
    ) -> Self {
        let mappings = mappings(text, objects, open);
        Self {
            pid: identity.pid,
            comm: identity.comm,
            cgroup_id: 0,
            go: runtimes::choose(&mappings, &identity.exe),
            exe: identity.exe,
            mappings,
            read_at: Instant::now(),
            code: Mutex::default(),
        }
    }

    /// The mapping that holds `address`.
    pub fn locate(&self, address: u64) -> Option<&Mapped> {
        let after = self.mappings.partition_point(|m| m.start <= address);
        let mapped = self.mappings.get(after.checked_sub(1)?)?;
        (address < mapped.end).then_some(mapped)
    }

    fn is_refresh_due(&self) -> bool {
        self.read_at.elapsed() >= REREAD_AFTER
    }

    /// Forgets what was asked about the code: it is found again where needed.
    pub fn forget_code(&self) {
        let mut code = self.code.lock().unwrap_or_else(PoisonError::into_inner);
        *code = code::Remembered::default();
    }

    /// Reads the mappings again, unless that was done a moment ago. What was
    /// known stays known: earlier samples may lie in mappings gone since. Says
    /// whether they were read.
    pub fn refresh(&mut self, objects: &mut Objects) -> bool {
        if !self.is_refresh_due() {
            return false;
        }
        self.read_at = Instant::now();
        let Ok(text) = fs::read(format!("/proc/{}/maps", self.pid)) else {
            return false;
        };
        let open = |line: &MapsLine| object::open_mapped(self.pid, line);
        for mapped in mappings(&text, objects, open) {
            let known = self
                .mappings
                .iter()
                .any(|old| old.start < mapped.end && mapped.start < old.end);
            if !known {
                self.mappings.push(mapped);
            }
        }
        self.mappings.sort_by_key(|mapped| mapped.start);
        if self.go.is_none() {
            self.go = runtimes::choose(&self.mappings, &self.exe);
        }
        true
    }
}

fn comm(folder: &Path) -> String {
    let bytes = fs::read(folder.join("comm")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

fn mappings(
    text: &[u8],
    objects: &mut Objects,
    open: impl Fn(&MapsLine) -> Option<File>,
) -> Vec<Mapped> {
    let mapped = maps::parse(text).into_iter().map(|line| {
        let object = (line.inode != 0 || line.path == VDSO)
            .then(|| objects.of_mapping(&line, &open))
            .flatten();
        let bias = object
            .as_ref()
            .and_then(|object| object.go()?.file_offset_to_vaddr(line.offset))
            .map(|vaddr| line.start.wrapping_sub(vaddr));
        Mapped {
            start: line.start,
            end: line.end,
            offset: line.offset,
            path: line.path,
            has_file: line.inode != 0,
            object,
            bias,
        }
    });
    mapped.collect()
}

/// Index of a [`Process`] in a [`ProcessTable`]; no other has it while the process
/// is in the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessIndex(pub u32);

/// The processes whose samples are held, and which of them runs under each pid
/// now.
#[derive(Default)]
pub struct ProcessTable {
    processes: foldhash::HashMap<ProcessIndex, Arc<Process>>,
    next: u32,
    current: HashMap<u32, ProcessIndex>,
    /// The files they have mapped.
    pub objects: Objects,
}

impl ProcessTable {
    /// Adds a process; samples of its pid are its own from now on.
    pub fn insert(&mut self, process: Process) -> ProcessIndex {
        // Months of short programs come around to the first index again, which
        // may be in use still.
        while self.processes.contains_key(&ProcessIndex(self.next)) {
            self.next = self.next.wrapping_add(1);
        }
        let index = ProcessIndex(self.next);
        self.next = self.next.wrapping_add(1);
        self.current.insert(process.pid, index);
        self.processes.insert(index, Arc::new(process));
        index
    }

    /// Samples of `pid` belong to nobody from now on.
    pub fn forget(&mut self, pid: u32) {
        self.current.remove(&pid);
    }

    /// The process that runs under `pid` now.
    pub fn current(&self, pid: u32) -> Option<ProcessIndex> {
        self.current.get(&pid).copied()
    }

    /// The pids that belong to a process now.
    pub fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.current.keys().copied()
    }

    /// The processes that run now.
    pub fn running(&self) -> impl Iterator<Item = &Arc<Process>> + '_ {
        self.current
            .values()
            .filter_map(|index| self.processes.get(index))
    }

    /// A process by its index, which must be one that the table still has.
    pub fn get(&self, index: ProcessIndex) -> &Process {
        &self.processes[&index]
    }

    /// Notes the cgroup that a sample of the process named.
    pub fn note_cgroup(&mut self, index: ProcessIndex, cgroup_id: u64) {
        if let Some(process) = self.processes.get_mut(&index)
            && process.cgroup_id != cgroup_id
        {
            Arc::make_mut(process).cgroup_id = cgroup_id;
        }
    }

    /// Reads a process's mappings again; see [`Process::refresh`].
    pub fn refresh(&mut self, index: ProcessIndex) -> bool {
        let Some(process) = self.processes.get_mut(&index) else {
            return false;
        };
        process.is_refresh_due() && Arc::make_mut(process).refresh(&mut self.objects)
    }

    /// Takes the processes out that run no more, and returns a table of all there
    /// were: for a window that has their samples. Forgets the files that no
    /// process has used since the last call.
    pub fn split_off(&mut self) -> ProcessTable {
        let all = self.processes.clone();
        let running: HashSet<ProcessIndex> = self.current.values().copied().collect();
        self.processes.retain(|index, _| running.contains(index));
        self.objects.forget_unused();
        ProcessTable {
            processes: all,
            ..ProcessTable::default()
        }
    }

    /// Lets go of what was read of files, and of what was remembered of code:
    /// both are had again where needed.
    pub fn release(&self) {
        let mut released = HashSet::new();
        for process in self.processes.values() {
            process.forget_code();
            let objects = process.mappings.iter().filter_map(|m| m.object.as_ref());
            for object in objects {
                if released.insert(Arc::as_ptr(object)) {
                    object.release();
                }
            }
        }
        self.objects.release();
    }

    /// Whether a process is in the table.
    pub fn contains(&self, index: ProcessIndex) -> bool {
        self.processes.contains_key(&index)
    }

    /// How many are in the table.
    pub fn len(&self) -> usize {
        self.processes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(table: &mut ProcessTable, pid: u32) -> ProcessIndex {
        let identity = Identity {
            pid,
            comm: format!("p{pid}"),
            exe: String::new(),
        };
        let process = Process::from_maps(identity, b"", &mut table.objects, |_| None);
        table.insert(process)
    }

    #[test]
    fn who_runs_no_more_leaves_the_table_but_not_what_was_split_off() {
        let mut table = ProcessTable::default();
        let (first, second) = (add(&mut table, 1), add(&mut table, 2));
        table.forget(1);
        let before = table.split_off();
        assert_eq!((before.len(), table.len()), (2, 1));
        assert_eq!(before.get(first).pid, 1);
        assert!(!table.contains(first));
        assert_eq!(table.get(second).pid, 2);
        assert_eq!(table.current(2), Some(second));
    }

    #[test]
    fn what_is_noted_later_does_not_change_what_was_split_off() {
        let mut table = ProcessTable::default();
        let index = add(&mut table, 1);
        let before = table.split_off();
        table.note_cgroup(index, 7);
        assert_eq!(before.get(index).cgroup_id, 0);
        assert_eq!(table.get(index).cgroup_id, 7);
    }

    #[test]
    fn an_index_in_use_is_not_given_again() {
        let mut table = ProcessTable::default();
        let old = add(&mut table, 1);
        table.next = u32::MAX;
        let last = add(&mut table, 2);
        let new = add(&mut table, 3);
        assert_eq!(last, ProcessIndex(u32::MAX));
        assert_ne!(new, old);
        assert_eq!(table.get(old).pid, 1);
        assert_eq!(table.get(new).pid, 3);
    }

    /// A process of a program that no other test looks at.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn start() -> Self {
            let sleep = std::process::Command::new("sleep").arg("60").spawn();
            let sleeper = Self(sleep.unwrap());
            let exe = format!("/proc/{}/exe", sleeper.0.id());
            // Until then it is this one's copy.
            while std::fs::read_link(&exe).unwrap() == std::env::current_exe().unwrap() {
                std::thread::yield_now();
            }
            sleeper
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn files_are_opened_once_and_forgotten_when_nobody_uses_them() {
        let (mut table, mut other) = (ProcessTable::default(), ProcessTable::default());
        let sleeper = Sleeper::start();
        let pid = sleeper.0.id();
        let open = |table: &mut ProcessTable| table.objects.of_executable(pid).unwrap();
        drop(open(&mut table));
        assert_eq!(table.objects.len(), 1);
        table.split_off();
        assert_eq!(table.objects.len(), 1, "used since the last time");
        let held = open(&mut table);
        table.split_off();
        table.split_off();
        assert_eq!(table.objects.len(), 1, "in use");
        assert!(Arc::ptr_eq(&held, &open(&mut other)), "opened once");
        drop(held);
        table.split_off();
        assert_eq!(table.objects.len(), 0, "remembered elsewhere is not in use");
        let again = open(&mut table);
        other.split_off();
        other.split_off();
        assert_eq!(other.objects.len(), 1, "in use by another table");
        drop(again);
        other.split_off();
        assert_eq!(other.objects.len(), 0);
    }
}
