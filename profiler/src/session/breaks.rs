//! Where the stacks broke that are not whole: counted by address while
//! recording, told by function when it ends. Judges no stack itself.

use std::collections::{BTreeMap, HashMap};

use crate::{
    process::{ProcessIndex, ProcessTable},
    symbolize::Symbolizer,
    unwind::{StackEnd, Unwound},
};

/// Most places told apart: a hostile target can break its stacks anywhere.
const MAX_PLACES: usize = 1024;

/// Stacks that broke at the same function for the same reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// Why they are not whole.
    pub end: StackEnd,
    /// The function that could not be passed, inlined ones aside; `None` where
    /// a stack has no frames, or where there were more places than are told
    /// apart.
    pub function: Option<String>,
    /// How many.
    pub count: u64,
}

/// Counts where stacks broke.
#[derive(Debug, Default)]
pub(super) struct Breaks {
    places: HashMap<(StackEnd, ProcessIndex, u64), u64>,
    elsewhere: BTreeMap<StackEnd, u64>,
}

impl Breaks {
    /// Counts a stack of `process` unless it is whole.
    pub(super) fn note(&mut self, process: ProcessIndex, unwound: &Unwound) {
        if unwound.end == StackEnd::Whole {
            return;
        }
        let full = self.places.len() >= MAX_PLACES;
        let key = unwound.broke_at.map(|at| (unwound.end, process, at));
        let count = match key {
            Some(key) if !full || self.places.contains_key(&key) => {
                self.places.entry(key).or_default()
            }
            _ => self.elsewhere.entry(unwound.end).or_default(),
        };
        *count += 1;
    }

    /// The stacks by reason and function, most first.
    pub(super) fn name(self, symbolizer: &mut Symbolizer, processes: &ProcessTable) -> Vec<Break> {
        let (places, counts): (Vec<_>, Vec<u64>) = self.places.into_iter().unzip();
        let addresses: Vec<(ProcessIndex, u64)> =
            places.iter().map(|(_, index, at)| (*index, *at)).collect();
        let functions = symbolizer.functions(&addresses, processes);
        let ends = places.iter().map(|(end, ..)| *end);
        let named = ends.zip(functions.into_iter().map(Some)).zip(counts);
        let elsewhere = self.elsewhere.into_iter();
        let mut sums: BTreeMap<(StackEnd, Option<String>), u64> = BTreeMap::new();
        for (key, count) in named.chain(elsewhere.map(|(end, count)| ((end, None), count))) {
            *sums.entry(key).or_default() += count;
        }
        let mut breaks: Vec<Break> = sums
            .into_iter()
            .map(|((end, function), count)| Break {
                end,
                function,
                count,
            })
            .collect();
        breaks.sort_by_key(|b| std::cmp::Reverse(b.count));
        breaks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(end: StackEnd, broke_at: Option<u64>) -> Unwound {
        Unwound {
            end,
            unmapped: false,
            broke_at,
        }
    }

    fn name(breaks: Breaks) -> Vec<(StackEnd, Option<String>, u64)> {
        let identity = crate::process::Identity {
            pid: 1,
            comm: String::new(),
            exe: String::new(),
        };
        let mut table = ProcessTable::default();
        let maps = b"1000-2000 r-xp 00000000 00:00 0 one\n\
                     2000-3000 r-xp 00000000 00:00 0 two\n";
        let process =
            crate::process::Process::from_maps(identity, maps, &mut table.objects, |_| None);
        table.insert(process);
        let breaks = breaks.name(&mut Symbolizer::default(), &table);
        let parts = breaks.into_iter().map(|b| (b.end, b.function, b.count));
        parts.collect()
    }

    #[test]
    fn sums_the_places_of_a_function_by_reason() {
        let mut breaks = Breaks::default();
        let process = ProcessIndex(0);
        for (end, at) in [
            (StackEnd::Unreadable, Some(0x1010)),
            (StackEnd::Unreadable, Some(0x1020)),
            (StackEnd::Unreadable, Some(0x2010)),
            (StackEnd::Gap, Some(0x1010)),
            (StackEnd::NoRegisters, None),
            (StackEnd::Whole, None),
            (StackEnd::Unreadable, Some(0x1010)),
        ] {
            breaks.note(process, &stack(end, at));
        }
        let one = Some("[one: not in a file]".to_owned());
        let two = Some("[two: not in a file]".to_owned());
        assert_eq!(
            name(breaks),
            [
                (StackEnd::Unreadable, one.clone(), 3),
                (StackEnd::Unreadable, two, 1),
                (StackEnd::Gap, one, 1),
                (StackEnd::NoRegisters, None, 1),
            ]
        );
    }

    #[test]
    fn counts_what_exceeds_the_places_told_apart() {
        let mut breaks = Breaks::default();
        for at in 0..MAX_PLACES as u64 + 10 {
            breaks.note(ProcessIndex(0), &stack(StackEnd::Gap, Some(at)));
        }
        // Known already: told apart all the same.
        breaks.note(ProcessIndex(0), &stack(StackEnd::Gap, Some(1)));
        assert_eq!(breaks.places.len(), MAX_PLACES);
        assert_eq!(breaks.places[&(StackEnd::Gap, ProcessIndex(0), 1)], 2);
        assert_eq!(breaks.elsewhere[&StackEnd::Gap], 10);
    }
}
