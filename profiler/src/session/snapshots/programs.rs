//! The programs of a recording of goroutines: who they are, and a snapshot of each.
//! What cannot be read is told, and asked for no more where it never can be.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::Unread;
use crate::{
    gobinary::StructOffsets,
    gomemory::{Live, Memory as _},
    process::{
        Considered, Depth, NoLayout, Process, ProcessIndex, ProcessTable, Selection, all_pids,
    },
    session::goroutines::{Snapshot, Source, Wanted, Which, snapshot},
};

/// How often programs are looked for that have begun, among all processes and among
/// those that a command starts.
const FIND_EVERY: Duration = Duration::from_millis(250);
const FIND_STARTED_EVERY: Duration = Duration::from_millis(40);
/// How often it is asked anew whether what was no Go program is one: it may have
/// loaded a library since.
const ASK_ANEW_EVERY: Duration = Duration::from_secs(5);

/// The programs of a recording.
pub(super) struct Programs {
    selection: Selection,
    pub table: ProcessTable,
    watched: HashMap<ProcessIndex, Watched>,
    /// What is not wanted, by pid: what it runs.
    others: HashMap<u32, PathBuf>,
    found_at: Instant,
    asked_at: Instant,
}

/// A program.
struct Watched {
    memory: Live,
    layout: Option<Layout>,
    /// Why there will never be a snapshot.
    why_not: Option<String>,
    /// Why there was none the last time.
    failed: Option<String>,
}

/// What does not change while a program runs.
struct Layout {
    offsets: StructOffsets,
    reasons: Vec<String>,
}

/// A snapshot of all programs.
#[derive(Default)]
pub(super) struct TakenOfAll {
    pub snapshots: Vec<(ProcessIndex, Snapshot)>,
    /// Programs that have ended since the last one.
    pub gone: usize,
    /// Programs of which none could be taken this time.
    pub failed: u64,
}

impl Programs {
    pub(super) fn new(selection: Selection) -> Self {
        Self {
            selection,
            table: ProcessTable::default(),
            watched: HashMap::new(),
            others: HashMap::new(),
            found_at: Instant::now(),
            asked_at: Instant::now(),
        }
    }

    /// Changes whose goroutines are wanted.
    pub(super) fn select(&mut self, selection: Selection) {
        if let Selection::Pids(pids) = &selection {
            let running: Vec<u32> = self.table.pids().collect();
            for pid in running.into_iter().filter(|pid| !pids.contains(pid)) {
                self.forget(pid);
            }
        }
        self.selection = selection;
        self.find();
    }

    /// Looks for programs, unless that was done a moment ago.
    pub(super) fn find_if_due(&mut self) {
        let every = match self.selection {
            Selection::DescendantsOf(_) => FIND_STARTED_EVERY,
            _ => FIND_EVERY,
        };
        if self.found_at.elapsed() >= every {
            self.find();
        }
    }

