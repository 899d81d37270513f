//! What the kernel side counted.

use anyhow::{Context, Result, anyhow};
use aya::{Ebpf, maps::PerCpuArray};
use profiler_ebpf::wire::Counter;

/// The kernel side's counts since the load, summed over all CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters([u64; Counter::ALL.len()]);

impl Counters {
    pub(super) fn read(ebpf: &Ebpf) -> Result<Self> {
        let map = ebpf
            .map("COUNTERS")
            .ok_or_else(|| anyhow!("the eBPF object has no map COUNTERS"))?;
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        let mut sums = [0; Counter::ALL.len()];
        for (sum, counter) in sums.iter_mut().zip(Counter::ALL) {
            let values = map
                .get(&(counter as u32), 0)
                .context("cannot read the kernel side's counters")?;
            *sum = values.iter().sum();
        }
        Ok(Self(sums))
    }

    /// One of them.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Counters) -> Counters {
        let mut difference = self.0;
        for (now, before) in difference.iter_mut().zip(earlier.0) {
            *now = now.saturating_sub(before);
        }
        Counters(difference)
    }
}
