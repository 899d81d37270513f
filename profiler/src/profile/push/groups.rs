//! Groups: the samples of a window by whose they are, and a window of its own for
//! any part of them. Processes with the same labels are one group; threads and
//! goroutines are not told apart in it. Knows no format.

use std::collections::{BTreeMap, BTreeSet};

use foldhash::{HashMap, HashMapExt as _};

use super::labels::{Cut, Label, SampleLabels, of_target};
use crate::profile::Batch;
use crate::symbolize::{
    FunctionId, Line, Location, LocationId, MappingId, ProcessId, Sample, SymbolizedWindow,
};

/// What processes with the same labels did.
pub(super) struct Group {
    /// Whose it is.
    pub labels: Vec<Label>,
    /// Which of the window's processes stands for all of them.
    process: ProcessId,
    /// The distinct stacks, which refer to the whole window's tables.
    pub samples: Vec<Sample>,
}

/// The numbers of the samples of each group, by its labels.
pub(super) type Members = BTreeMap<Vec<Label>, Vec<usize>>;

/// Sorts the samples by whose they are.
pub(super) fn members(batch: &Batch, cluster: &str) -> Members {
    let window = &batch.window;
    let processes = window.processes.iter().zip(&batch.targets);
    let labels: Vec<Vec<Label>> = processes
        .map(|(process, target)| of_target(target, cluster, &process.comm))
        .collect();
    let mut members: BTreeMap<&Vec<Label>, Vec<usize>> = BTreeMap::new();
    for (index, sample) in window.samples.iter().enumerate() {
        let labels = &labels[sample.process.0 as usize];
        members.entry(labels).or_default().push(index);
    }
    let owned = members
        .into_iter()
        .map(|(labels, members)| (labels.clone(), members));
    owned.collect()
}

/// What samples have in common that are one: stack, labels and size of block.
type Alike<'a> = (&'a [LocationId], &'a [Label], Option<u64>);

/// Puts equal stacks of a group together. Labels of samples are made fit; how
/// many lost some is added to `cut`.
pub(super) fn group(
    window: &SymbolizedWindow,
    labels: Vec<Label>,
    members: &[usize],
    reserved: &BTreeSet<String>,
    cut: &mut Cut,
) -> Group {
    let of = |index: &usize| &window.samples[*index];
    let mut sets = SampleLabels::new(reserved);
    let numbers: Vec<usize> = members
        .iter()
        .map(|index| sets.add(&of(index).labels, weight(of(index))))
        .collect();
    let (sets, lost) = sets.finish();
    cut.labels += lost.labels;
    cut.sets += lost.sets;

    let mut known: HashMap<Alike<'_>, usize> = HashMap::new();
    let mut samples: Vec<Sample> = Vec::new();
    for (sample, number) in members.iter().map(of).zip(numbers) {
        let labels = &sets[number];
        match known.get(&(&sample.stack[..], &labels[..], sample.block_bytes)) {
            Some(index) => add(&mut samples[*index], sample),
            None => {
                known.insert((&sample.stack, labels, sample.block_bytes), samples.len());
                samples.push(Sample {
                    process: ProcessId(0),
                    thread: None,
                    goid: None,
                    labels: labels.clone(),
                    ..sample.clone()
                });
            }
        }
    }
    let heaviest = members.iter().map(of).max_by_key(|sample| weight(sample));
    Group {
        labels,
        process: heaviest.map_or(ProcessId(0), |sample| sample.process),
        samples,
    }
}

fn weight(sample: &Sample) -> u64 {
    sample.values[0].unsigned_abs()
}

/// Counts a sample to another with the same stack and labels.
fn add(sum: &mut Sample, sample: &Sample) {
    for (value, added) in sum.values.iter_mut().zip(sample.values) {
        *value = value.saturating_add(added);
    }
}

impl Group {
    /// Some samples of the group as a window of one process, with what they refer
    /// to of the tables of the window that they are from, and no more.
    pub(super) fn window(&self, whole: &SymbolizedWindow, samples: &[Sample]) -> SymbolizedWindow {
        let mut tables = Tables::new(whole);
        let samples = samples
            .iter()
            .map(|sample| Sample {
                stack: sample.stack.iter().map(|id| tables.location(*id)).collect(),
                ..sample.clone()
            })
            .collect();
        SymbolizedWindow {
            event: whole.event,
            start: whole.start,
            duration: whole.duration,
            period: whole.period,
            processes: vec![whole.processes[self.process.0 as usize].clone()],
            samples,
            locations: tables.kept,
            functions: picked(&whole.functions, &tables.functions),
            mappings: picked(&whole.mappings, &tables.mappings),
        }
    }
}

/// The tables of a part of a window.
struct Tables<'a> {
    whole: &'a SymbolizedWindow,
    locations: Numbers,
    functions: Numbers,
    mappings: Numbers,
    kept: Vec<Location>,
}

impl<'a> Tables<'a> {
    fn new(whole: &'a SymbolizedWindow) -> Self {
        Tables {
            whole,
            locations: Numbers::default(),
            functions: Numbers::default(),
            mappings: Numbers::default(),
            kept: Vec::new(),
        }
    }

    /// The location's number in the part.
    fn location(&mut self, id: LocationId) -> LocationId {
        let number = self.locations.of(id.0);
        if number as usize == self.kept.len() {
            let location = &self.whole.locations[id.0 as usize];
            let functions = &mut self.functions;
            let line = |line: &Line| Line {
                function: FunctionId(functions.of(line.function.0)),
                line: line.line,
            };
            self.kept.push(Location {
                mapping: location.mapping.map(|m| MappingId(self.mappings.of(m.0))),
                lines: location.lines.iter().map(line).collect(),
                ..location.clone()
            });
        }
        LocationId(number)
    }
}

/// New numbers for some rows of a table, in the order that they are asked for.
#[derive(Default)]
struct Numbers {
    new: HashMap<u32, u32>,
    old: Vec<u32>,
}

impl Numbers {
    fn of(&mut self, old: u32) -> u32 {
        *self.new.entry(old).or_insert_with(|| {
            self.old.push(old);
            self.old.len() as u32 - 1
        })
    }
}

fn picked<T: Clone>(table: &[T], numbers: &Numbers) -> Vec<T> {
    let rows = numbers.old.iter();
    rows.map(|old| table[*old as usize].clone()).collect()
}
