//! A recording of goroutines: all there are at a moment, or their time, on the CPU
//! and off it, by snapshots at random moments. Reads the memory of programs, stops
//! none of them and loads nothing.

mod fold;
mod notes;
mod programs;
mod slices;

use std::time::{Duration, Instant, SystemTime};

use super::{
    carry::Carry,
    goroutines::{LeftOut, Snapshot, Which},
};
use crate::{
    aggregate::Window,
    gomemory::Few,
    process::{Process, ProcessIndex, ProcessTable, Selection},
    symbolize::{Event, Naming, SymbolizedWindow, Symbolizer, Taken},
};
use fold::Kept;
use programs::Programs;
use slices::{Slice, Slices};

/// What a snapshot of [`Event::Wall`] looks at of a program: with so many it takes some
/// hundredths of a second however many there are.
const FEW: Few = Few {
    alive: 4096,
    places: 32_768,
};

/// What of a recording, validated.
#[derive(Debug, Clone)]
pub struct SnapshotConfig {
    /// [`Event::Wall`], or [`Event::Goroutine`] for one snapshot at the end.
    pub event: Event,
    /// Whose goroutines.
    pub selection: Selection,
    /// Snapshots a second, on average.
    pub rate_hz: u32,
    /// How long; until it is ended where `None`.
    pub duration: Option<Duration>,
    /// Whether goroutines are told apart.
    pub goroutines: bool,
    /// Whether their labels are.
    pub labels: bool,
    /// Most goroutines of a program that a snapshot of [`Event::Goroutine`] has room
    /// for; those beyond are counted.
    pub most_goroutines: u64,
}

/// A recording of goroutines under way.
pub struct SnapshotSession {
    config: SnapshotConfig,
    programs: Programs,
    window: Window,
    slices: Slices,
    /// The slice whose snapshot comes next.
    next: Slice,
    /// The last snapshot: it stands for its slice once that is over.
    open: Option<(Slice, Vec<(ProcessIndex, Snapshot)>)>,
    carry: Carry,
    facts: SnapshotFacts,
    start: SystemTime,
    /// What slices count from.
    started: Instant,
    /// Where the window begins, from there.
    begin: Duration,
}

/// What was read, and what is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// Moments at which snapshots were taken.
    pub snapshots: u64,
    /// Of these, those that had to wait for the one before to be done.
    pub late: u64,
    /// Goroutines that were seen, each as often as it was.
    pub goroutines: u64,
    /// What these stand for, as of programs of many only some are looked at.
    pub stand_for: u64,
    /// Of these, those that ran: where in their code is not known.
    pub running: u64,
    /// Of these, those whose stack is not whole.
    pub broken: u64,
    /// Labels that could not be read whole.
    pub labels_damaged: u64,
    /// What is not among them; those that changed are, without a stack.
    pub left_out: LeftOut,
    /// Programs that ended.
    pub gone: usize,
    /// Snapshots of single programs that could not be taken.
    pub failed: u64,
    /// Time that the snapshots took.
    pub took: Duration,
    /// CPU time that they took, which is goprof's own.
    pub cpu: Duration,
    /// The longest.
    pub longest: Duration,
}

/// A program whose goroutines cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Why.
    pub why: String,
}

/// A recording that ended, not named yet.
pub struct SnapshotReading {
    taken: Taken,
    window: Window,
    table: ProcessTable,
    facts: SnapshotFacts,
    unread: Vec<Unread>,
}

/// A finished recording of goroutines.
pub struct SnapshotRecording {
    /// The named stacks.
    pub window: SymbolizedWindow,
    /// How many frames have names.
    pub naming: Naming,
    /// What was read, and what is missing.
    pub facts: SnapshotFacts,
    /// Programs of which nothing could be read.
    pub unread: Vec<Unread>,
}

impl SnapshotSession {
    /// Looks for the programs. The time of a recording begins when they are found.
    pub fn start(config: SnapshotConfig) -> Self {
        let mut programs = Programs::new(config.selection.clone());
        programs.find();
        let mean = Duration::from_secs(1) / config.rate_hz.max(1);
        let mut slices = Slices::new(mean, config.duration, fastrand::Rng::new());
        let next = slices.next(Duration::ZERO);
        Self {
            config,
            programs,
            window: Window::default(),
            slices,
            next,
            open: None,
            carry: Carry::default(),
            facts: SnapshotFacts::default(),
            start: SystemTime::now(),
            started: Instant::now(),
            begin: Duration::ZERO,
        }
    }

    /// When [`SnapshotSession::take`] is due.
    pub fn next_at(&self) -> Instant {
        self.started + self.next.at
    }

    /// Takes the snapshot that is due, then looks for programs that have begun.
    pub fn take(&mut self) {
        self.close_slice(None);
        let slice = self.next;
        self.snapshot(slice);
        self.next = self.slices.next(self.started.elapsed());
        self.programs.find_if_due();
    }

    /// Whether a program that was read still runs.
    pub fn is_any_left(&self) -> bool {
        self.programs.is_any_left()
    }

    /// Has these processes read from now on and no others.
    pub fn watch(&mut self, pids: Vec<u32>) {
        self.programs.select(Selection::Pids(pids));
    }

    /// About how much memory the window takes while it is written, in bytes.
    pub fn bytes_written(&self) -> usize {
        self.window.bytes_written()
    }

    /// Takes out what was read since the last call, or since the start, and goes on
    /// without a gap.
    pub fn rotate(&mut self) -> SnapshotReading {
        let end = self.close();
        let unread = self.programs.unread();
        let table = self.programs.table.split_off();
        self.programs.table.release();
        self.split_off(table, unread, end)
    }

