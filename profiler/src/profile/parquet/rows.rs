//! Rows: the samples of a window that differ in what a row shows, in the order
//! in which they repeat the most. What counts nothing has none.

use std::cmp::Ordering;

use super::super::Batch;
use super::columns::{SORTED_BY, source_parts};
use crate::symbolize::{FrameKind, Line, LocationId, Sample, Values};

/// A row.
#[derive(Debug)]
pub(super) struct Row<'w> {
    /// The first of the samples that it stands for; its values are not the row's.
    pub sample: &'w Sample,
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
        let samples = window.samples.iter();
        let rows = samples.map(|sample| Row {
            sample,
            values: sample.values,
        });
        let mut rows: Vec<Row<'w>> = rows.collect();
        let order = Order::new(batch);
        rows.sort_by(|a, b| order.compare(a.sample, b.sample));
        rows.dedup_by(|next, row| {
            let is_same = order.compare(next.sample, row.sample).is_eq();
            if is_same {
                for (value, added) in row.values.iter_mut().zip(next.values) {
                    *value = value.saturating_add(added);
                }
            }
            is_same
        });
        let (count, value) = window.event.stored();
        rows.retain(|row| row.values[count] != 0 || row.values[value] != 0);
        Rows { rows }
    }

    /// In order.
    pub(super) fn sorted(&self) -> &[Row<'w>] {
        &self.rows
    }
}

/// What the order of rows goes by: places among the distinct ones.
struct Order {
    /// Of processes, by [`SORTED_BY`].
    programs: Vec<u32>,
    /// Of locations, by the names of their functions.
    names: Vec<u32>,
    /// Of locations, by all that a row shows of them.
    looks: Vec<u32>,
}

impl Order {
    fn new(batch: &Batch) -> Self {
        let window = &batch.window;
        let label = |at: usize, name| batch.targets[at].label(name);
        let programs = rank(batch.targets.len(), |a, b| {
            let labels = SORTED_BY.iter().map(|name| label(a, name));
            labels.cmp(SORTED_BY.iter().map(|name| label(b, name)))
        });
        let location = |at: usize| &window.locations[at];
        let names = |at: usize| {
            let function = |line: &Line| &window.functions[line.function.0 as usize];
            let outermost_first = location(at).lines.iter().rev();
            outermost_first.map(move |line| function(line).name.as_str())
        };
        let sources = |at: usize| {
            let outermost_first = location(at).lines.iter().rev();
            outermost_first.map(move |line| source_parts(window, location(at), line))
        };
        let kind = |at: usize| match location(at).kind {
            FrameKind::Go => 0,
            FrameKind::Native => 1,
            FrameKind::Kernel => 2,
        };
        let by_name = rank(window.locations.len(), |a, b| names(a).cmp(names(b)));
        let looks = rank(window.locations.len(), |a, b| {
            let by_name = by_name[a].cmp(&by_name[b]);
            by_name
                .then_with(|| sources(a).cmp(sources(b)))
                .then_with(|| kind(a).cmp(&kind(b)))
        });
        Self {
            programs,
            names: by_name,
            looks,
        }
    }

    /// Service, program, then the stack from the outside in, so that neighbours
    /// have as much of it in common as can be; then whose it is. Equal are those
    /// that a row shows as the same.
    fn compare(&self, a: &Sample, b: &Sample) -> Ordering {
        let program = |sample: &Sample| self.programs[sample.process.0 as usize];
        let stacks = |ranks: &[u32]| {
            let rank = |id: &LocationId| ranks[id.0 as usize];
            let outermost_first = a.stack.iter().rev().map(rank);
            outermost_first.cmp(b.stack.iter().rev().map(rank))
        };
        program(a)
            .cmp(&program(b))
            .then_with(|| stacks(&self.names))
            .then_with(|| stacks(&self.looks))
            .then_with(|| a.labels.cmp(&b.labels))
            .then_with(|| a.process.cmp(&b.process))
            .then_with(|| thread(a).cmp(&thread(b)))
            .then_with(|| a.goid.cmp(&b.goid))
    }
}

fn thread(sample: &Sample) -> Option<(u32, &str)> {
    let thread = sample.thread.as_ref()?;
    Some((thread.tid, thread.name.as_str()))
}

/// For each of so many things its place among the distinct ones.
fn rank(count: usize, compare: impl Fn(usize, usize) -> Ordering) -> Vec<u32> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_unstable_by(|a, b| compare(*a, *b));
    let mut ranks = vec![0; count];
    let mut last = 0;
    for pair in order.windows(2) {
        last += u32::from(compare(pair[0], pair[1]).is_ne());
        ranks[pair[1]] = last;
    }
    ranks
}
