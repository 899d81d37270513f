//! Faces `programs/cpu.rs`: one perf event on each online CPU, and on each that
//! comes online later.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    programs::{
        PerfEvent, ProgramError,
        perf_event::{
            HardwareEvent, PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy,
            SoftwareEvent,
        },
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
    rate_hz: u32,
    period_ns: u64,
    /// By number.
    cpus: BTreeMap<u32, Ticked>,
    /// CPUs that came online and could not be attached to.
    refused: BTreeSet<u32>,
    /// When it was last looked which CPUs are online.
    looked: Instant,
    /// Ticks that were due on CPUs that have gone offline.
    due_before: u64,
    /// Of those, while they had nothing to do, in nanoseconds.
    idle_before_ns: u64,
}

/// How many times the sampler was to tick, on all CPUs together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Due {
    /// By the time that went by.
    pub ticks: u64,
    /// Of those, while a CPU had nothing to do: some machines leave them out then, such as
    /// those whose CPU was offline once.
    pub idle: u64,
}

/// A CPU that ticks.
struct Ticked {
    link: PerfEventLinkId,
    since: Instant,
    /// How long it had had nothing to do by then, and at the last look, in nanoseconds.
    idle_ns: u64,
    idle_seen_ns: u64,
}

/// CPUs that came online since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewCpus {
    /// Those that are sampled from now on.
    pub sampled: u64,
    /// Those that the kernel refuses to sample.
    pub refused: u64,
}

impl Ticking {
    /// How many ticks were due by `now`, or a few less: of the kernel's timer
    /// alone, as cycles stand still where a CPU has nothing to do.
    pub(super) fn due(&self, now: Instant) -> Option<Due> {
        let cpus = self.cpus.values();
        let due: u64 = cpus.map(|cpu| self.due_since(cpu.since, now)).sum();
        let idle = idle_ns();
        let idle = self.cpus.iter().map(|(cpu, ticked)| {
            let now_ns = idle.get(cpu).copied().unwrap_or(0);
            now_ns.saturating_sub(ticked.idle_ns)
        });
        let idle_ns = self.idle_before_ns + idle.sum::<u64>();
        (self.clock == Clock::CpuClock).then_some(Due {
            ticks: self.due_before + due,
            idle: idle_ns / self.period_ns,
        })
    }

    fn due_since(&self, since: Instant, now: Instant) -> u64 {
        let ns = now.saturating_duration_since(since).as_nanos();
        u64::try_from(ns).unwrap_or(u64::MAX) / self.period_ns
    }

    /// Samples the CPUs that came online since the last look. The kernel takes the
    /// event of a CPU away when it goes offline, and does not bring it back.
    pub(super) fn follow(&mut self, ebpf: &mut Ebpf) -> Result<NewCpus> {
        let online: BTreeSet<u32> = list_online()?.into_iter().collect();
        self.refused.retain(|cpu| online.contains(cpu));
        let (mut new, looked) = (NewCpus::default(), self.looked);
        self.looked = Instant::now();
        let idle = idle_ns();
        for (cpu, ticked) in &mut self.cpus {
            if let Some(ns) = idle.get(cpu) {
                ticked.idle_seen_ns = *ns;
            }
        }
        if online.iter().eq(self.cpus.keys()) {
            return Ok(new);
        }
        let program = program(ebpf)?;
        let (cpus, offline): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.cpus)
            .into_iter()
            .partition(|(cpu, _)| online.contains(cpu));
        self.cpus = cpus;
        for cpu in offline.into_values() {
            // It was online then, for all that is known.
            self.due_before += self.due_since(cpu.since, looked);
            self.idle_before_ns += cpu.idle_seen_ns.saturating_sub(cpu.idle_ns);
            program.detach(cpu.link).context("detach from a CPU")?;
        }
        for cpu in online {
            if self.cpus.contains_key(&cpu) {
                continue;
            }
            match attach_one(program, self.clock, cpu, self.rate_hz) {
                Ok(ticked) => {
                    self.cpus.insert(cpu, ticked);
                    self.refused.remove(&cpu);
                    new.sampled += 1;
                }
                Err(_) => new.refused += u64::from(self.refused.insert(cpu)),
            }
        }
        Ok(new)
    }
}

/// How long each CPU has had nothing to do since the start, in nanoseconds: from
/// `/proc/stat`, whose fourth and fifth figures are in hundredths of a second (`USER_HZ`;
/// `man 5 proc_stat`). Empty where it cannot be read.
fn idle_ns() -> BTreeMap<u32, u64> {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let of = |line: &str| {
        let mut figures = line.split_whitespace();
        let cpu = figures.next()?.strip_prefix("cpu")?.parse().ok()?;
        let idle = figures
            .skip(3)
            .take(2)
            .filter_map(|f| f.parse::<u64>().ok());
        Some((cpu, idle.sum::<u64>().saturating_mul(10_000_000)))
    };
    stat.lines().filter_map(of).collect()
}

fn list_online() -> Result<Vec<u32>> {
    online_cpus()
        .map_err(|(_, error)| error)
        .context("cannot list the online CPUs")
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
    let online = list_online()?;
    let (&first, rest) = online
        .split_first()
        .ok_or_else(|| anyhow!("the kernel lists no online CPU"))?;
    let refused = |cpu| format!("cannot sample CPU {cpu} at {rate_hz} Hz");

    let (clock, ticked) = match attach_one(program, Clock::Cycles, first, rate_hz) {
        Ok(ticked) => (Clock::Cycles, ticked),
        Err(_) => {
            let ticked = attach_one(program, Clock::CpuClock, first, rate_hz);
            let ticked = ticked.with_context(|| refused(first))?;
            (Clock::CpuClock, ticked)
        }
    };
    let mut cpus = BTreeMap::from([(first, ticked)]);
    for &cpu in rest {
        let ticked = attach_one(program, clock, cpu, rate_hz);
        cpus.insert(cpu, ticked.with_context(|| refused(cpu))?);
    }
    Ok(Ticking {
        clock,
        rate_hz,
        period_ns: 1_000_000_000 / u64::from(rate_hz.max(1)),
        cpus,
        refused: BTreeSet::new(),
        looked: Instant::now(),
        due_before: 0,
        idle_before_ns: 0,
    })
}

fn attach_one(
    program: &mut PerfEvent,
    clock: Clock,
    cpu: u32,
    rate_hz: u32,
) -> Result<Ticked, ProgramError> {
    let link = program.attach(
        clock.config(),
        PerfEventScope::AllProcessesOneCpu { cpu },
        SamplePolicy::Frequency(u64::from(rate_hz)),
        false,
    )?;
    let since = Instant::now();
    let idle_ns = idle_ns().get(&cpu).copied().unwrap_or(0);
    Ok(Ticked {
        link,
        since,
        idle_ns,
        idle_seen_ns: idle_ns,
    })
}
