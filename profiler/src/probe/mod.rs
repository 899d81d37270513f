//! Probes: loads the eBPF object and attaches its programs. Knows the maps by
//! name and nothing of what the records mean.

mod block_io;
mod budget;
pub mod calibrate;
mod clock;
mod costs;
mod counters;
mod cpu;
mod diagnostics;
mod estimate;
mod kernel_types;
mod lifecycle;
mod means;
mod off_cpu;
mod shares;
mod targets;
mod uprobe_programs;
mod uprobes;
mod verify;
mod wait_layouts;
mod watch;
mod window_ticks;

use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, RingBuf},
};

use block_io::Hooks;
pub use budget::{Budget, Closed, Controller, Plan};
pub use clock::{hurry, monotonic_ns};
pub use costs::{Costs, Tails};
pub use counters::Counters;
use cpu::Ticking;
pub use cpu::{Clock, Due, NewCpus};
use diagnostics::Diagnostics;
pub use estimate::{Estimate, Rest, Weight, Windows};
use kernel_types::KernelTypes;
pub use means::{Means, NoMeans};
pub use off_cpu::Threads;
pub use shares::Shares;
pub use targets::Targets;
use uprobe_programs::MapDescriptors;
pub use uprobe_programs::UprobePrograms;
pub use uprobes::{Attached, ProbeSet, SWITCH_NS_PER_PLACE};
pub use verify::{Verified, verify};
pub use wait_layouts::{OpenWaits, WaitLayouts};
pub use watch::{Watch, Watched, Watcher};

/// The eBPF object that `cargo xtask ebpf` builds from `profiler-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("goprof.bpf.o");

/// What the programs are to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Take kernel stacks beside user stacks.
    pub kernel_stacks: bool,
    /// Report every process that begins a new program, and sample it until
    /// told otherwise.
    pub watch_execs: bool,
    /// Size of the ring buffer in bytes: a power of two and a multiple of the
    /// page size.
    pub ring_bytes: u32,
    /// Sample CPU time.
    pub cpu: bool,
    /// Sample time off the CPU.
    pub off_cpu: bool,
    /// Follow requests to block devices.
    pub block_io: bool,
    /// Those of the kernel's own threads, too.
    pub kernel_io: bool,
}

/// The loaded programs. Dropping it detaches them all.
pub struct Probes {
    ebpf: Ebpf,
    maps: MapDescriptors,
    diagnostics: Diagnostics,
    ticking: Option<Ticking>,
    off_cpu: bool,
    block_io: Option<Hooks>,
}

impl Probes {
    /// Loads the object, and the programs that sample what is wanted. Nothing is
    /// attached yet.
    ///
    /// # Errors
    /// The kernel refuses a map or the program, or the object does not fit this
    /// goprof.
    pub fn load(options: &Options) -> Result<Self> {
        let types = KernelTypes::read(&["task_struct", "thread_struct", "sched_entity"]).ok();
        let task = match options.off_cpu {
            true => off_cpu::Task::find(types.as_ref())?,
            false => off_cpu::Task::default(),
        };
        let hooks = match options.block_io {
            true => Some(Hooks::find(types.as_ref(), options.kernel_io)?),
            false => None,
        };
        let mut ebpf = load_object(options, types.as_ref(), task, hooks.as_ref())?;
        let maps = MapDescriptors::of(&ebpf)?;
        let diagnostics = Diagnostics::take(&mut ebpf)?;
        if options.cpu {
            cpu::load(&mut ebpf)?;
        }
        if options.off_cpu {
            off_cpu::load(&mut ebpf)?;
        }
        if let Some(hooks) = &hooks {
            hooks.load(&mut ebpf)?;
        }
        Ok(Self {
            ebpf,
            maps,
            diagnostics,
            ticking: None,
            off_cpu: false,
            block_io: hooks,
        })
    }

    /// Attaches the programs that tell of processes which begin, start threads
    /// or exit.
    ///
    /// # Errors
    /// The kernel refuses a program or its hook.
    pub fn attach_lifecycle(&mut self) -> Result<()> {
        lifecycle::attach(&mut self.ebpf)
    }

    /// Attaches the CPU sampler to every online CPU at `rate_hz`.
    ///
    /// # Errors
    /// The kernel refuses the event.
    pub fn attach_cpu(&mut self, rate_hz: u32) -> Result<Clock> {
        let ticking = cpu::attach(&mut self.ebpf, rate_hz)?;
        Ok(self.ticking.insert(ticking).clock)
    }

    /// Attaches it to the CPUs that came online since.
    ///
    /// # Errors
    /// It cannot be seen which are online.
    pub fn follow_cpus(&mut self) -> Result<NewCpus> {
        match &mut self.ticking {
            Some(ticking) => ticking.follow(&mut self.ebpf),
            None => Ok(NewCpus::default()),
        }
    }

    /// How many times the sampler was to tick by now, to hold against
    /// [`Counter::Ticks`](profiler_ebpf::wire::Counter::Ticks) and
    /// [`Counter::IdleTicks`](profiler_ebpf::wire::Counter::IdleTicks); `None` where the
    /// clock does not say.
    pub fn ticks_due(&self) -> Option<Due> {
        self.ticking.as_ref()?.due(Instant::now())
    }

    /// Attaches what samples time off the CPU.
    ///
    /// # Errors
    /// The kernel refuses the hook.
    pub fn attach_off_cpu(&mut self) -> Result<()> {
        off_cpu::attach(&mut self.ebpf)?;
        self.off_cpu = true;
        Ok(())
    }

