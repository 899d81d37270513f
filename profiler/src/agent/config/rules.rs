//! Which processes are profiled, with which event and how often: the first rule
//! that takes a process decides.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Pattern, ProbeBudget, Rate};
use crate::{
    identity::{Target, label},
    symbolize,
};

/// The rules, in order. Without any, every Go process is taken.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rules(Vec<Rule>);

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// What is sampled.
    pub event: Event,
    /// How often; as elsewhere where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_hz: Option<Rate>,
    /// What the probes of the event may take of each process; set by
    /// [`Config::validate`](super::Config::validate) where the event takes any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_budget: Option<ProbeBudget>,
    /// Takes a process that one of these describes; every one where none is
    /// given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<Selector>,
    /// But not one that one of these describes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Selector>,
}

/// What is sampled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// CPU time.
    #[default]
    Cpu,
    /// Memory in use at the end of a window.
    Heap,
    /// Memory allocated during a window.
    Allocs,
    /// Goroutines at the end of a window.
    Goroutine,
    /// Time of goroutines during a window, on the CPU and off it.
    Wall,
    /// Time off the CPU.
    OffCpu,
    /// Requests to block devices.
    Io,
    /// Waiting for mutexes and other semaphores, by who held them.
    Mutex,
    /// Goroutines that wait.
    Block,
    /// Allocations as they happen.
    #[serde(rename = "alloc-events")]
    AllocEvents,
}

/// The events for which probes are put into programs. A rule for any other one can
/// have no budget for them.
pub(in crate::agent) const WITH_PROBES: &[Event] =
    &[Event::Mutex, Event::Block, Event::AllocEvents];

impl Event {
    /// The event of profiles.
    pub(in crate::agent) fn sampled(self) -> symbolize::Event {
        match self {
            Event::Cpu => symbolize::Event::Cpu,
            Event::Heap => symbolize::Event::Heap,
            Event::Allocs => symbolize::Event::Allocs,
            Event::Goroutine => symbolize::Event::Goroutine,
            Event::Wall => symbolize::Event::Wall,
            Event::OffCpu => symbolize::Event::OffCpu,
            Event::Io => symbolize::Event::Io,
            Event::Mutex => symbolize::Event::Mutex,
            Event::Block => symbolize::Event::Block,
            Event::AllocEvents => symbolize::Event::AllocEvents,
        }
    }
}

/// Describes processes: all that is given must match.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selector {
    /// Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Pattern>,
    /// Kubernetes pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pattern>,
    /// Container name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Pattern>,
    /// The process's name, or that of its executable's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Pattern>,
    /// Any label, by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Pattern>,
}

/// A process, as far as rules look at it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its name.
    pub comm: &'a str,
    /// Its executable.
    pub exe: &'a str,
    /// Who it is.
    pub target: &'a Target,
}

impl Rules {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a rule is for `event`, which nobody takes without one.
    pub fn ask_for(&self, event: Event) -> bool {
        self.0.iter().any(|rule| rule.event == event)
    }

