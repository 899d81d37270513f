//! What a sampler samples: CPU time at a rate, or what has no rate. Each has its own
//! processes, by the rules.

use super::config::{Config, Event, ProbeBudget, Rate, Subject};
use crate::{probe::Budget, session::ProbeConfig, symbolize};

/// What a sampler samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// CPU time, so often.
    Cpu(Rate),
    /// What probes see, under a budget: mutexes, waits of goroutines, allocations.
    Probes {
        /// What probes may take of each process.
        budget: ProbeBudget,
        /// Waiting for mutexes.
        mutex: bool,
        /// Waits of goroutines.
        block: bool,
        /// Allocations.
        alloc_events: bool,
    },
    /// Waits of threads, those for block devices apart.
    Waits {
        /// Time off the CPU.
        off_cpu: bool,
        /// Requests to block devices.
        io: bool,
    },
}

/// Why a process's samples are not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwanted {
    /// Another sampler has it.
    OtherRate,
    /// No rule takes it.
    NoRule,
}

impl Kind {
    /// All that a configuration asks for, one sampler each.
    pub(super) fn all(config: &Config) -> Vec<Self> {
        let mut all: Vec<Self> = config.rates().into_iter().map(Self::Cpu).collect();
        let off_cpu = config.rules.ask_for(Event::OffCpu);
        let io = config.rules.ask_for(Event::Io);
        if off_cpu || io {
            all.push(Self::Waits { off_cpu, io });
        }
        for budget in config.rules.probe_budgets() {
            let events = config.rules.probed(budget);
            all.push(Self::Probes {
                budget,
                mutex: events.contains(&Event::Mutex),
                block: events.contains(&Event::Block),
                alloc_events: events.contains(&Event::AllocEvents),
            });
        }
        all
    }

    /// The events of its windows, as rules name them.
    fn asked(self) -> Vec<Event> {
        let events = match self {
            Self::Cpu(_) => vec![(true, Event::Cpu)],
            Self::Waits { off_cpu, io } => vec![(off_cpu, Event::OffCpu), (io, Event::Io)],
            Self::Probes {
                mutex,
                block,
                alloc_events,
                ..
            } => vec![
                (mutex, Event::Mutex),
                (block, Event::Block),
                (alloc_events, Event::AllocEvents),
            ],
        };
        let wanted = events.into_iter().filter(|(wanted, _)| *wanted);
        wanted.map(|(_, event)| event).collect()
    }

    /// The events of its windows.
    pub(super) fn events(self) -> Vec<symbolize::Event> {
        self.asked().into_iter().map(Event::sampled).collect()
    }

    /// What probes may do; they are only for processes that a rule is known to take.
    pub(super) fn probes(self) -> ProbeConfig {
        let budget = match self {
            Self::Probes { budget, .. } => budget,
            _ => ProbeBudget::default(),
        };
        ProbeConfig {
            budget: budget.share().map_or(Budget::Unlimited, Budget::Share),
            only_told: true,
            ..ProbeConfig::default()
        }
    }

    /// The rate, in samples a second and CPU, where it has one.
    pub(super) fn rate_hz(self) -> Option<u32> {
        match self {
            Self::Cpu(rate) => Some(rate.0),
            Self::Waits { .. } | Self::Probes { .. } => None,
        }
    }

    /// A word for it, in names and labels: the rate where it has one.
    pub(super) fn word(self) -> String {
        match self {
            Self::Cpu(rate) => rate.0.to_string(),
            Self::Waits { .. } => "waits".to_owned(),
            Self::Probes { budget, .. } => format!("probes {budget}"),
        }
    }

    /// Whether it is to take anything of a process.
    pub(super) fn takes(self, config: &Config, subject: &Subject<'_>) -> bool {
        let events = self.events().into_iter();
        let mut judged = events.map(|event| self.judge(config, event, subject));
        judged.any(|judged| judged.is_ok())
    }

