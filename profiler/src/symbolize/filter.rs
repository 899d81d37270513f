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
        if self.include.is_some() || self.exclude.is_some() {
            let matches = |pattern: &Option<Regex>| -> Option<Vec<bool>> {
                let pattern = pattern.as_ref()?;
                let function = |id: super::FunctionId| &window.functions[id.0 as usize].name;
                Some(
                    window
                        .locations
                        .iter()
                        .map(|location| {
                            let mut lines = location.lines.iter();
                            lines.any(|line| pattern.is_match(function(line.function)))
                        })
                        .collect(),
                )
            };
            let (include, exclude) = (matches(&self.include), matches(&self.exclude));
            window.samples.retain(|sample| {
                let any =
                    |locations: &Vec<bool>| sample.stack.iter().any(|id| locations[id.0 as usize]);
                include.as_ref().is_none_or(any) && !exclude.as_ref().is_some_and(any)
            });
        }
        for (key, pattern) in &self.labels {
            window.samples.retain(|sample| {
                let mut labels = sample.labels.iter();
                labels.any(|(name, value)| name == key && pattern.is_match(value))
            });
        }
        let counts = window.samples.iter().map(|sample| sample.values[0]);
        counts.map(i64::unsigned_abs).sum()
    }
}