    /// Looks for programs that have begun.
    pub(super) fn find(&mut self) {
        if self.asked_at.elapsed() >= ASK_ANEW_EVERY {
            self.others.clear();
            self.asked_at = Instant::now();
        }
        let pids = match &self.selection {
            Selection::Pids(pids) => pids.clone(),
            _ => all_pids(),
        };
        self.others.retain(|pid, _| pids.contains(pid));
        for pid in pids {
            if self.table.current(pid).is_some() {
                continue;
            }
            let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) else {
                continue;
            };
            if self.others.get(&pid) == Some(&exe) {
                continue;
            }
            match self.table.consider(pid, &self.selection, Depth::Libraries) {
                Considered::Wanted => {}
                Considered::Gone => continue,
                Considered::Other(_) | Considered::Unreadable(_) => {
                    self.others.insert(pid, exe);
                }
            }
            if let Some(index) = self.table.current(pid) {
                // It has ended, or is not to be read: then it is asked again.
                let Ok(memory) = Live::open(pid) else {
                    self.table.forget(pid);
                    continue;
                };
                let mut watched = Watched::new(memory);
                // Before the first snapshot: it takes much longer than one. What keeps
                // it from being done is told when one is taken.
                let _ = watched.learn(self.table.get(index));
                self.watched.insert(index, watched);
            }
        }
        self.found_at = Instant::now();
    }

    fn forget(&mut self, pid: u32) {
        if let Some(index) = self.table.current(pid) {
            self.watched.remove(&index);
        }
        self.table.forget(pid);
    }

    /// Whether a program that was found still runs.
    pub(super) fn is_any_left(&self) -> bool {
        let mut watched = self.watched.values();
        watched.any(|watched| watched.memory.is_there())
    }

    /// Takes a snapshot of each.
    pub(super) fn take(&mut self, which: Which) -> TakenOfAll {
        let mut all = TakenOfAll::default();
        let mut running: Vec<u32> = self.table.pids().collect();
        running.sort_unstable();
        for pid in running {
            let Some(index) = self.table.current(pid) else {
                continue;
            };
            let Some(watched) = self.watched.get_mut(&index) else {
                continue;
            };
            if watched.why_not.is_some() {
                continue;
            }
            match watched.take(self.table.get(index), which) {
                Ok(snapshot) => all.snapshots.push((index, snapshot)),
                Err(_) if !watched.memory.is_there() => {
                    all.gone += 1;
                    self.forget(pid);
                }
                Err(NoLayout::NotYet) => all.failed += 1,
                Err(NoLayout::Unknown(why)) => {
                    all.failed += 1;
                    match watched.layout {
                        None => watched.why_not = Some(why),
                        // It was read before, and may be again.
                        Some(_) => watched.failed = Some(why),
                    }
                }
            }
        }
        all
    }

    /// The programs that run and cannot be read.
    pub(super) fn unread(&self) -> Vec<Unread> {
        let mut unread: Vec<Unread> = self
            .watched
            .iter()
            .filter_map(|(index, watched)| {
                let why = watched.why_not.as_ref().or(watched.failed.as_ref())?;
                let process = self
                    .table
                    .contains(*index)
                    .then(|| self.table.get(*index))?;
                Some(Unread {
                    pid: process.pid,
                    comm: process.comm.clone(),
                    why: why.clone(),
                })
            })
            .collect();
        unread.sort_by_key(|unread| unread.pid);
        unread
    }
}

impl Watched {
    fn new(memory: Live) -> Self {
        Self {
            memory,
            layout: None,
            why_not: None,
            failed: None,
        }
    }

    /// Finds out what does not change while the program runs.
    fn learn(&mut self, process: &Process) -> Result<(), NoLayout> {
        if self.layout.is_some() {
            return Ok(());
        }
        let (offsets, is_proven) = process.struct_offsets(&self.memory)?;
        if !is_proven {
            return Err(NoLayout::NotYet);
        }
        let program = process.go_program(&self.memory);
        let reasons = program.and_then(|program| program.binary.wait_reasons());
        self.layout = Some(Layout {
            offsets,
            reasons: reasons.unwrap_or_default(),
        });
        Ok(())
    }

    fn take(&mut self, process: &Process, which: Which) -> Result<Snapshot, NoLayout> {
        self.learn(process)?;
        let program = process.go_program(&self.memory);
        let (Some(program), Some(layout)) = (program, &self.layout) else {
            return Err(NoLayout::Unknown("its Go code is not mapped".to_owned()));
        };
        let source = Source {
            process,
            program,
            offsets: layout.offsets,
            reasons: layout.reasons.clone(),
            now_ns: None,
            threads: &[],
        };
        let wanted = Wanted {
            runtimes_own: false,
            places: false,
            which,
        };
        let taken = snapshot(&source, wanted).map_err(NoLayout::Unknown)?;
        self.failed = None;
        // What was read of a program that has ended meanwhile may be half of it.
        match self.memory.is_there() {
            true => Ok(taken),
            false => Err(NoLayout::NotYet),
        }
    }
}