    /// Whether it is to take an event of a process.
    pub(super) fn judge(
        self,
        config: &Config,
        event: symbolize::Event,
        subject: &Subject<'_>,
    ) -> Result<(), Unwanted> {
        let is_taken = match (self, event) {
            (Self::Cpu(rate), _) => match config.rate_of(subject) {
                Some(wanted) if wanted == rate => true,
                Some(_) => return Err(Unwanted::OtherRate),
                None => false,
            },
            (Self::Probes { budget, .. }, event) => {
                let asked = self.asked().into_iter();
                let mut rules = asked
                    .filter(|asked| asked.sampled() == event)
                    .filter_map(|asked| config.rules.rule_for(asked, subject));
                match rules.next() {
                    Some(rule) if rule.probe_budget.unwrap_or_default() == budget => true,
                    Some(_) => return Err(Unwanted::OtherRate),
                    None => false,
                }
            }
            (Self::Waits { .. }, symbolize::Event::OffCpu) => config.takes(Event::OffCpu, subject),
            (Self::Waits { .. }, _) => config.takes(Event::Io, subject),
        };
        is_taken.then_some(()).ok_or(Unwanted::NoRule)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::identity::Target;

    #[test]
    fn each_budget_has_a_sampler_of_its_own() {
        let rules = "[[rules]]\n[[rules]]\nevent = \"mutex\"\n[[rules]]\nevent = \"block\"\n\
                     probe_budget = \"0.5%\"\ninclude = [{ name = \"etcd\" }]\n\
                     [[rules]]\nevent = \"alloc-events\"\n";
        let config = Config::parse(rules).unwrap();
        let half: ProbeBudget = "0.5%".parse().unwrap();
        let kind = |budget, mutex, block| Kind::Probes {
            budget,
            mutex,
            block,
            alloc_events: mutex,
        };
        let (by_default, low) = (
            kind(ProbeBudget::default(), true, false),
            kind(half, false, true),
        );
        assert_eq!(Kind::all(&config), [Kind::Cpu(Rate(19)), low, by_default]);
        assert_eq!(low.events(), [symbolize::Event::Block]);
        assert_eq!(low.probes().budget, Budget::Share(0.005));
        let target = Target {
            pid: 1,
            labels: BTreeMap::new(),
            is_partial: false,
        };
        let subject = |comm| Subject {
            comm,
            exe: "/bin/x",
            target: &target,
        };
        assert!(low.takes(&config, &subject("etcd")));
        assert!(!low.takes(&config, &subject("other")));
        assert!(by_default.takes(&config, &subject("other")));
    }

    #[test]
    fn what_has_no_rate_is_a_sampler_of_its_own() {
        let rules = "[[rules]]\n[[rules]]\nevent = \"offcpu\"\n\
                     include = [{ name = \"etcd\" }]\n[[rules]]\nevent = \"io\"\n";
        let config = Config::parse(rules).unwrap();
        let waits = Kind::Waits {
            off_cpu: true,
            io: true,
        };
        assert_eq!(Kind::all(&config), [Kind::Cpu(Rate(19)), waits]);
        assert_eq!(Kind::all(&Config::default()), [Kind::Cpu(Rate(19))]);
        let target = Target {
            pid: 1,
            labels: BTreeMap::new(),
            is_partial: false,
        };
        let judge = |kind: Kind, event, comm| {
            let subject = Subject {
                comm,
                exe: "/bin/x",
                target: &target,
            };
            kind.judge(&config, event, &subject)
        };
        let (off_cpu, io) = (symbolize::Event::OffCpu, symbolize::Event::Io);
        assert_eq!(judge(waits, off_cpu, "etcd"), Ok(()));
        assert_eq!(judge(waits, off_cpu, "other"), Err(Unwanted::NoRule));
        assert_eq!(judge(waits, io, "other"), Ok(()));
        let cpu = symbolize::Event::Cpu;
        assert_eq!(judge(Kind::Cpu(Rate(19)), cpu, "other"), Ok(()));
        let other = judge(Kind::Cpu(Rate(97)), cpu, "other");
        assert_eq!(other, Err(Unwanted::OtherRate));
    }
}