    /// Attaches what follows requests to block devices.
    ///
    /// # Errors
    /// The kernel refuses a hook, or this is of no use as it was not asked for.
    pub fn attach_block_io(&mut self) -> Result<()> {
        let hooks = self.block_io.as_ref();
        let hooks = hooks.ok_or_else(|| anyhow!("requests to block devices are not loaded"))?;
        hooks.attach(&mut self.ebpf)
    }

    /// How many times the kernel has not run what follows requests so far, as it was
    /// busy with the like.
    pub fn block_io_missed(&mut self) -> u64 {
        let hooks = self.block_io.as_ref();
        hooks.map_or(0, |hooks| hooks.missed(&mut self.ebpf))
    }

    /// Detaches what takes samples.
    ///
    /// # Errors
    /// A program is not loaded.
    pub fn detach(&mut self) -> Result<()> {
        if self.ticking.is_some() {
            cpu::detach(&mut self.ebpf)?;
        }
        if std::mem::take(&mut self.off_cpu) {
            off_cpu::detach(&mut self.ebpf)?;
        }
        if let Some(hooks) = self.block_io.take() {
            hooks.detach(&mut self.ebpf)?;
        }
        Ok(())
    }

    /// The ring buffer; to be taken once.
    ///
    /// # Errors
    /// It was taken before.
    pub fn take_ring(&mut self) -> Result<RingBuf<MapData>> {
        let map = self
            .ebpf
            .take_map("RECORDS")
            .ok_or_else(|| anyhow!("the ring buffer was taken before"))?;
        RingBuf::try_from(map).context("cannot map the ring buffer")
    }

    /// The table of processes to sample; to be taken once.
    ///
    /// # Errors
    /// It was taken before.
    pub fn take_targets(&mut self) -> Result<Targets> {
        Targets::take(&mut self.ebpf)
    }

    /// Loads programs that are attached to places of processes by these means.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn load_uprobes(&self, names: &[&'static str], means: Means) -> Result<UprobePrograms> {
        UprobePrograms::load(OBJECT, &self.maps, names, means)
    }

    /// Which waits are followed; to be taken once.
    ///
    /// # Errors
    /// It was taken before.
    pub fn take_wait_layouts(&mut self) -> Result<WaitLayouts> {
        WaitLayouts::take(&mut self.ebpf)
    }

    /// The waits that are not over; to be taken once.
    ///
    /// # Errors
    /// They were taken before.
    pub fn take_open_waits(&mut self) -> Result<OpenWaits> {
        OpenWaits::take(&mut self.ebpf)
    }

    /// What probes took of each process; to be taken once.
    ///
    /// # Errors
    /// It was taken before.
    pub fn take_shares(&mut self) -> Result<Shares> {
        Shares::take(&mut self.ebpf)
    }

    /// The table of threads; to be taken once.
    ///
    /// # Errors
    /// It was taken before.
    pub fn take_threads(&mut self) -> Result<Threads> {
        Threads::take(&mut self.ebpf)
    }

    /// What the programs had to say since the last call: rare, and for people.
    pub fn diagnostics(&mut self) -> Vec<String> {
        self.diagnostics.read()
    }

    /// The kernel side's counts so far, summed over all CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        Counters::read(&self.ebpf)
    }
}

/// Loads the object's maps, and tells its programs what they are to do.
fn load_object(
    options: &Options,
    types: Option<&KernelTypes>,
    task: off_cpu::Task,
    hooks: Option<&Hooks>,
) -> Result<Ebpf> {
    let (kernel_stacks, watch_execs) = (
        u8::from(options.kernel_stacks),
        u8::from(options.watch_execs),
    );
    let arm64 = u8::from(cfg!(target_arch = "aarch64"));
    let fs_base_offset = types.map_or(0, fs_base_offset);
    let threads = match options.off_cpu {
        true => off_cpu::MAX_THREADS,
        false => 1,
    };
    let requests = hooks.map_or(block_io::MIN_REQUESTS, |_| block_io::MAX_REQUESTS);
    let mut loader = EbpfLoader::new();
    if let Some(hooks) = hooks {
        hooks.tell(&mut loader);
    }
    loader
        .override_global("TASK_PID", &task.pid, true)
        .override_global("TASK_STATE", &task.state, true)
        .override_global("TASK_RAN", &task.ran, true)
        .override_global("KERNEL_STACKS", &kernel_stacks, true)
        .override_global("WATCH_EXECS", &watch_execs, true)
        .override_global("ARM64", &arm64, true)
        .override_global("FS_BASE_OFFSET", &fs_base_offset, true)
        .map_max_entries("RECORDS", options.ring_bytes)
        .map_max_entries("THREADS", threads)
        .map_max_entries("REQUESTS", requests)
        .load(OBJECT)
        .context("cannot load the eBPF object into the kernel")
}

/// Where the kernel keeps a thread's `fs` base in its `task_struct`; 0 where
/// there is none or the kernel does not say.
fn fs_base_offset(types: &KernelTypes) -> u32 {
    if !cfg!(target_arch = "x86_64") {
        return 0;
    }
    let offset = || {
        let thread = types.offset("task_struct", "thread")?;
        Some(thread + types.offset("thread_struct", "fsbase")?)
    };
    offset().unwrap_or(0)
}
