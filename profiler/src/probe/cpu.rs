//! Faces `programs/cpu.rs`: one perf event on each online CPU.

use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    programs::{
        PerfEvent, ProgramError,
        perf_event::{HardwareEvent, PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};

/// What makes the sampler tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The processor's cycle counter.
    Cycles,
    /// The kernel's timer, where there is no such counter (in most virtual
    /// machines).
    CpuClock,
}

impl Clock {
    fn config(self) -> PerfEventConfig {
        match self {
            Clock::Cycles => PerfEventConfig::Hardware(HardwareEvent::CpuCycles),
            Clock::CpuClock => PerfEventConfig::Software(SoftwareEvent::CpuClock),
        }
    }
}

/// The sampler, attached.
pub(super) struct Ticking {
    pub clock: Clock,
    period_ns: u64,
    /// Since when, for each CPU.
    since: Vec<Instant>,
}

impl Ticking {
    /// How many ticks were due by `now`, or a few less: of the kernel's timer
    /// alone, as cycles stand still where a CPU has nothing to do.
    pub(super) fn due(&self, now: Instant) -> Option<u64> {
        let of = |since: &Instant| {
            let ns = now.saturating_duration_since(*since).as_nanos();
            u64::try_from(ns).unwrap_or(u64::MAX) / self.period_ns
        };
        (self.clock == Clock::CpuClock).then(|| self.since.iter().map(of).sum())
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut PerfEvent> {
    let program = ebpf
        .program_mut("cpu_sample")
        .ok_or_else(|| anyhow!("the eBPF object has no program cpu_sample"))?;
    Ok(program.try_into()?)
}

/// Takes the sampler off every CPU.
pub(super) fn detach(ebpf: &mut Ebpf) -> Result<()> {
    program(ebpf)?
        .unload()
        .context("cannot detach the CPU sampler")
}

/// Loads the sampler into the kernel, which takes its time to verify it.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<()> {
    program(ebpf)?
        .load()
        .context("the kernel refuses the eBPF program cpu_sample")
}

/// Attaches the sampler to every online CPU, by hardware cycles where the
/// first CPU has them.
pub(super) fn attach(ebpf: &mut Ebpf, rate_hz: u32) -> Result<Ticking> {
    let program = program(ebpf)?;
    let cpus = online_cpus()
        .map_err(|(_, error)| error)
        .context("cannot list the online CPUs")?;
    let (&first, rest) = cpus
        .split_first()
        .ok_or_else(|| anyhow!("the kernel lists no online CPU"))?;

    let clock = match attach_one(program, Clock::Cycles, first, rate_hz) {
        Ok(()) => Clock::Cycles,
        Err(_) => {
            attach_one(program, Clock::CpuClock, first, rate_hz)
                .with_context(|| format!("cannot sample CPU {first} at {rate_hz} Hz"))?;
            Clock::CpuClock
        }
    };
    let mut since = vec![Instant::now()];
    for &cpu in rest {
        attach_one(program, clock, cpu, rate_hz)
            .with_context(|| format!("cannot sample CPU {cpu} at {rate_hz} Hz"))?;
        since.push(Instant::now());
    }
    Ok(Ticking {
        clock,
        period_ns: 1_000_000_000 / u64::from(rate_hz.max(1)),
        since,
    })
}

fn attach_one(
    program: &mut PerfEvent,
    clock: Clock,
    cpu: u32,
    rate_hz: u32,
) -> Result<(), ProgramError> {
    program
        .attach(
            clock.config(),
            PerfEventScope::AllProcessesOneCpu { cpu },
            SamplePolicy::Frequency(u64::from(rate_hz)),
            false,
        )
        .map(|_| ())
}
