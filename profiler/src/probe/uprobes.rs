//! Probes on places of one process, put on and taken off together. Says nothing of
//! when that is to be: the budget does.

use std::{
    io, mem,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use aya_obj::generated::{bpf_attach_type::BPF_TRACE_UPROBE_MULTI, bpf_cmd::BPF_LINK_CREATE};
use profiler_ebpf::wire::cookie;

use super::{
    costs::{Costs, Tails},
    means::{Means, attach_event},
    uprobe_programs::{UprobePrograms, bpf, zeroed},
};
use crate::{
    gobinary::{PlaceInstruction, ProbePlace},
    process::Object,
};

/// What it takes from the target, in nanoseconds of its CPU time, to put a probe on a
/// place and take it off again: its threads are interrupted to see the new
/// instruction, and wait where they need the lock of the address space.
pub const SWITCH_NS_PER_PLACE: u64 = 20_000;

/// What is to be put on a process: programs, each at some places of one file.
pub struct ProbeSet {
    pid: u32,
    /// The file that the places were found in, held open: what the process runs by
    /// the time of an attachment may be another.
    object: Arc<Object>,
    path: Vec<u8>,
    programs: Vec<Placed>,
}

/// A program and its places.
struct Placed {
    means: Means,
    program: Arc<OwnedFd>,
    offsets: Vec<u64>,
    cookies: Vec<u64>,
}

impl ProbeSet {
    /// Nothing yet, for a process that has mapped the file.
    pub fn new(pid: u32, object: Arc<Object>) -> Self {
        let path: PathBuf = object.fd_path();
        let mut path = path.as_os_str().as_bytes().to_vec();
        path.push(0);
        Self {
            pid,
            object,
            path,
            programs: Vec::new(),
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How many places there are in all.
    pub fn places(&self) -> usize {
        self.programs
            .iter()
            .map(|placed| placed.offsets.len())
            .sum()
    }

    /// What its probes take: a hit `trap_ns`, and to take one off by itself `close_ns`.
    pub fn costs(&self, trap_ns: u64, close_ns: u64) -> Costs {
        let are_events = |placed: &Placed| placed.means != Means::Link;
        Costs {
            trap_ns,
            switch_ns: SWITCH_NS_PER_PLACE * self.places() as u64,
            tails: match self.programs.iter().any(are_events) {
                true => Tails::one_by_one(self.places(), close_ns),
                false => Tails::AT_ONCE,
            },
        }
    }

    /// Adds a program at these places.
    ///
    /// # Errors
    /// The program is not loaded.
    pub fn add(
        &mut self,
        programs: &UprobePrograms,
        name: &str,
        places: &[ProbePlace],
    ) -> Result<()> {
        let places: Vec<_> = places.iter().map(|place| (*place, 0)).collect();
        self.add_marked(programs, name, &places)
    }

    /// The same, where the program is told something of each place: bits of
    /// [`cookie`].
    ///
    /// # Errors
    /// The program is not loaded.
    pub fn add_marked(
        &mut self,
        programs: &UprobePrograms,
        name: &str,
        places: &[(ProbePlace, u64)],
    ) -> Result<()> {
        let cookie = |(place, marks): &(ProbePlace, u64)| match place.instruction {
            PlaceInstruction::PushFramePointer => *marks,
            PlaceInstruction::StackCheckBranch => marks | cookie::STACK_CHECK,
        };
        self.programs.push(Placed {
            means: programs.means(),
            program: Arc::clone(programs.get(name)?),
            offsets: places.iter().map(|(place, _)| place.file_offset).collect(),
            cookies: places.iter().map(cookie).collect(),
        });
        Ok(())
    }

    /// Puts all of them on; none where one fails. The kernel first waits for every
    /// CPU to pass a quiet state, some milliseconds; from the first breakpoint to the
    /// last it then takes a fraction of one.
    ///
    /// # Errors
    /// The process is gone, its file was changed, or the kernel refuses.
    pub fn attach(&self) -> Result<Attached> {
        if self.object.changed() {
            bail!(
                "{} was changed: where probes go in it is no longer known",
                self.object.path
            );
        }
        // Those that are on by then are taken off.
        let mut attached = Attached::default();
        for placed in &self.programs {
            let added = match placed.means {
                Means::Link => self.link(placed).map(|link| attached.links.push(link)),
                Means::Events(kind) => self.add_events(kind, placed, &mut attached.events),
            };
            added.map_err(|error| self.explain(&error))?;
        }
        Ok(attached)
    }

    fn add_events(&self, kind: u32, placed: &Placed, into: &mut Vec<OwnedFd>) -> io::Result<()> {
        for place in placed.offsets.iter().zip(&placed.cookies) {
            let place = (*place.0, *place.1);
            let program = &placed.program;
            into.push(attach_event(kind, self.pid, &self.path, place, program)?);
        }
        Ok(())
    }

    fn link(&self, placed: &Placed) -> io::Result<OwnedFd> {
        let mut attributes = zeroed();
        // SAFETY: the fields of this command; what they point to outlives the call.
        unsafe {
            let link = &mut attributes.link_create;
            link.__bindgen_anon_1.prog_fd = placed.program.as_raw_fd() as u32;
            link.attach_type = BPF_TRACE_UPROBE_MULTI as u32;
            let probes = &mut link.__bindgen_anon_3.uprobe_multi;
            probes.path = self.path.as_ptr() as u64;
            probes.offsets = placed.offsets.as_ptr() as u64;
            probes.cookies = placed.cookies.as_ptr() as u64;
            probes.cnt = placed.offsets.len() as u32;
            probes.pid = self.pid;
        }
        bpf(BPF_LINK_CREATE, &mut attributes)
    }

    fn explain(&self, error: &io::Error) -> anyhow::Error {
        let pid = self.pid;
        match error.raw_os_error() {
            Some(libc::ESRCH) => anyhow!("process {pid} is gone"),
            _ => anyhow!("the kernel refuses probes on process {pid}: {error}"),
        }
    }
}

/// Probes that are on. Dropping it takes them off, and returns when no program of
/// theirs runs any more. Of links that takes some tens of milliseconds, of which the
/// breakpoints are there for the first (a tenth of one where they were put on within the
/// last few milliseconds, else some); of perf events so much for each, one after the
/// other. The end of goprof takes them off as well.
#[derive(Default)]
pub struct Attached {
    links: Vec<OwnedFd>,
    events: Vec<OwnedFd>,
}

impl Attached {
    /// Takes them off. Returns for how long hits were not counted, at most: those of each
    /// place by itself.
    ///
    /// # Errors
    /// A thread cannot be started; they are off all the same.
    pub fn detach(mut self) -> Result<Duration> {
        self.take_off()
            .context("cannot start a thread to take probes off")
    }

    fn take_off(&mut self) -> io::Result<Duration> {
        close_at_once(mem::take(&mut self.links))?;
        Ok(close_one_by_one(mem::take(&mut self.events)))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It fails only where there is no other thread, and then takes longer.
        let _ = self.take_off();
    }
}

/// Closes all at the same time: each takes its breakpoints off at once and waits
/// after that.
fn close_at_once(mut links: Vec<OwnedFd>) -> io::Result<()> {
    let Some(last) = links.pop() else {
        return Ok(());
    };
    thread::scope(|scope| {
        let mut result = Ok(());
        for link in links {
            let builder = thread::Builder::new().stack_size(64 << 10);
            if let Err(error) = builder.spawn_scoped(scope, move || drop(link)) {
                result = Err(error);
            }
        }
        drop(last);
        result
    })
}

/// Closes one after the other, and says how long it took for the slowest. The kernel lets
/// go of an event's program first, then of its breakpoint, and waits after that with a
/// lock held that all events take: several at the same time would not be faster, and the
/// hits of those that wait for the lock would not be counted.
fn close_one_by_one(events: Vec<OwnedFd>) -> Duration {
    let mut slowest = Duration::ZERO;
    for event in events {
        let begun = Instant::now();
        drop(event);
        slowest = slowest.max(begun.elapsed());
    }
    slowest
}
