//! Rows: the samples of a window that differ in what a row shows, in the order
//! in which they repeat the most. What counts nothing has none.

use std::borrow::Cow;

use foldhash::HashMap;

use super::super::Batch;
use super::columns::{SORTED_BY, source};
use crate::symbolize::{Line, LocationId, Sample, SymbolizedWindow, Values};

/// A row.
#[derive(Debug)]
pub(super) struct Row<'w> {
    /// A sample that it stands for; its stack and values are not the row's.
    pub sample: &'w Sample,
    /// Locations, outermost first, each the first of those that look alike.
    pub stack: Vec<LocationId>,
    /// The sum of its values.
    pub values: Values,
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
        // The stacks are the keys and then the rows': there are many.
        let mut merged: HashMap<_, (&'w Sample, Values)> = HashMap::default();
        for sample in &window.samples {
            let stack: Vec<LocationId> = sample
                .stack
                .iter()
                .rev()
                .map(|id| looks[id.0 as usize])
                .collect();
            let thread = sample.thread.as_ref().map(|t| (t.tid, t.name.as_str()));
            let key = (sample.process, thread, sample.goid, &sample.labels, stack);
            let (_, values) = merged.entry(key).or_insert((sample, Values::default()));
            for (value, added) in values.iter_mut().zip(sample.values) {
                *value = value.saturating_add(added);
            }
        }
        let (count, value) = window.event.stored();
        let is_there = |row: &Row<'_>| row.values[count] != 0 || row.values[value] != 0;
        let rows = merged.into_iter();
        let mut rows: Vec<Row<'w>> = rows
            .map(|((.., stack), (sample, values))| Row {
                sample,
                stack,
                values,
            })
            .filter(is_there)
            .collect();
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
    let mut first: HashMap<_, LocationId> = HashMap::default();
    let locations = window.locations.iter().zip(0..);
    locations
        .map(|(location, id)| {
            // What `source` shows, without its text for each.
            let look = |line: &Line| {
                let function = &window.functions[line.function.0 as usize];
                let file = match location.mapping {
                    Some(mapping) if function.file.is_empty() => {
                        window.mappings[mapping.0 as usize].file.as_str()
                    }
                    _ => "",
                };
                (line.function, line.line, file)
            };
            let lines: Vec<_> = location.lines.iter().map(look).collect();
            *first
                .entry((lines, location.kind))
                .or_insert(LocationId(id))
        })
        .collect()
}

/// Service, program, then the stack from the outside in, so that neighbours
/// have as much of it in common as can be; then whose it is.
fn sort(batch: &Batch, rows: &mut [Row<'_>]) {
    let window = &batch.window;
    let (names, sources) = ranks(window);
    let by_rank = |ranks: &[u32], a: &Row<'_>, b: &Row<'_>| {
        let rank = |id: &LocationId| ranks[id.0 as usize];
        a.stack.iter().map(rank).cmp(b.stack.iter().map(rank))
    };
    let programs = batch.targets.iter();
    let programs: Vec<_> = programs
        .map(|target| SORTED_BY.map(|name| target.label(name)))
        .collect();
    let programs = rank(&programs);
    rows.sort_by(|a, b| {
        let program = |row: &Row<'_>| programs[row.sample.process.0 as usize];
        let (left, right) = (a.sample, b.sample);
        program(a)
            .cmp(&program(b))
            .then_with(|| by_rank(&names, a, b))
            .then_with(|| by_rank(&sources, a, b))
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

/// Two ranks for each location: by the names of its functions, and by where
/// they are.
fn ranks(window: &SymbolizedWindow) -> (Vec<u32>, Vec<u32>) {
    // One after the other: they are large.
    let names = window.locations.iter().map(|location| {
        let outermost_first = location.lines.iter().rev();
        let function = |line: &Line| &window.functions[line.function.0 as usize];
        outermost_first
            .map(|line| function(line).name.as_str())
            .collect()
    });
    let names = rank(&names.collect::<Vec<Vec<&str>>>());
    let sources = window.locations.iter().map(|location| {
        let outermost_first = location.lines.iter().rev();
        outermost_first
            .map(|line| source(window, location, line))
            .collect()
    });
    let sources = rank(&sources.collect::<Vec<Vec<Cow<'_, str>>>>());
    (names, sources)
}

/// For each item its place among the distinct ones.
fn rank<T: Ord>(items: &[T]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_unstable_by_key(|index| &items[*index]);
    let mut ranks = vec![0; items.len()];
    let mut last = 0;
    for pair in order.windows(2) {
        last += u32::from(items[pair[0]] != items[pair[1]]);
        ranks[pair[1]] = last;
    }
    ranks
}
