//! What `goprof goroutines` looks at: a process that runs, or a core. Says in one
//! line why neither can be looked at.

use std::{fs::File, path::Path, sync::Arc};

use anyhow::{Context as _, anyhow};

use super::Args;
use crate::{
    cli::{Failure, printable, process::go_process, raise_file_limit},
    doctor,
    gomemory::{Core, CoreThread, Live, MAX_GOROUTINES, Memory, open_backing},
    image::Image,
    process::{Identity, MapsLine, NoLayout, Process, ProcessIndex, ProcessTable},
    session::goroutines::{Snapshot, Source, Wanted, Which, snapshot},
};

/// A program and its memory.
pub(in crate::cli) struct Target {
    pub table: ProcessTable,
    pub index: ProcessIndex,
    memory: Box<dyn Memory>,
    threads: Vec<CoreThread>,
    /// How it is called in messages.
    name: String,
    is_live: bool,
    /// What a reader must know of it.
    pub notes: Vec<String>,
}

impl Target {
    /// Opens what the arguments name.
    ///
    /// # Errors
    /// It is not there, not Go or not to be read.
    pub(super) fn open(args: &Args) -> Result<Self, Failure> {
        raise_file_limit();
        match (args.pid, &args.core) {
            (_, Some(core)) => Self::of_core(core, args.exe.as_deref()),
            (Some(pid), None) => Self::of_process(pid),
            (None, None) => Err(Failure::Usage("give -p PID or --core FILE".to_owned())),
        }
    }

    /// Looks at a process that runs.
    ///
    /// # Errors
    /// It is not there, not Go or not to be read.
    pub(in crate::cli) fn of_process(pid: u32) -> Result<Self, Failure> {
        if let Err((found, remedy)) = doctor::existing(pid) {
            let remedy = remedy.map_or(String::new(), |remedy| format!(": {remedy}"));
            return Err(Failure::Failed(anyhow!("{found}{remedy}")));
        }
        let mut table = ProcessTable::default();
        let process = go_process(pid, &mut table.objects)?;
        let memory =
            Live::open(pid).with_context(|| format!("cannot read the memory of process {pid}"))?;
        Ok(Self {
            index: table.insert(process),
            table,
            memory: Box::new(memory),
            threads: Vec::new(),
            name: format!("process {pid}"),
            is_live: true,
            notes: Vec::new(),
        })
    }

    fn of_core(path: &Path, exe: Option<&Path>) -> Result<Self, Failure> {
        let shown = path.display().to_string();
        let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
        let mut core = Core::open(file).map_err(|error| anyhow!("{shown}: {error}"))?;
        let program = core.exe().to_owned();
        let place = |named: &str| match exe {
            Some(exe) if named == program => exe.to_owned(),
            _ => Path::new(named).to_owned(),
        };
        core.back(|named| open_backing(&place(named)));
        check_program(&core, &place(&program), &program)?;
        let identity = Identity {
            pid: core.pid(),
            comm: core.comm().to_owned(),
            exe: program.clone(),
        };
        let mut table = ProcessTable::default();
        let open = |line: &MapsLine| File::open(place(&line.path)).ok();
        let maps = core.maps();
        let process = Process::from_maps(identity, maps.as_bytes(), &mut table.objects, open);
        if process.go_object().is_none() {
            let line = format!(
                "{shown} is of {}, which is not a Go program",
                printable(&program)
            );
            return Err(Failure::Failed(anyhow!(line)));
        }
        let cut = core.is_cut().then(|| {
            "the core is cut off: a limit, or a full disk; what is missing cannot be read"
                .to_owned()
        });
        Ok(Self {
            index: table.insert(process),
            table,
            threads: core.threads().to_vec(),
            memory: Box::new(core),
            name: shown,
            is_live: false,
            notes: cut.into_iter().collect(),
        })
    }

    /// The process, or what the core tells of it.
    pub(in crate::cli) fn process(&self) -> &Process {
        self.table.get(self.index)
    }

    /// Takes the snapshot; with `runtimes_own` of the runtime's own goroutines too.
    ///
    /// # Errors
    /// Why that cannot be done.
    pub(in crate::cli) fn snapshot(&self, runtimes_own: bool) -> Result<Snapshot, Failure> {
        let taken = self.try_snapshot(runtimes_own);
        if self.is_live && !self.memory.is_there() {
            let line = format!("{} ended while it was read", self.name);
            return Err(Failure::Failed(anyhow!(line)));
        }
        taken.map_err(|why| {
            let line = format!("cannot list the goroutines of {}: {why}", self.name);
            Failure::Failed(anyhow!(line))
        })
    }

    fn try_snapshot(&self, runtimes_own: bool) -> Result<Snapshot, String> {
        let (process, memory) = (self.process(), self.memory.as_ref());
        let (offsets, _) = process.struct_offsets(memory).map_err(|why| match why {
            NoLayout::NotYet => "it has only begun".to_owned(),
            NoLayout::Unknown(why) => why,
        })?;
        let program = process
            .go_program(memory)
            .ok_or_else(|| "its Go code is not mapped".to_owned())?;
        let source = Source {
            process,
            program,
            offsets,
            reasons: program.binary.wait_reasons().unwrap_or_default(),
            now_ns: monotonic_ns().filter(|_| self.is_live),
            threads: &self.threads,
        };
        let wanted = Wanted {
            runtimes_own,
            places: true,
            which: Which::First(MAX_GOROUTINES),
        };
        snapshot(&source, wanted)
    }
}

/// Checks that the file taken for a core's program is that program, as far as the
/// core has its beginning.
fn check_program(core: &Core, file: &Path, program: &str) -> Result<(), Failure> {
    let image: Option<Arc<Image>> = open_backing(file);
    let fail = |what: &str| {
        let line = format!(
            "{} {what} of the core ({}): give the program after --exe",
            file.display(),
            printable(program)
        );
        Err(Failure::Failed(anyhow!(line)))
    };
    let Some(image) = image else {
        return fail("cannot be opened, and is the program");
    };
    let first = core.files().iter().find(|mapped| mapped.path == program);
    let mut dumped = [0; 1024];
    let has_begin = first.is_some_and(|first| {
        first.offset == 0
            && core.is_dumped(first.addresses.start, dumped.len())
            && core.read(first.addresses.start, &mut dumped)
    });
    if has_begin && !image.bytes().starts_with(&dumped) {
        return fail("is not the program");
    }
    Ok(())
}

/// The clock that Go's runtime goes by.
fn monotonic_ns() -> Option<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes a structure of our own.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).ok().filter(|_| done == 0)?;
    seconds
        .checked_mul(1_000_000_000)?
        .checked_add(u64::try_from(time.tv_nsec).ok()?)
}
