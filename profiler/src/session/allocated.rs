//! Allocations, as probes see them: what each stands for, who allocates, what type it
//! is, and the runtime's own total to hold their sum against.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Result, anyhow};
use profiler_ebpf::wire::{Measured, allocation, cookie};

use super::{
    allocation_bursts::{Bursts, InWindow},
    allocation_facts::{AllocSource, AllocationFacts, SeenAt},
    allocation_totals::{Inside, Seen, Strata, Totals},
    recorder::{Recorder, Sampled},
};
use crate::{
    aggregate::{Owner, Values, Window},
    decode::Sample,
    gobinary::{AllocationSites, Block, GoBinary, is_hidden_allocator},
    gomemory::{Live, Memory as _},
    probe::{Closed, Estimate, ProbeSet, UprobePrograms},
    process::{Object, Process},
    symbolize::Event,
};

/// The programs, at the runtime's samples, at all allocations, and at spans.
const SAMPLED: &str = "allocation_sampled";
const ANY: &str = "allocation_any";
const SPAN: &str = "allocation_span";

/// Values of allocations are kept in these parts until their window is over: what one
/// stands for is no whole number.
pub(super) const PARTS: f64 = 256.0;
/// Places whose callers and types are remembered before all are forgotten.
const MAX_PLACES: usize = 1 << 16;
/// The label of the type.
const TYPE: &str = "type";

/// What there is to know of a process whose allocations are seen.
pub(super) struct Allocations {
    object: Arc<Object>,
    bias: u64,
    memory: Live,
    sites: AllocationSites,
    source: Source,
    rate_changed: bool,
    totals: Totals,
    /// For calls: where they are shown, none where it is not.
    shown: HashMap<u64, Option<u64>>,
    types: HashMap<(u64, u64), Option<String>>,
    /// What was seen in windows that are not over, by their number.
    open: HashMap<u64, Seen>,
    /// Of windows that are all of their slots, the variance of counts and bytes that
    /// comes of taking some: what else there is none.
    variance: [f64; 2],
    strata: Strata,
    /// In windows: what was seen, and what the runtime counted meanwhile, in bytes.
    inside: Inside,
    bursts: Bursts,
}

/// Where allocations of a process are seen.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// Where the rate of the runtime's samples is, and what it is.
    Samples {
        address: u64,
        rate: u64,
    },
    Calls,
    Spans,
}

impl Allocations {
    /// Chooses where allocations of a process are seen, and adds the probes to `set`.
    ///
    /// # Errors
    /// It has no place for them, or its memory cannot be read.
    pub(super) fn begin(
        process: &Process,
        source: AllocSource,
        programs: &UprobePrograms,
        set: &mut ProbeSet,
    ) -> Result<Self> {
        let memory = Live::open(process.pid)?;
        let not_mapped = || anyhow!("its Go code is not mapped");
        let object = process.go_object().ok_or_else(not_mapped)?;
        let program = process.go_program(&memory).ok_or_else(not_mapped)?;
        let binary = program.binary;
        let rate = program.mem_profile_rate().ok();
        let source = match (source, rate) {
            (AllocSource::Auto, Some((address, rate))) if rate > 0 => {
                Source::Samples { address, rate }
            }
            (AllocSource::Auto | AllocSource::Calls, _) => Source::Calls,
            (AllocSource::Spans, _) => Source::Spans,
        };
        source.probe(binary, programs, set)?;
        let bias = program.bias;
        let totals = Totals::of(process.pid, program.total_alloc_address())?;
        Ok(Self {
            object: Arc::clone(object),
            bias,
            sites: binary.allocation_sites(),
            source,
            rate_changed: false,
            strata: Strata::new(totals.read().unwrap_or(0)),
            bursts: Bursts::new(totals.noted()),
            totals,
            inside: Inside::default(),
            memory,
            shown: HashMap::new(),
            types: HashMap::new(),
            open: HashMap::new(),
            variance: [0.0; 2],
        })
    }

    /// The runtime's totals, to be read by who watches.
    pub(super) fn totals(&self) -> Result<Totals> {
        self.totals.twin()
    }

    /// Reads the rate again. Samples count by that of their time, as nearly as can be.
    pub(super) fn look(&mut self) {
        if let Source::Samples { address, rate } = &mut self.source
            && let Some(now) = self.memory.word(*address)
            && now != *rate
            && now > 0
        {
            (*rate, self.rate_changed) = (now, true);
        }
    }

