//! Probes on places of one process, put on and taken off together. Says nothing of
//! when that is to be: the budget does.

use std::{
    io, mem,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use aya_obj::generated::{bpf_attach_type::BPF_TRACE_UPROBE_MULTI, bpf_cmd::BPF_LINK_CREATE};
use profiler_ebpf::wire::cookie;
use thiserror::Error;

use super::uprobe_programs::{UprobePrograms, bpf, zeroed};
use crate::{
    gobinary::{PlaceInstruction, ProbePlace},
    process::Object,
};

/// What it takes from the target, in nanoseconds of its CPU time, to put a probe on a
/// place and take it off again: its threads are interrupted to see the new
/// instruction, and wait where they need the lock of the address space.
pub const SWITCH_NS_PER_PLACE: u64 = 20_000;

/// The kernel does not know of many probes by one link.
#[derive(Debug, Error)]
#[error("it cannot put several probes on at once: run Linux 6.6 or later")]
pub struct KernelTooOld;

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
        let links = self
            .programs
            .iter()
            .map(|placed| self.link(placed))
            .collect::<io::Result<_>>()
            .map_err(|error| self.explain(&error))?;
        Ok(Attached { links })
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
            Some(libc::EINVAL) => anyhow::Error::new(KernelTooOld)
                .context(format!("the kernel refuses probes on process {pid}")),
            _ => anyhow!("the kernel refuses probes on process {pid}: {error}"),
        }
    }
}

/// Probes that are on. Dropping it takes them off, and returns when no program of
/// theirs runs any more: some tens of milliseconds, of which the breakpoints are
/// there for the first (a tenth of one where they were put on within the last
/// few milliseconds, else some). The end of goprof takes them off as well.
pub struct Attached {
    links: Vec<OwnedFd>,
}

impl Attached {
    /// Takes them off.
    ///
    /// # Errors
    /// A thread cannot be started; they are off all the same.
    pub fn detach(mut self) -> Result<()> {
        let links = mem::take(&mut self.links);
        detach(links).context("cannot start a thread to take probes off")
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It fails only where there is no other thread, and then takes longer.
        let _ = detach(mem::take(&mut self.links));
    }
}

/// Closes all at the same time: each takes its breakpoints off at once and waits
/// after that.
fn detach(mut links: Vec<OwnedFd>) -> io::Result<()> {
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
