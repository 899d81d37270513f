//! What a sampler samples: CPU time at a rate, or what has no rate. Each has its own
//! processes, by the rules.

use super::config::{Config, Event, Rate, Subject};
use crate::symbolize;

/// What a sampler samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// CPU time, so often.
    Cpu(Rate),
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
        all
    }

    /// The events of its windows.
    pub(super) fn events(self) -> Vec<symbolize::Event> {
        let events = match self {
            Self::Cpu(_) => [(true, symbolize::Event::Cpu), (false, symbolize::Event::Io)],
            Self::Waits { off_cpu, io } => [
                (off_cpu, symbolize::Event::OffCpu),
                (io, symbolize::Event::Io),
            ],
        };
        let wanted = events.into_iter().filter(|(wanted, _)| *wanted);
        wanted.map(|(_, event)| event).collect()
    }

    /// The rate, in samples a second and CPU, where it has one.
    pub(super) fn rate_hz(self) -> Option<u32> {
        match self {
            Self::Cpu(rate) => Some(rate.0),
            Self::Waits { .. } => None,
        }
    }

    /// A word for it, in names and labels: the rate where it has one.
    pub(super) fn word(self) -> String {
        match self {
            Self::Cpu(rate) => rate.0.to_string(),
            Self::Waits { .. } => "waits".to_owned(),
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