    /// What an allocation of `owner` comes to: how many of its stack's addresses are
    /// not shown, an address in place of the first that is, and its values.
    fn take(
        &mut self,
        measured: &Measured,
        stack: &mut Vec<u64>,
        owner: &mut Owner,
    ) -> Option<Values> {
        let object = Arc::clone(&self.object);
        let binary = object.go()?;
        if self.shown.len() + self.types.len() > MAX_PLACES {
            self.shown.clear();
            self.types.clear();
        }
        let call = self.trim(binary, stack);
        let (size, descriptor) = (measured.duration_ns, measured.part_ns);
        let of = binary.allocated_type(descriptor.wrapping_sub(self.bias));
        let (block, stands_for) = match measured.detail & allocation::WHY {
            allocation::BY_THRESHOLD => {
                let has_pointers = of.as_ref().is_some_and(|of| of.has_pointers);
                let block = Block::of(size, has_pointers, binary.version());
                (block, stands_for(size, allocation::MEAN_BYTES))
            }
            allocation::BY_SPAN => {
                let block = Block::of_span(measured.weight, size)?;
                (block, f64::from(measured.weight))
            }
            allocation::BY_LARGE => (Block::large(size)?, 1.0),
            _ => {
                let block = Block {
                    bytes: size,
                    taken_bytes: size,
                };
                (block, stands_for(size, self.source.rate().unwrap_or(1)))
            }
        };
        let (sites, bias) = (&self.sites, self.bias);
        let name = self.types.entry((call, descriptor)).or_insert_with(|| {
            let behind = call.wrapping_sub(bias).wrapping_add(1);
            let said = sites.type_at(binary, behind);
            said.or_else(|| of.map(|of| of.name_of(size)))
        });
        if let Some(name) = name {
            owner.labels.push((TYPE.to_owned(), name.clone()));
            owner.labels.sort_unstable();
        }
        owner.block_bytes = Some(block.bytes);
        let bytes = block.taken_bytes as f64;
        let seen = self.open.entry(measured.window).or_default();
        seen.add(
            measured.detail >> allocation::TOTAL_SHIFT,
            stands_for,
            bytes,
        );
        let parts = |value: f64| (value * PARTS).round() as i64;
        Some([parts(stands_for), parts(stands_for * bytes), 0, 0])
    }

    /// Leaves the allocator's own functions at a stack's begin out, as Go's own profiles
    /// do, all of them where there is nothing else; and gives the call of it.
    fn trim(&mut self, binary: &GoBinary, stack: &mut Vec<u64>) -> u64 {
        let (shown, bias) = (&mut self.shown, self.bias);
        let found = stack.iter().enumerate().find_map(|(index, call)| {
            let at = shown
                .entry(*call)
                .or_insert_with(|| first_shown(binary, bias, *call));
            at.map(|at| (index, at))
        });
        let Some((index, at)) = found else {
            return 0;
        };
        let call = stack[index];
        stack.drain(..index);
        stack[0] = at;
        call
    }

    /// A window is over, in which so much was seen.
    pub(super) fn close(&mut self, closed: &Closed, window: Option<&Window>) {
        let (number, is_whole) = (closed.plan.number, closed.plan.whole);
        let noted = self.totals.take(number);
        let seen = self.open.remove(&number);
        if let Some(noted) = noted {
            let inside = InWindow {
                ns: closed.watched_ns(),
                bytes: seen.as_ref().map_or(0, Seen::counted_bytes),
                taken_ns: closed.charged_ns,
            };
            self.bursts.close(noted, (!is_whole).then_some(inside));
        }
        let (Some(seen), Some(window)) = (seen, window) else {
            return;
        };
        if is_whole {
            for (to, from) in self.variance.iter_mut().zip(seen.variance) {
                *to += from;
            }
        }
        self.inside.add(&seen);
        if self.source.rate().is_none() {
            self.strata.close(&seen, window, noted.map(|of| of.total));
        }
    }

    /// What was seen since the last call by the runtime's totals, if that can be had,
    /// and how it compares. `counts` and `bytes` are the totals by the time that was
    /// watched, and are replaced.
    pub(super) fn split_off(
        &mut self,
        counts: &mut Estimate,
        bytes: &mut Estimate,
    ) -> (Option<(Window, f64)>, AllocationFacts) {
        for (estimate, variance) in [(&mut *counts, 0), (&mut *bytes, 1)] {
            let more = std::mem::take(&mut self.variance[variance]);
            estimate.standard_error = estimate.standard_error.hypot(more.sqrt());
        }
        let total = self.totals.read().unwrap_or(self.strata.latest);
        let mut strata = std::mem::replace(&mut self.strata, Strata::new(total));
        let inside = std::mem::take(&mut self.inside);
        let bursts = self.bursts.split_off();
        let at = self.source.seen_at();
        let calibrated = match at {
            // As Go's own profiles are.
            SeenAt::Samples(_) => None,
            _ if inside.is_near() && self.totals.address.is_some() => strata.end(total),
            _ => None,
        };
        let facts = AllocationFacts {
            at,
            rate_changed: std::mem::take(&mut self.rate_changed),
            estimated_bytes: bytes.value,
            runtime_bytes: self
                .totals
                .address
                .map(|_| total.saturating_sub(strata.began)),
            seen_share: inside.seen_share(),
            is_calibrated: calibrated.is_some(),
            missed_share: match at {
                SeenAt::Samples(_) => None,
                _ => bursts.missed_share(),
            },
        };
        let window = calibrated.map(|(objects, counted, rest)| {
            (*counts, *bytes) = (objects, counted);
            (strata.whole, rest)
        });
        if at == SeenAt::Spans {
            // Nothing in what was seen says it.
            counts.standard_error = f64::INFINITY;
            bytes.standard_error = f64::INFINITY;
        }
        (window, facts)
    }
}

