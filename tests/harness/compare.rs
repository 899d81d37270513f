//! Comparing two profiles of one program function by function: the time in a
//! function itself (flat) and in all it calls (cumulative), inlined functions
//! counted as functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use goprof::gobinary::GoBinary;
use goprof::image::Image;

use crate::pprof::{Frame, Profile, Stack};

/// Samples by function name.
pub type Counts = BTreeMap<String, f64>;

/// The samples of one or more profiles, summed by function.
#[derive(Default)]
pub struct Totals {
    /// Samples with the function as leaf.
    pub flat: Counts,
    /// Samples with the function anywhere, once per sample whatever the
    /// recursion.
    pub cumulative: Counts,
    /// All samples.
    pub samples: u64,
    /// Samples put down to the caller of `runtime.asyncPreempt`, see
    /// [`PREEMPTED`].
    pub folded: u64,
}

/// Where Go's own profiler finds a thread whose preemption signal (SIGURG) and
/// profiling signal (SIGPROF) were both pending when it got the CPU back: the
/// first handler has just made the thread call this function, and the second
/// sees it at its first instruction (runtime/signal_unix.go, `doSigPreempt`).
/// The time was spent in the caller, so both profiles count it there; on a busy
/// machine it is a quarter of Go's samples, on a quiet one next to none.
const PREEMPTED: &str = "runtime.asyncPreempt";

/// Names the callers of [`PREEMPTED`] in a profile of Go's own anew. Go takes
/// the interrupted instruction for the one behind a call, and so shows the
/// instruction before it, which may belong to another inlined function.
#[track_caller]
pub fn name_preempted(profile: &mut Profile, binary: &Path) {
    let image = File::open(binary).ok().and_then(|f| Image::open(f).ok());
    let image = image.unwrap_or_else(|| panic!("open {}", binary.display()));
    let binary = GoBinary::parse(Arc::new(image)).expect("a Go program");
    for stack in &mut profile.stacks {
        let [leaf, caller, ..] = stack.frames.as_slice() else {
            continue;
        };
        if leaf.function != PREEMPTED {
            continue;
        }
        // Go's address is that of the last byte of the instruction before.
        let address = caller.address;
        let mut found = Vec::new();
        if binary.frames(address + 1, &mut found).is_err() {
            continue;
        }
        let rest = stack.frames.iter().skip(1);
        let inlined = rest.take_while(|frame| frame.address == address).count();
        let named = found.into_iter().map(|frame| Frame {
            function: frame.name,
            file: frame.file,
            line: frame.line.into(),
            start_line: frame.start_line.into(),
            inlined: frame.inlined,
            mapping: String::new(),
            address: address + 1,
        });
        stack.frames.splice(1..=inlined, named);
    }
}

/// Where Go's own profiler puts the time spent in C: it does not see C frames,
/// and begins at the call that `runtime.entersyscall` noted (runtime/proc.go,
/// `sigprof`). goprof shows them; they are left out of both profiles here, and
/// held to their callers by tests of their own.
const CALLS_C: &str = "runtime.cgocall";

/// Above [`CALLS_C`] if C called back into Go: those frames count.
const CALLED_BACK: &str = "runtime.cgocallbackg";

impl Totals {
    /// Adds the samples of a profile.
    pub fn add(&mut self, profile: &Profile) {
        for stack in &profile.stacks {
            self.add_stack(stack);
        }
    }

    /// Adds what was summed elsewhere.
    pub fn merge(&mut self, other: &Totals) {
        for (into, from) in [
            (&mut self.flat, &other.flat),
            (&mut self.cumulative, &other.cumulative),
        ] {
            for (name, count) in from {
                *into.entry(name.clone()).or_default() += count;
            }
        }
        self.samples += other.samples;
        self.folded += other.folded;
    }

    fn add_stack(&mut self, stack: &Stack) {
        let frames = stack.frames.iter().filter(|frame| !frame.is_kernel());
        let mut names: Vec<&str> = frames.map(|frame| frame.function.as_str()).collect();
        if names.len() > 1 && names[0] == PREEMPTED {
            names.remove(0);
            self.folded += stack.count;
        }
        let in_c = names.iter().position(|name| *name == CALLS_C);
        if let Some(at) = in_c.filter(|_| !names.contains(&CALLED_BACK)) {
            names.drain(..at);
        }
        let weight = stack.count as f64;
        self.samples += stack.count;
        if let Some(leaf) = names.first() {
            *self.flat.entry((*leaf).to_owned()).or_default() += weight;
        }
        let distinct: BTreeSet<&str> = names.into_iter().collect();
        for name in distinct {
            *self.cumulative.entry(name.to_owned()).or_default() += weight;
        }
    }
}

/// How alike two profiles are: 1 is the same distribution, 0 nothing in common.
#[derive(Debug, Clone, Copy)]
pub struct Likeness {
    /// Cosine similarity of the flat counts.
    pub flat: f64,
    /// Cosine similarity of the cumulative counts.
    pub cumulative: f64,
}

/// Compares two profiles.
pub fn likeness(a: &Totals, b: &Totals) -> Likeness {
    Likeness {
        flat: cosine(&a.flat, &b.flat),
        cumulative: cosine(&a.cumulative, &b.cumulative),
    }
}

/// The cosine of the angle between two profiles as vectors over functions; 0
/// where one of them is empty.
pub fn cosine(a: &Counts, b: &Counts) -> f64 {
    let product: f64 = a
        .iter()
        .map(|(name, x)| x * b.get(name).unwrap_or(&0.0))
        .sum();
    let norm = |v: &Counts| v.values().map(|x| x * x).sum::<f64>().sqrt();
    let norms = norm(a) * norm(b);
    if norms == 0.0 { 0.0 } else { product / norms }
}

/// The functions whose shares differ most, one per line: the share in `a`, the
/// share in `b`, the name.
pub fn differences(a: &Counts, b: &Counts, samples: (u64, u64), count: usize) -> String {
    let share = |v: &Counts, name: &str, all: u64| 100.0 * v.get(name).unwrap_or(&0.0) / all as f64;
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let mut rows: Vec<(f64, f64, &str)> = names
        .into_iter()
        .map(|name| {
            (
                share(a, name, samples.0),
                share(b, name, samples.1),
                name.as_str(),
            )
        })
        .collect();
    rows.sort_by(|x, y| (y.0 - y.1).abs().total_cmp(&(x.0 - x.1).abs()));
    let mut text = String::new();
    for (in_a, in_b, name) in rows.into_iter().take(count) {
        let _ = writeln!(text, "  {in_a:6.2}% {in_b:6.2}%  {name}");
    }
    text
}
