//! The flags that choose goroutines, for every command that lists some.

use std::time::Duration;

use regex::Regex;

use crate::{
    cli::record::{parse_duration, parse_label},
    session::goroutines::Selected,
    symbolize::Filter,
};

/// The states that goroutines can be seen in.
const STATES: [&str; 7] = [
    "runnable",
    "running",
    "syscall",
    "waiting",
    "copystack",
    "preempted",
    "leaked",
];

/// Which goroutines are wanted.
#[derive(Debug, Clone, clap::Args)]
pub struct Filters {
    /// Only goroutines in this state (may be given several times)
    #[arg(short, long, value_name = "STATE", value_parser = STATES)]
    pub state: Vec<String>,
    /// Only those that wait for what matches REGEX: 'chan receive', select, 'sync\.'
    #[arg(short, long, value_name = "REGEX")]
    pub reason: Option<Regex>,
    /// Only those known to have waited for so long: 90, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub older_than: Option<Duration>,
    /// Only those with a function that matches REGEX on their stack
    #[arg(long, value_name = "REGEX")]
    pub function: Option<Regex>,
    /// Only those with a pprof label KEY that matches the regular expression RE
    #[arg(short, long, value_name = "KEY=RE", value_parser = parse_label)]
    pub label: Vec<(String, Regex)>,
}

impl Filters {
    /// By state, reason and age alone.
    pub(in crate::cli) fn by_state(&self) -> Selected {
        Selected {
            states: self.state.clone(),
            reason: self.reason.clone(),
            older_than: self.older_than,
            ..Selected::default()
        }
    }

    /// By all of it.
    pub(in crate::cli) fn selected(&self) -> Selected {
        Selected {
            filter: Filter {
                include: self.function.clone(),
                exclude: None,
                labels: self.label.clone(),
            },
            ..self.by_state()
        }
    }
}
