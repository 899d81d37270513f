//! Allocations, as probes see them: what each stands for, who allocates, what type it
//! is, and the runtime's own total to hold their sum against.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Result, anyhow};
use profiler_ebpf::wire::{Measured, allocation, cookie};

use super::{
    allocation_totals::{Seen, Strata, Totals},
    recorder::{Recorder, Sampled},
};
use crate::{
    aggregate::{Owner, Values, Window},
    decode::Sample,
    gobinary::{AllocationSites, Block, GoBinary, is_hidden_allocator},
    gomemory::{Live, Memory as _},
    probe::{Estimate, ProbeSet, UprobePrograms},
    process::{Object, Process},
    symbolize::Event,
};

/// The programs, at the runtime's samples and at all allocations.
pub(super) const PROGRAMS: [&str; 2] = ["allocation_sampled", "allocation_any"];

/// Values of allocations are kept in these parts until their window is over: what one
/// stands for is no whole number.
pub(super) const PARTS: f64 = 256.0;
/// Places whose callers and types are remembered before all are forgotten.
const MAX_PLACES: usize = 1 << 16;
/// The runtime counts what a processor's cache of spans was used for when it takes
/// another: so late may its total be at the end of a window. What it counted in all
/// windows together must be more than the least to be held against what was seen.
const LATE_BYTES: f64 = (128 << 10) as f64;
const LEAST_BYTES: u64 = 4 << 20;
/// How far these may be apart beside that: else something is missing that is not to be
/// made up for by what was seen.
const MOST_OFF: f64 = 0.25;

/// The label of the type.
const TYPE: &str = "type";

/// Where allocations were seen, and how their sum compares.
#[derive(Debug, Clone, PartialEq)]
pub struct AllocationFacts {
    /// One in how many bytes the runtime samples, where its samples were seen; None
    /// where all allocations were, in windows.
    pub rate: Option<u64>,
    /// Whether the program changed that rate meanwhile.
    pub rate_changed: bool,
    /// What was seen comes to so many bytes, by the time that was watched.
    pub estimated_bytes: f64,
    /// What the runtime counted meanwhile, in bytes.
    pub runtime_bytes: Option<u64>,
    /// What was seen in the windows of what the runtime counted in them, where that was
    /// enough to tell.
    pub seen_share: Option<f64>,
    /// Whether the values come to what the runtime counted.
    pub is_calibrated: bool,
}

impl AllocationFacts {
    /// Where allocations were seen, and what became of the total, in words.
    pub fn source(&self, watched_share: f64) -> String {
        let mut words = match self.rate {
            Some(rate) => format!("sampled by the runtime (once in {rate} bytes)"),
            None => format!(
                "windows over mallocgc, watched {:.1}% of the time",
                watched_share * 100.0
            ),
        };
        if self.rate_changed {
            words.push_str(", a rate that the program changed meanwhile");
        }
        let megabytes = |bytes: f64| format!("{:.1} MB", bytes / 1e6);
        let counted = self.runtime_bytes.map(|bytes| megabytes(bytes as f64));
        words.push_str(&match counted {
            Some(counted) if self.is_calibrated => {
                format!(", calibrated by the runtime's totals, {counted}")
            }
            Some(counted) => {
                let estimated = megabytes(self.estimated_bytes);
                format!(", {estimated} where the runtime counts {counted}")
            }
            None => ", the runtime's totals are not known".to_owned(),
        });
        if let Some(share) = self.seen_share {
            words.push_str(&format!(
                "; in the windows {:.1}% of what it counted was seen",
                share * 100.0
            ));
        }
        words
    }
}

/// What there is to know of a process whose allocations are seen.
pub(super) struct Allocations {
    object: Arc<Object>,
    bias: u64,
    memory: Live,
    sites: AllocationSites,
    /// Where the rate is and what it is, where the runtime's samples are seen.
    rate: Option<(u64, u64)>,
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
}

/// What was seen in windows, and what the runtime counted in them.
#[derive(Debug, Default)]
struct Inside {
    seen_bytes: f64,
    counted_bytes: u64,
    windows: u64,
}

impl Inside {
    /// What was seen of what was counted, where that is enough to tell.
    fn seen_share(&self) -> Option<f64> {
        let share = self.seen_bytes / self.counted_bytes as f64;
        (self.counted_bytes >= LEAST_BYTES).then_some(share)
    }

    /// Whether what was seen may be all there was.
    fn is_near(&self) -> bool {
        let counted = self.counted_bytes as f64;
        let most = MOST_OFF * counted + LATE_BYTES * self.windows as f64;
        self.counted_bytes < LEAST_BYTES || (self.seen_bytes - counted).abs() <= most
    }
}

