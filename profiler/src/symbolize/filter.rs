//! Keeps or drops the stacks of a window by the functions in them.

use regex::Regex;

use super::SymbolizedWindow;

/// Which stacks to keep; all where both are `None`.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those with a function that matches.
    pub include: Option<Regex>,
    /// Only those without a function that matches.
    pub exclude: Option<Regex>,
    /// Only those of goroutines with all of these labels, by key, whose values
    /// match.
    pub labels: Vec<(String, Regex)>,
}

impl Filter {
    /// Drops the stacks that are not to be kept and says how many samples were
    /// kept.
    pub fn apply(&self, window: &mut SymbolizedWindow) -> u64 {
        let keeps = self.keeps(window);
        let mut kept = keeps.into_iter();
        window.samples.retain(|_| kept.next() == Some(true));
        let counts = window.samples.iter().map(|sample| sample.values[0]);
        counts.map(i64::unsigned_abs).sum()
    }

    /// Which of the stacks are to be kept.
    pub fn keeps(&self, window: &SymbolizedWindow) -> Vec<bool> {
        let matches = |pattern: &Option<Regex>| -> Option<Vec<bool>> {
            let pattern = pattern.as_ref()?;
            let function = |id: super::FunctionId| &window.functions[id.0 as usize].name;
            let locations = window.locations.iter();
            let matching = locations.map(|location| {
                let mut lines = location.lines.iter();
                lines.any(|line| pattern.is_match(function(line.function)))
            });
            Some(matching.collect())
        };
        let (include, exclude) = (matches(&self.include), matches(&self.exclude));
        let keeps = window.samples.iter().map(|sample| {
            let any =
                |locations: &Vec<bool>| sample.stack.iter().any(|id| locations[id.0 as usize]);
            let has_labels = self.labels.iter().all(|(key, pattern)| {
                let mut labels = sample.labels.iter();
                labels.any(|(name, value)| name == key && pattern.is_match(value))
            });
            has_labels && include.as_ref().is_none_or(any) && !exclude.as_ref().is_some_and(any)
        });
        keeps.collect()
    }
}