impl Source {
    /// Adds the probes to `set`.
    fn probe(self, binary: &GoBinary, programs: &UprobePrograms, set: &mut ProbeSet) -> Result<()> {
        match self {
            Source::Samples { .. } => {
                let place = binary.sampler_place();
                let place =
                    place.map_err(|why| anyhow!("cannot probe runtime.profilealloc: {why}"))?;
                set.add(programs, SAMPLED, &[place])
            }
            Source::Calls => {
                let places = binary.allocator_places().map_err(|why| anyhow!(why))?;
                let marked: Vec<_> = places
                    .iter()
                    .map(|at| (at.place, at.passed_on_bytes << cookie::LEAST_BYTES_SHIFT))
                    .collect();
                set.add_marked(programs, ANY, &marked)
            }
            Source::Spans => {
                let [refill, large] = binary.span_places().map_err(|why| anyhow!(why))?;
                set.add_marked(programs, SPAN, &[(refill, 0), (large, cookie::LARGE)])
            }
        }
    }

    /// One in how many bytes the runtime samples, where its samples are seen.
    fn rate(self) -> Option<u64> {
        match self {
            Source::Samples { rate, .. } => Some(rate),
            Source::Calls | Source::Spans => None,
        }
    }

    fn seen_at(self) -> SeenAt {
        match self {
            Source::Samples { rate, .. } => SeenAt::Samples(rate),
            Source::Calls => SeenAt::Calls,
            Source::Spans => SeenAt::Spans,
        }
    }
}

/// The programs that a source may take.
pub(super) fn programs(source: AllocSource) -> &'static [&'static str] {
    match source {
        AllocSource::Auto => &[SAMPLED, ANY],
        AllocSource::Calls => &[ANY],
        AllocSource::Spans => &[SPAN],
    }
}

/// What windows have as values of an event, in the unit of those of the profile.
pub(super) fn unit(event: Event) -> f64 {
    match event {
        Event::AllocEvents => 1.0 / PARTS,
        _ => 1.0,
    }
}

/// How many allocations one that was taken stands for, where one in so many bytes is.
fn stands_for(size_bytes: u64, mean_bytes: u64) -> f64 {
    if mean_bytes <= 1 || size_bytes == 0 {
        return 1.0;
    }
    -1.0 / (-(size_bytes as f64) / mean_bytes as f64).exp_m1()
}

/// Where a call is shown: itself, or of inlined calls the first that is not the
/// allocator's. Go asks who returns there and not who calls (`runtime.FuncForPC`).
fn first_shown(binary: &GoBinary, bias: u64, call: u64) -> Option<u64> {
    let vaddr = call.wrapping_sub(bias);
    let chain = binary.inlined_calls(vaddr).unwrap_or_else(|| vec![vaddr]);
    let is_shown = |at: &u64| {
        let name = binary.innermost_name(at.wrapping_add(1));
        !name.is_some_and(|name| is_hidden_allocator(&name))
    };
    let at = chain.into_iter().find(is_shown)?;
    Some(at.wrapping_add(bias))
}

impl<T: Sampled> Recorder<T> {
    /// Memory was allocated.
    pub(super) fn allocated(&mut self, measured: &Measured, sample: &Sample<'_>) {
        let Some(mut owner) = self.unwind(sample) else {
            return;
        };
        let pid = measured.header.pid;
        let probed = self.probing.as_mut().and_then(|probing| probing.get(pid));
        let Some(probed) = probed else {
            self.tally.unknown_process += 1;
            return;
        };
        let allocations = probed.allocations.as_mut();
        let values = allocations.and_then(|of| of.take(measured, &mut self.stack, &mut owner));
        let Some(values) = values else {
            self.tally.undecodable += 1;
            return;
        };
        let window = probed.window(measured.window, false);
        let window = window.get(Event::AllocEvents);
        window.add_values(owner, &self.stack, 0, values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_stands_for_those_that_were_not_taken() {
        let close = |of: f64, expected: f64| assert!((of - expected).abs() < 1e-3, "{of}");
        close(stands_for(512, 512), 1.582);
        close(stands_for(16, 512), 32.503);
        close(stands_for(1 << 20, 512), 1.0);
        close(stands_for(100, 1), 1.0);
        close(stands_for(0, 512), 1.0);
    }
}
