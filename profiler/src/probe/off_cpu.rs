//! Faces `programs/off_cpu.rs`: thread switches and wake-ups.

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
    programs::RawTracePoint,
};
use profiler_ebpf::wire::Thread;
use zerocopy::IntoBytes;

use super::kernel_types::KernelTypes;

/// The programs, and the tracepoints that they go to.
const PROGRAMS: [(&str, &str); 2] = [
    ("off_cpu_switch", "sched_switch"),
    ("off_cpu_wakeup", "sched_wakeup"),
];

/// Offsets in the kernel's `task_struct`, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Task {
    /// The thread's id.
    pub pid: u32,
    /// What it is doing.
    pub state: u32,
    /// For how long it has been on a CPU.
    pub ran: u32,
}

impl Task {
    pub(super) fn find(types: Option<&KernelTypes>) -> Result<Self> {
        let offset = |member| types?.offset("task_struct", member);
        let task = || {
            let entity = types?.offset("sched_entity", "sum_exec_runtime")?;
            Some(Self {
                ran: offset("se")? + entity,
                pid: offset("pid")?,
                // `state` up to Linux 5.13.
                state: offset("__state").or_else(|| offset("state"))?,
            })
        };
        task().ok_or_else(|| {
            anyhow!("the kernel does not say where it keeps threads (it has no BTF): time off the CPU cannot be had")
        })
    }
}

/// Most threads of wanted processes at once. Memory for all of them is taken at
/// load, some ten megabytes.
pub(super) const MAX_THREADS: u32 = 64 * 1024;

/// `BPF_NOEXIST` (`include/uapi/linux/bpf.h`).
const NOT_THERE: u64 = 1;

/// The kernel side's table of threads.
pub struct Threads {
    /// The values are the bytes of a [`Thread`].
    map: HashMap<MapData, u32, [u8; size_of::<Thread>()]>,
}

impl Threads {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let map = ebpf
            .take_map("THREADS")
            .ok_or_else(|| anyhow!("the table of threads was taken before"))?;
        Ok(Self {
            map: HashMap::try_from(map).context("the table of threads has another layout")?,
        })
    }

    /// Adds a thread unless it is there, and says whether it was added; None where the
    /// table is full.
    pub fn add(&mut self, tid: u32, thread: &Thread) -> Option<bool> {
        let mut value = [0; size_of::<Thread>()];
        value.copy_from_slice(thread.as_bytes());
        match self.map.insert(tid, value, NOT_THERE) {
            Ok(()) => Some(true),
            Err(_) => self.has(tid).then_some(false),
        }
    }

    /// Whether the kernel side knows a thread.
    pub fn has(&self, tid: u32) -> bool {
        self.map.get(&tid, 0).is_ok()
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut RawTracePoint> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
    Ok(program.try_into()?)
}

pub(super) fn load(ebpf: &mut Ebpf) -> Result<()> {
    for (name, _) in PROGRAMS {
        program(ebpf, name)?
            .load()
            .with_context(|| format!("the kernel refuses the eBPF program {name}"))?;
    }
    Ok(())
}

pub(super) fn attach(ebpf: &mut Ebpf) -> Result<()> {
    for (name, hook) in PROGRAMS {
        program(ebpf, name)?
            .attach(hook)
            .with_context(|| format!("cannot attach to the tracepoint {hook}"))?;
    }
    Ok(())
}

pub(super) fn detach(ebpf: &mut Ebpf) -> Result<()> {
    for (name, _) in PROGRAMS {
        program(ebpf, name)?
            .unload()
            .with_context(|| format!("cannot detach {name}"))?;
    }
    Ok(())
}
