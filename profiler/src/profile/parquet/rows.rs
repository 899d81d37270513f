//! Rows: the samples of a window that differ in what a row shows, in the order
//! in which they repeat the most.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use super::super::Batch;
use crate::symbolize::{FrameKind, FunctionId, Line, LocationId, Sample, SymbolizedWindow};

/// A row.
#[derive(Debug)]
pub(super) struct Row<'w> {
    /// A sample that it stands for; its stack and count are not the row's.
    pub sample: &'w Sample,
    /// Locations, outermost first, each the first of those that look alike.
    pub stack: Vec<LocationId>,
    /// How many samples.
    pub count: u64,
}

/// The rows of a window, sorted.
#[derive(Debug)]
pub(super) struct Rows<'w> {
    rows: Vec<Row<'w>>,
}

impl<'w> Rows<'w> {
    /// Merges the samples that differ in addresses alone, and sorts.
    pub(super) fn new(batch: &'w Batch) -> Self {
        let window = &batch.window;
        let looks = alike(window);
        let mut merged: HashMap<_, Row<'w>> = HashMap::with_capacity(window.samples.len());
        for sample in &window.samples {
            let stack: Vec<LocationId> = sample
                .stack
                .iter()
                .rev()
                .map(|id| looks[id.0 as usize])
                .collect();
            let thread = sample.thread.as_ref().map(|t| (t.tid, t.name.as_str()));
            let key = (sample.process, thread, sample.goid, &sample.labels, stack);
            let stack = key.4.clone();
            let row = merged.entry(key).or_insert(Row {
                sample,
                stack,
                count: 0,
            });
            row.count = row.count.saturating_add(sample.count);
        }
        let mut rows: Vec<Row<'w>> = merged.into_values().collect();
        sort(batch, &mut rows);
        Rows { rows }
    }

    /// In order.
    pub(super) fn sorted(&self) -> &[Row<'w>] {
        &self.rows
    }
}

/// For each location the first one that looks the same.
fn alike(window: &SymbolizedWindow) -> Vec<LocationId> {
    let mut first: HashMap<_, LocationId> = HashMap::new();
    let locations = window.locations.iter().zip(0..);
    locations
        .map(|(location, id)| {
            let file = location
                .mapping
                .map(|m| &window.mappings[m.0 as usize].file);
            let lines: Vec<(FunctionId, u32)> = location
                .lines
                .iter()
                .map(|l| (l.function, l.line))
                .collect();
            let look = (lines, file, location.kind);
            *first.entry(look).or_insert(LocationId(id))
        })
        .collect()
}

/// Service, program, then the stack from the outside in, so that neighbours
/// have as much of it in common as can be; then whose it is.
fn sort(batch: &Batch, rows: &mut [Row<'_>]) {
    let window = &batch.window;
    let (names, lines) = ranks(window);
    let by_rank = |ranks: &[u32], a: &Row<'_>, b: &Row<'_>| {
        let rank = |id: &LocationId| ranks[id.0 as usize];
        a.stack.iter().map(rank).cmp(b.stack.iter().map(rank))
    };
    rows.sort_by(|a, b| {
        let target = |row: &Row<'_>| &batch.targets[row.sample.process.0 as usize];
        let (ours, theirs) = (target(a), target(b));
        let text = |name: &str| ours.label(name).cmp(theirs.label(name));
        let (left, right) = (a.sample, b.sample);
        super::columns::SORTED_BY
            .iter()
            .fold(Ordering::Equal, |so_far, name| {
                so_far.then_with(|| text(name))
            })
            .then_with(|| by_rank(&names, a, b))
            .then_with(|| by_rank(&lines, a, b))
            .then_with(|| left.labels.cmp(&right.labels))
            .then_with(|| left.process.cmp(&right.process))
            .then_with(|| thread(left).cmp(&thread(right)))
            .then_with(|| left.goid.cmp(&right.goid))
    });
}

fn thread(sample: &Sample) -> Option<(u32, &str)> {
    let thread = sample.thread.as_ref()?;
    Some((thread.tid, thread.name.as_str()))
}

/// Two ranks for each location: by the names of its functions, and by
/// everything that it shows.
fn ranks(window: &SymbolizedWindow) -> (Vec<u32>, Vec<u32>) {
    let mut names: BTreeMap<Vec<&str>, u32> = BTreeMap::new();
    let mut looks = BTreeMap::new();
    let named = |lines: &[Line]| -> Vec<&str> {
        let outermost_first = lines.iter().rev();
        outermost_first
            .map(|l| window.functions[l.function.0 as usize].name.as_str())
            .collect()
    };
    let look = |id: usize| {
        let location = &window.locations[id];
        let lines = location.lines.iter().rev();
        let lines: Vec<(u32, &str)> = lines
            .map(|l| {
                (
                    l.line,
                    window.functions[l.function.0 as usize].file.as_str(),
                )
            })
            .collect();
        let file = location
            .mapping
            .map(|m| window.mappings[m.0 as usize].file.as_str());
        (lines, file, kind_name(location.kind))
    };
    for (id, location) in window.locations.iter().enumerate() {
        names.insert(named(&location.lines), 0);
        looks.insert(look(id), 0);
    }
    names.values_mut().zip(0..).for_each(|(rank, i)| *rank = i);
    looks.values_mut().zip(0..).for_each(|(rank, i)| *rank = i);
    let locations = window.locations.iter().enumerate();
    locations
        .map(|(id, location)| (names[&named(&location.lines)], looks[&look(id)]))
        .unzip()
}

/// The kind of a frame as the store has it.
pub(super) fn kind_name(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Go => "go",
        FrameKind::Native => "native",
        FrameKind::Kernel => "kernel",
    }
}