    /// The key of a value that will not do, and why.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        for (index, rule) in self.0.iter().enumerate() {
            if rule.event != Event::Cpu && rule.rate_hz.is_some() {
                let why = "is of cpu only: nothing else is taken so many times a second".to_owned();
                return Err((format!("rules[{index}].rate_hz"), why));
            }
            if rule.probe_budget.is_some() && !WITH_PROBES.contains(&rule.event) {
                let event = rule.event.sampled().name();
                let why = format!("is for events that take probes: {event} takes none");
                return Err((format!("rules[{index}].probe_budget"), why));
            }
        }
        Ok(())
    }

    /// Gives the rules for events that take probes a budget for them, where they say
    /// none.
    pub(super) fn fill_in(&mut self) {
        let rules = self.0.iter_mut();
        for rule in rules.filter(|rule| WITH_PROBES.contains(&rule.event)) {
            rule.probe_budget.get_or_insert_default();
        }
    }

    /// The first rule for `event` that takes a process.
    pub fn rule_for(&self, event: Event, subject: &Subject<'_>) -> Option<&Rule> {
        let mut rules = self.0.iter();
        rules.find(|rule| rule.event == event && rule.takes(subject))
    }

    /// The budgets of the rules for events that take probes, each once.
    pub fn probe_budgets(&self) -> Vec<ProbeBudget> {
        let rules = self
            .0
            .iter()
            .filter(|rule| WITH_PROBES.contains(&rule.event));
        let mut budgets: Vec<ProbeBudget> = rules
            .map(|rule| rule.probe_budget.unwrap_or_default())
            .collect();
        budgets.sort_unstable();
        budgets.dedup();
        budgets
    }

    /// The events that take probes under a budget.
    pub fn probed(&self, budget: ProbeBudget) -> Vec<Event> {
        let has = |event: &&Event| {
            self.0.iter().any(|rule| {
                rule.event == **event && rule.probe_budget.unwrap_or_default() == budget
            })
        };
        WITH_PROBES.iter().filter(has).copied().collect()
    }

    /// The rates of all rules for `event`, highest first.
    pub(super) fn rates(&self, event: Event, default: Rate) -> Vec<Rate> {
        if self.is_empty() {
            return vec![default];
        }
        let rules = self.0.iter().filter(|rule| rule.event == event);
        let mut rates: Vec<Rate> = rules.map(|rule| rule.rate_hz.unwrap_or(default)).collect();
        rates.sort_unstable();
        rates.dedup();
        rates.reverse();
        rates
    }

    /// The rate at which the first rule that takes a process samples it.
    pub(super) fn decide(
        &self,
        event: Event,
        subject: &Subject<'_>,
        default: Rate,
    ) -> Option<Rate> {
        if self.is_empty() {
            return Some(default);
        }
        let rule = self.rule_for(event, subject)?;
        Some(rule.rate_hz.unwrap_or(default))
    }
}

impl Rule {
    fn takes(&self, subject: &Subject<'_>) -> bool {
        let included = self.include.is_empty() || self.include.iter().any(|s| s.describes(subject));
        included && !self.exclude.iter().any(|s| s.describes(subject))
    }
}

