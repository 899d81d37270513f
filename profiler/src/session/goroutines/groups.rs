//! The goroutines of a snapshot that are wanted, grouped by stack and labels as
//! Go's own profile has them, with the names of their frames.

use std::{
    cmp::Reverse,
    time::{Duration, SystemTime},
};

use foldhash::{HashMap, HashMapExt as _};
use regex::Regex;

use super::{Record, Snapshot};
use crate::{
    process::{ProcessIndex, ProcessTable},
    symbolize::{Event, Filter, Naming, Sample, StackValues, SymbolizedWindow, Symbolizer, Taken},
};

/// Which goroutines are wanted; all where nothing is set.
#[derive(Debug, Clone, Default)]
pub struct Selected {
    /// Those in one of these states, by name.
    pub states: Vec<String>,
    /// Those that wait for something that matches.
    pub reason: Option<Regex>,
    /// Those known to have waited as long.
    pub older_than: Option<Duration>,
    /// Those whose stacks and labels are so.
    pub filter: Filter,
}

/// Goroutines with the same stack and labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Which, by [`Snapshot::goroutines`]; by id.
    pub members: Vec<u32>,
}

/// A frame with its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedFrame<'w> {
    /// The function.
    pub function: &'w str,
    /// Its file, empty where unknown.
    pub file: &'w str,
    /// The line, 0 where unknown.
    pub line: u32,
    /// Whether it is inlined into the frame that follows.
    pub is_inlined: bool,
}

/// The goroutines that are wanted.
#[derive(Debug)]
pub struct Groups {
    /// The largest first.
    pub groups: Vec<Group>,
    /// A sample for each of them, in their order, whose value is how many they are.
    pub window: SymbolizedWindow,
    /// How many frames have names.
    pub naming: Naming,
    /// Where goroutines were started, a sample for each place.
    creators: SymbolizedWindow,
    by_creation: HashMap<u64, usize>,
}

impl Snapshot {
    /// Groups what is wanted, and names it. The process is that of the snapshot.
    pub fn groups(
        &self,
        selected: &Selected,
        taken_at: SystemTime,
        (process, table): (ProcessIndex, &ProcessTable),
    ) -> Groups {
        self.name(
            self.group(selected),
            &selected.filter,
            taken_at,
            (process, table),
        )
    }

    /// Names groups of its goroutines, and drops what the filter drops.
    pub fn name(
        &self,
        groups: Vec<Group>,
        filter: &Filter,
        taken_at: SystemTime,
        (process, table): (ProcessIndex, &ProcessTable),
    ) -> Groups {
        let taken = Taken {
            event: Event::Goroutine,
            start: taken_at,
            duration: Duration::ZERO,
            period: 1,
            all_waits: false,
        };
        let stacks: Vec<StackValues<'_>> = groups
            .iter()
            .filter_map(|group| Some((group, self.first(group)?)))
            .map(|(group, first)| StackValues {
                labels: &self.labels[first.labels as usize],
                values: [group.members.len() as i64, 0, 0, 0],
                ..of_stack(process, &self.stacks[first.stack as usize])
            })
            .collect();
        let mut symbolizer = Symbolizer::default();
        let (window, naming) = symbolizer.symbolize_stacks(taken, &stacks, table);
        let (groups, window) = apply(filter, groups, window);
        let mut calls: Vec<[u64; 1]> = Vec::new();
        let mut by_creation = HashMap::new();
        let members = groups.iter().flat_map(|group| &group.members);
        for goroutine in members.map(|index| &self.goroutines[*index as usize]) {
            by_creation.entry(goroutine.created_at).or_insert_with(|| {
                calls.push([goroutine.created_at]);
                calls.len() - 1
            });
        }
        let stacks = calls.iter().map(|call| of_stack(process, call));
        let stacks: Vec<StackValues<'_>> = stacks.collect();
        let (creators, _) = symbolizer.symbolize_stacks(taken, &stacks, table);
        Groups {
            groups,
            window,
            naming,
            creators,
            by_creation,
        }
    }

    fn group(&self, selected: &Selected) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut by_key: HashMap<(u32, u32), usize> = HashMap::new();
        for (index, goroutine) in (0..).zip(&self.goroutines) {
            if !self.is_wanted(goroutine, selected) {
                continue;
            }
            let key = (goroutine.stack, goroutine.labels);
            let group = *by_key.entry(key).or_insert_with(|| {
                groups.push(Group::default());
                groups.len() - 1
            });
            groups[group].members.push(index);
        }
        // What ended the program comes first; those of one size stay by their first
        // goroutine.
        let ended = self.crash.and_then(|crash| crash.goid);
        let has_ended = |group: &Group| {
            let mut members = self.members(group);
            ended.is_some() && members.any(|member| Some(member.goid) == ended)
        };
        groups.sort_by_cached_key(|group| (!has_ended(group), Reverse(group.members.len())));
        groups
    }

    /// Whether a goroutine's state, reason and age are wanted.
    pub fn is_wanted(&self, goroutine: &Record, selected: &Selected) -> bool {
        let mut states = selected.states.iter();
        let is_in_state =
            selected.states.is_empty() || states.any(|state| state == goroutine.status.name());
        let reason = selected.reason.as_ref();
        let older_than = selected.older_than;
        is_in_state
            && reason.is_none_or(|reason| {
                goroutine.reason.is_some() && reason.is_match(self.reason(goroutine))
            })
            && older_than.is_none_or(|least| {
                let waits = goroutine.waits_ns.map(Duration::from_nanos);
                waits.is_some_and(|waits| waits >= least)
            })
    }

    /// The first goroutine of a group.
    pub fn first(&self, group: &Group) -> Option<&Record> {
        self.goroutines.get(*group.members.first()? as usize)
    }

    /// The goroutines of a group.
    pub fn members<'s>(&'s self, group: &'s Group) -> impl Iterator<Item = &'s Record> {
        let members = group.members.iter();
        members.filter_map(|index| self.goroutines.get(*index as usize))
    }
}