    /// Ends the recording.
    pub fn finish(mut self) -> SnapshotReading {
        let end = self.close();
        let unread = self.programs.unread();
        let table = std::mem::take(&mut self.programs.table);
        self.split_off(table, unread, end)
    }

    /// Ends the open slice now, and says when that is. A time of which no snapshot is
    /// gets one.
    fn close(&mut self) -> Duration {
        let now = self.started.elapsed();
        let end = self.config.duration.map_or(now, |end| end.min(now));
        if self.config.event == Event::Goroutine {
            self.programs.find();
            let all = Slice {
                begin: self.begin,
                at: end,
                end,
                is_late: false,
            };
            self.snapshot(all);
            self.close_slice(None);
        } else if self.next.begin < end {
            self.close_slice(None);
            let rest = Slice { end, ..self.next };
            self.snapshot(rest);
            self.close_slice(None);
        } else {
            self.close_slice(Some(end));
        }
        self.next = self.slices.restart(end);
        end
    }

    fn split_off(
        &mut self,
        table: ProcessTable,
        unread: Vec<Unread>,
        end: Duration,
    ) -> SnapshotReading {
        let facts = std::mem::take(&mut self.facts);
        let duration = end.saturating_sub(self.begin);
        let (event, is_wall) = (self.config.event, self.config.event == Event::Wall);
        let mean_ns = duration.as_nanos() / u128::from(facts.snapshots.max(1));
        let taken = Taken {
            all_waits: true,
            event,
            start: self.start + if is_wall { self.begin } else { end },
            duration: if is_wall { duration } else { Duration::ZERO },
            period: match is_wall {
                true => u64::try_from(mean_ns).unwrap_or(u64::MAX),
                false => 1,
            },
        };
        self.begin = end;
        SnapshotReading {
            taken,
            window: std::mem::take(&mut self.window),
            table,
            facts,
            unread,
        }
    }

    /// Takes a snapshot of all programs, which stands for a slice.
    fn snapshot(&mut self, slice: Slice) {
        let (began, cpu_began) = (Instant::now(), thread_cpu());
        let taken = self.programs.take(match self.config.event {
            Event::Wall => Which::Some(FEW),
            _ => Which::First(self.config.most_goroutines),
        });
        let (took, cpu) = (began.elapsed(), thread_cpu().saturating_sub(cpu_began));
        let facts = &mut self.facts;
        facts.snapshots += 1;
        facts.late += u64::from(slice.is_late);
        facts.gone += taken.gone;
        facts.failed += taken.failed;
        facts.took += took;
        facts.cpu += cpu;
        facts.longest = facts.longest.max(took);
        for (_, snapshot) in &taken.snapshots {
            facts.add(snapshot, self.config.event == Event::Wall);
        }
        self.open = Some((slice, taken.snapshots));
        self.slices.cpu = cpu;
    }

    /// Adds the last snapshot to the window, with the time that it stands for: its
    /// slice, until `end` where that ends early.
    fn close_slice(&mut self, end: Option<Duration>) {
        let Some((slice, snapshots)) = self.open.take() else {
            return;
        };
        let stands_for = end.unwrap_or(slice.end).saturating_sub(slice.begin);
        let weight_ns = match self.config.event {
            Event::Wall => Some(i64::try_from(stands_for.as_nanos()).unwrap_or(i64::MAX)),
            _ => None,
        };
        let kept = Kept {
            goroutines: self.config.goroutines,
            labels: self.config.labels,
            weight_ns,
        };
        for (process, snapshot) in snapshots {
            let of = (process, &snapshot);
            fold::add(&mut self.window, of, kept, &mut self.carry);
        }
    }
}

/// CPU time of this thread.
fn thread_cpu() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes a structure of our own.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).ok().filter(|_| done == 0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    seconds.map_or(Duration::ZERO, |seconds| Duration::new(seconds, nanos))
}

impl SnapshotFacts {
    fn add(&mut self, snapshot: &Snapshot, is_wall: bool) {
        let mut left_out = snapshot.left_out;
        // What has ended was there, and has its time; among those there are it has no place.
        left_out.ended *= u64::from(is_wall);
        let seen = snapshot.goroutines.len() as u64 + left_out.changed + left_out.ended;
        self.goroutines += seen;
        self.stand_for += (seen as f64 * snapshot.listing.stands_for()).round() as u64;
        self.running += snapshot.running;
        self.broken += snapshot.broken;
        self.labels_damaged += snapshot.labels_damaged;
        let sum = &mut self.left_out;
        sum.runtimes_own += left_out.runtimes_own;
        sum.changed += left_out.changed;
        sum.ended += left_out.ended;
        sum.nonsense += left_out.nonsense;
        sum.unreadable += left_out.unreadable;
        sum.cut += left_out.cut;
    }
}

impl SnapshotReading {
    /// Takes out what was read of programs that are not `wanted`. Says how often
    /// goroutines of theirs were seen.
    pub fn retain(&mut self, mut wanted: impl FnMut(&Process) -> bool) -> u64 {
        let processes = self.window.processes().into_iter();
        let unwanted = processes.filter(|index| !wanted(self.table.get(*index)));
        let unwanted: Vec<ProcessIndex> = unwanted.collect();
        let dropped = unwanted
            .iter()
            .map(|index| self.window.drop_process(*index));
        dropped.sum()
    }

    /// Names what was read.
    pub fn name(self, symbolizer: &mut Symbolizer) -> SnapshotRecording {
        let (window, naming) = symbolizer.symbolize(self.taken, &self.window, &self.table);
        SnapshotRecording {
            window,
            naming,
            facts: self.facts,
            unread: self.unread,
        }
    }
}