impl Allocations {
    /// Chooses where allocations of a process are seen, and adds the probes to `set`.
    ///
    /// # Errors
    /// It has no place for them, or its memory cannot be read.
    pub(super) fn begin(
        process: &Process,
        programs: &UprobePrograms,
        set: &mut ProbeSet,
    ) -> Result<Self> {
        let memory = Live::open(process.pid)?;
        let not_mapped = || anyhow!("its Go code is not mapped");
        let object = process.go_object().ok_or_else(not_mapped)?;
        let program = process.go_program(&memory).ok_or_else(not_mapped)?;
        let binary = program.binary;
        let rate = program
            .mem_profile_rate()
            .ok()
            .filter(|(_, rate)| *rate > 0);
        let [sampled, any] = PROGRAMS;
        if rate.is_some() {
            let place = binary.sampler_place();
            let place = place.map_err(|why| anyhow!("cannot probe runtime.profilealloc: {why}"))?;
            set.add(programs, sampled, &[place])?;
        } else {
            let places = binary.allocator_places().map_err(|why| anyhow!(why))?;
            let marked: Vec<_> = places
                .iter()
                .map(|at| (at.place, at.passed_on_bytes << cookie::LEAST_BYTES_SHIFT))
                .collect();
            set.add_marked(programs, any, &marked)?;
        }
        let bias = program.bias;
        let totals = Totals::of(process.pid, program.total_alloc_address())?;
        Ok(Self {
            object: Arc::clone(object),
            bias,
            sites: binary.allocation_sites(),
            rate,
            rate_changed: false,
            strata: Strata::new(totals.read().unwrap_or(0)),
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
        if let Some((at, rate)) = &mut self.rate
            && let Some(now) = self.memory.word(*at)
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
        let (block, mean) = match measured.detail & allocation::WHY {
            allocation::BY_THRESHOLD => {
                let has_pointers = of.as_ref().is_some_and(|of| of.has_pointers);
                let block = Block::of(size, has_pointers, binary.version());
                (block, allocation::MEAN_BYTES)
            }
            _ => {
                let block = Block {
                    bytes: size,
                    taken_bytes: size,
                };
                (block, self.rate.map_or(1, |(_, rate)| rate))
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
        let stands_for = stands_for(size, mean);
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
    pub(super) fn close(&mut self, number: u64, is_whole: bool, window: Option<&Window>) {
        let total = self.totals.take(number);
        let (Some(seen), Some(window)) = (self.open.remove(&number), window) else {
            return;
        };
        if is_whole {
            for (to, from) in self.variance.iter_mut().zip(seen.variance) {
                *to += from;
            }
        }
        let (first, last) = seen.totals;
        if first > 0 {
            self.inside.seen_bytes += seen.bytes - seen.first_bytes;
            self.inside.counted_bytes += last - first;
            self.inside.windows += 1;
        }
        if self.rate.is_none() {
            self.strata.close(&seen, window, total);
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
        let seen_share = inside.seen_share();
        let estimated_bytes = bytes.value;
        let calibrated = match self.rate {
            None if inside.is_near() && self.totals.address.is_some() => strata.end(total),
            // As Go's own profiles are.
            _ => None,
        };
        let facts = AllocationFacts {
            rate: self.rate.map(|(_, rate)| rate),
            rate_changed: std::mem::take(&mut self.rate_changed),
            estimated_bytes,
            runtime_bytes: self
                .totals
                .address
                .map(|_| total.saturating_sub(strata.began)),
            seen_share,
            is_calibrated: calibrated.is_some(),
        };
        let window = calibrated.map(|(objects, counted, rest)| {
            (*counts, *bytes) = (objects, counted);
            (strata.whole, rest)
        });
        (window, facts)
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

    #[test]
    fn what_is_seen_twice_or_by_half_is_told_from_all() {
        let of = |seen_mb: u64, windows| Inside {
            seen_bytes: (seen_mb << 20) as f64,
            counted_bytes: 100 << 20,
            windows,
        };
        assert!(of(110, 10).is_near() && of(90, 10).is_near());
        assert!(!of(200, 10).is_near() && !of(50, 10).is_near());
        assert!(
            of(150, 300).is_near(),
            "short windows, of which the count is late"
        );
        assert_eq!(of(50, 10).seen_share(), Some(0.5));
        assert_eq!(Inside::default().seen_share(), None);
        assert!(Inside::default().is_near(), "nobody knows");
    }

    #[test]
    fn the_source_is_told_in_words() {
        let facts = AllocationFacts {
            rate: None,
            rate_changed: false,
            estimated_bytes: 100e6,
            runtime_bytes: Some(103_000_000),
            seen_share: Some(0.987),
            is_calibrated: true,
        };
        let calibrated = "windows over mallocgc, watched 4.0% of the time, calibrated by the \
                          runtime's totals, 103.0 MB; in the windows 98.7% of what it counted was \
                          seen";
        assert_eq!(facts.source(0.04), calibrated);
        let sampled = AllocationFacts {
            rate: Some(512),
            seen_share: None,
            is_calibrated: false,
            ..facts
        };
        let expected = "sampled by the runtime (once in 512 bytes), 100.0 MB where the runtime \
                        counts 103.0 MB";
        assert_eq!(sampled.source(1.0), expected);
    }
}