impl Selector {
    fn describes(&self, subject: &Subject<'_>) -> bool {
        let label = |pattern: &Option<Pattern>, name| {
            let matches = |p: &Pattern| p.is_match(subject.target.label(name));
            pattern.as_ref().is_none_or(matches)
        };
        let file = subject.exe.rsplit('/').next().unwrap_or_default();
        let named = |p: &Pattern| p.is_match(subject.comm) || p.is_match(file);
        label(&self.namespace, label::NAMESPACE)
            && label(&self.pod, label::POD)
            && label(&self.container, label::CONTAINER)
            && self.name.as_ref().is_none_or(named)
            && self
                .labels
                .iter()
                .all(|(name, pattern)| pattern.is_match(subject.target.label(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::config::Config;

    #[track_caller]
    fn check(rules: &str, labels: &[(&'static str, &str)], expected: Option<u32>) {
        let config = Config::parse(rules).unwrap();
        let target = Target {
            pid: 1,
            labels: labels.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
            is_partial: false,
        };
        let subject = Subject {
            comm: "worker",
            exe: "/usr/bin/etcd",
            target: &target,
        };
        let rate = config.rate_of(&subject);
        assert_eq!(rate.map(|rate| rate.0), expected, "{rules}");
    }

    #[test]
    fn without_rules_everything_is_taken() {
        check("", &[], Some(19));
        check("rate_hz = 7", &[], Some(7));
    }

    #[test]
    fn the_first_rule_that_takes_a_process_decides() {
        let rules = "[[rules]]\nrate_hz = 97\ninclude = [{ namespace = \"prod\" }]\n\
                     exclude = [{ pod = \"canary-.*\" }]\n[[rules]]\n\
                     exclude = [{ namespace = \"kube-system\" }]\n";
        check(rules, &[("namespace", "prod")], Some(97));
        check(
            rules,
            &[("namespace", "prod"), ("pod", "canary-1")],
            Some(19),
        );
        check(rules, &[("namespace", "dev")], Some(19));
        check(rules, &[("namespace", "kube-system")], None);
        let config = Config::parse(rules).unwrap();
        assert_eq!(config.rates(), [Rate(97), Rate(19)]);
    }

    #[test]
    fn each_event_has_its_own_rules() {
        let rules = "[[rules]]\n[[rules]]\nevent = \"heap\"\ninclude = [{ name = \"etcd\" }]\n";
        check(rules, &[], Some(19));
        let config = Config::parse(rules).unwrap();
        let target = Target {
            pid: 1,
            labels: BTreeMap::new(),
            is_partial: false,
        };
        let takes = |config: &Config, event, comm| {
            let subject = Subject {
                comm,
                exe: "/bin/x",
                target: &target,
            };
            config.takes(event, &subject)
        };
        assert!(takes(&config, Event::Heap, "etcd"));
        assert!(!takes(&config, Event::Heap, "other"));
        assert!(!takes(&config, Event::Allocs, "etcd"), "nobody asks for it");
        assert!(!takes(&Config::default(), Event::Heap, "etcd"));
        let rate = "[[rules]]\n\n[[rules]]\nevent = \"allocs\"\nrate_hz = 9\n";
        let refused = Config::parse(rate).unwrap_err();
        assert!(
            refused.starts_with("line 5: rules[1].rate_hz: is of cpu only"),
            "{refused}"
        );
    }

    #[test]
    fn a_budget_for_probes_is_of_events_that_take_some() {
        let refused = |text: &str| Config::parse(text).unwrap_err();
        for event in ["cpu", "heap", "allocs"] {
            let text =
                format!("[[rules]]\n\n[[rules]]\nevent = \"{event}\"\nprobe_budget = \"1%\"\n");
            let why = format!(
                "line 5: rules[1].probe_budget: is for events that take probes: {event} takes none"
            );
            assert_eq!(refused(&text), why);
        }
        let wrong = refused("[[rules]]\nprobe_budget = 1\n");
        assert!(
            wrong.starts_with("line 2: rules[0].probe_budget: must be a share of a CPU"),
            "{wrong}"
        );

        // Of one that does, each rule has its own, and 1% where it says none.
        let of = |event, probe_budget: Option<&str>| Rule {
            event,
            probe_budget: probe_budget.map(|text| text.parse().unwrap()),
            ..Rule::default()
        };
        let mut rules = Rules(vec![
            of(Event::Mutex, Some("0.5%")),
            of(Event::Mutex, Some("off")),
            of(Event::Mutex, None),
            of(Event::Cpu, None),
        ]);
        assert_eq!(rules.check(), Ok(()));
        rules.fill_in();
        let budgets = rules.0.iter().map(|rule| rule.probe_budget);
        let shares: Vec<_> = budgets
            .map(|budget| budget.map(ProbeBudget::share))
            .collect();
        assert_eq!(
            shares,
            [Some(Some(0.005)), Some(None), Some(Some(0.01)), None]
        );
        let written = toml::to_string(&rules.0[2]).unwrap();
        assert!(written.contains("probe_budget = \"1%\""), "{written}");
    }

    #[test]
    fn all_that_a_selector_says_must_match() {
        let rule = |include: &str| format!("[[rules]]\ninclude = [{{ {include} }}]\n");
        check(&rule("name = \"etcd\""), &[], Some(19));
        check(&rule("name = \"work.*\""), &[], Some(19));
        check(&rule("name = \"work\""), &[], None);
        let both = rule("name = \"etcd\", container = \"c\"");
        check(&both, &[], None);
        check(&both, &[("container", "c")], Some(19));
        let label = rule("labels = { unit = \"etcd.service\" }");
        check(&label, &[("unit", "etcd.service")], Some(19));
        check(&label, &[], None);
    }
}
