//! Faces `programs/off_cpu.rs`: thread switches and wake-ups.

use anyhow::{Context, Result, anyhow};
use aya::{Ebpf, programs::RawTracePoint};

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
}

impl Task {
    pub(super) fn find(types: Option<&KernelTypes>) -> Result<Self> {
        let offset = |member| types?.offset("task_struct", member);
        let task = || {
            Some(Self {
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