fn of_stack(process: ProcessIndex, user: &[u64]) -> StackValues<'_> {
    StackValues {
        process,
        thread: None,
        goid: None,
        labels: &[],
        kernel: &[],
        user,
        block_bytes: None,
        values: [1, 0, 0, 0],
    }
}

/// Drops the groups whose samples a filter drops.
fn apply(
    filter: &Filter,
    groups: Vec<Group>,
    mut window: SymbolizedWindow,
) -> (Vec<Group>, SymbolizedWindow) {
    let keeps = filter.keeps(&window);
    let mut kept = keeps.iter();
    window.samples.retain(|_| kept.next() == Some(&true));
    let groups = groups.into_iter().zip(keeps);
    let groups = groups.filter(|(_, keep)| *keep).map(|(group, _)| group);
    (groups.collect(), window)
}

impl Groups {
    /// How many goroutines there are.
    pub fn goroutines(&self) -> usize {
        self.groups.iter().map(|group| group.members.len()).sum()
    }

    /// The frames of a group, by its place, leaf first.
    pub fn frames(&self, group: usize) -> impl Iterator<Item = NamedFrame<'_>> {
        let sample = self.window.samples.get(group);
        sample
            .into_iter()
            .flat_map(|sample| frames(&self.window, sample))
    }

    /// The labels of a group, by its place.
    pub fn labels(&self, group: usize) -> &[(String, String)] {
        let sample = self.window.samples.get(group);
        sample.map_or(&[], |sample| sample.labels.as_slice())
    }

    /// Where a goroutine was started; None of one that no statement started.
    pub fn creator(&self, goroutine: &Record) -> Option<NamedFrame<'_>> {
        let place = self.by_creation.get(&goroutine.created_at);
        let sample = self.creators.samples.get(*place?)?;
        let has_one = goroutine.created_at != 0;
        has_one.then(|| frames(&self.creators, sample).next())?
    }
}

fn frames<'w>(
    window: &'w SymbolizedWindow,
    sample: &'w Sample,
) -> impl Iterator<Item = NamedFrame<'w>> {
    let locations = sample.stack.iter();
    let locations = locations.map(|id| &window.locations[id.0 as usize]);
    locations.flat_map(move |location| {
        let outermost = location.lines.len() - 1;
        let lines = location.lines.iter().enumerate();
        lines.map(move |(index, line)| {
            let function = &window.functions[line.function.0 as usize];
            NamedFrame {
                function: &function.name,
                file: &function.file,
                line: line.line,
                is_inlined: index < outermost,
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{gobinary::GoroutineStatus, unwind::StackEnd};

    fn record(goid: u64, status: GoroutineStatus, waits_ns: Option<u64>, stack: u32) -> Record {
        Record {
            goid,
            status,
            reason: (status == GoroutineStatus::Waiting).then_some(1),
            since_ns: None,
            waits_ns,
            parent: None,
            created_at: 0,
            stack,
            end: StackEnd::Whole,
            labels: 0,
            places: 0..0,
        }
    }

    fn snapshot() -> Snapshot {
        let waiting = GoroutineStatus::Waiting;
        Snapshot {
            goroutines: vec![
                record(1, GoroutineStatus::Running, None, 0),
                record(5, waiting, Some(3_000_000_000), 1),
                record(6, waiting, None, 1),
                record(7, waiting, Some(1), 2),
            ],
            stacks: vec![Box::from([1]), Box::from([2]), Box::from([3])],
            labels: vec![Vec::new()],
            reasons: vec![String::new(), "chan receive".to_owned()],
            ..Snapshot::default()
        }
    }

    fn goids(selected: &Selected) -> Vec<Vec<u64>> {
        let snapshot = snapshot();
        let groups = snapshot.group(selected);
        let ids = |group| snapshot.members(group).map(|record| record.goid).collect();
        groups.iter().map(ids).collect()
    }

    #[test]
    fn the_largest_group_is_first_and_those_of_one_size_are_by_id() {
        let all = goids(&Selected::default());
        assert_eq!(all, [vec![5, 6], vec![1], vec![7]]);
    }

    #[test]
    fn goroutines_are_chosen_by_state_reason_and_age() {
        let running = Selected {
            states: vec!["running".to_owned()],
            ..Selected::default()
        };
        assert_eq!(goids(&running), [[1]]);
        let reason = |text| Selected {
            reason: Some(Regex::new(text).unwrap()),
            ..Selected::default()
        };
        assert_eq!(goids(&reason("^chan")).concat(), [5, 6, 7]);
        assert!(goids(&reason("select")).is_empty());
        assert!(
            goids(&reason("^$")).is_empty(),
            "what runs waits for nothing"
        );
        let old = Selected {
            older_than: Some(Duration::from_secs(3)),
            ..Selected::default()
        };
        assert_eq!(goids(&old), [[5]]);
    }
}
