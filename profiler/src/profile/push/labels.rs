//! The labels of what is pushed: those that say whose a profile is, and those
//! that programs set on their goroutines, made fit for every receiver. What does
//! not fit is left out and counted; names and values are what a target chose.

use std::collections::{BTreeSet, HashMap};

use crate::aggregate::Labels;
use crate::identity::{Target, label, text::clean};

/// A label of a profile: name and value.
pub type Label = (String, String);

/// The cluster's name.
pub const CLUSTER: &str = "cluster";
/// Most labels that a receiver's configuration may add to every profile.
pub const MAX_STATIC_LABELS: usize = 5;

/// Most labels of a sample. Pyroscope takes 30 names a series: 15 of them say
/// what and whose a profile is, and the configuration may add its own.
pub(super) const MAX_SAMPLE_LABELS: usize = 10;
/// Most sets of labels in one profile: each is a series of its own in Pyroscope,
/// which takes 5,000 of a tenant.
pub(super) const MAX_LABEL_SETS: usize = 100;
const MAX_NAME_BYTES: usize = 64;

/// Every label that says whose a profile is.
const IDENTITY: [&str; 13] = [
    CLUSTER,
    label::SERVICE_NAME,
    label::NAMESPACE,
    label::POD,
    label::CONTAINER,
    label::CONTAINER_ID,
    label::NODE,
    label::UNIT,
    label::EXE,
    label::BUILD_ID,
    label::GO_VERSION,
    label::MODULE,
    label::MODULE_VERSION,
];

/// What receivers keep beside the labels: these make no series.
const LINKS: [&str; 3] = ["profile_id", "span_id", "trace_id"];

/// Whether a configuration may add a label of that name: a name that every
/// receiver takes, and that nothing else has.
pub fn may_be_added(name: &str) -> bool {
    let is_own = name != CLUSTER && IDENTITY.contains(&name);
    !name.is_empty() && name == clean_name(name) && !is_own && !LINKS.contains(&name)
}

/// Whose the profile of a process is. `fallback` names the service of a process
/// of which nothing is known.
pub(super) fn of_target(target: &Target, cluster: &str, fallback: &str) -> Vec<Label> {
    let in_pod = !target.label(label::POD).is_empty();
    let mut labels = vec![(CLUSTER.to_owned(), cluster.to_owned())];
    for (name, value) in &target.labels {
        // Another one after each restart, where the pod says enough.
        let says_more = *name != label::CONTAINER_ID || !in_pod;
        if says_more && !value.is_empty() {
            labels.push(((*name).to_owned(), clean(value)));
        }
    }
    if target.label(label::SERVICE_NAME).is_empty() {
        let name = Some(clean(fallback)).filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| "unknown".to_owned());
        labels.push((label::SERVICE_NAME.to_owned(), name));
    }
    labels.sort_unstable();
    labels
}

/// The labels of samples as they are sent.
#[derive(Debug)]
pub(super) struct SampleLabels<'a> {
    /// Names that samples may not have for their own.
    reserved: &'a BTreeSet<String>,
    sets: Vec<Set>,
    /// Sets by the labels that they come from.
    known: HashMap<&'a Labels, usize>,
}

#[derive(Debug)]
struct Set {
    labels: Labels,
    /// How many samples have it.
    weight: u64,
    /// Whether a label was left out.
    is_cut: bool,
}

/// Samples whose labels did not all fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// Those that had more labels than are taken, or two of one name.
    pub labels: u64,
    /// Those that lost all, as there were too many different sets.
    pub sets: u64,
}

impl<'a> SampleLabels<'a> {
    pub(super) fn new(reserved: &'a BTreeSet<String>) -> Self {
        SampleLabels {
            reserved,
            sets: Vec::new(),
            known: HashMap::new(),
        }
    }

    /// The number of the set that these labels come to.
    pub(super) fn add(&mut self, labels: &'a Labels, weight: u64) -> usize {
        let index = *self.known.entry(labels).or_insert_with(|| {
            let (labels, is_cut) = fit(labels, self.reserved);
            let weight = 0;
            self.sets.push(Set {
                labels,
                weight,
                is_cut,
            });
            self.sets.len() - 1
        });
        let set = &mut self.sets[index];
        set.weight = set.weight.saturating_add(weight);
        index
    }

    /// The labels of each set, and how many samples lost some.
    pub(super) fn finish(self) -> (Vec<Labels>, Cut) {
        let mut cut = Cut::default();
        // Two sets may make one series.
        let series = |set: &Set| -> Labels {
            let labels = set.labels.iter();
            let labels = labels.filter(|(name, _)| !LINKS.contains(&name.as_str()));
            labels.cloned().collect()
        };
        let mut weights: HashMap<Labels, u64> = HashMap::new();
        for set in &self.sets {
            *weights.entry(series(set)).or_default() += set.weight;
        }
        let mut heaviest: Vec<(Labels, u64)> = weights.into_iter().collect();
        heaviest.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        heaviest.truncate(MAX_LABEL_SETS);
        let kept: BTreeSet<Labels> = heaviest.into_iter().map(|(labels, _)| labels).collect();
        let mut labels = Vec::with_capacity(self.sets.len());
        for set in self.sets {
            if kept.contains(&series(&set)) {
                cut.labels += if set.is_cut { set.weight } else { 0 };
                labels.push(set.labels);
            } else {
                cut.sets += set.weight;
                labels.push(Labels::new());
            }
        }
        (labels, cut)
    }
}

/// Labels under names that every receiver takes, and whether some do not fit.
fn fit(labels: &Labels, reserved: &BTreeSet<String>) -> (Labels, bool) {
    let mut fitting = Labels::new();
    let mut is_cut = false;
    for (name, value) in labels {
        let mut name = clean_name(name);
        if IDENTITY.contains(&name.as_str()) || reserved.contains(&name) {
            // As Prometheus calls a target's label that it has one of itself.
            name.insert_str(0, "exported_");
        }
        let value = clean(value);
        let has_name = fitting.iter().any(|(other, _)| *other == name);
        if name.is_empty() || value.is_empty() || has_name || fitting.len() == MAX_SAMPLE_LABELS {
            is_cut = true;
            continue;
        }
        fitting.push((name, value));
    }
    fitting.sort_unstable();
    (fitting, is_cut)
}

/// The name with what Prometheus takes in names, and no more: letters, digits and
/// underscores, not two at the start, which mark the receivers' own.
fn clean_name(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let clean: String = name.chars().map(fits).take(MAX_NAME_BYTES).collect();
    let inner = clean.trim_start_matches('_');
    match inner.chars().next() {
        Some(c) if c.is_ascii_digit() || inner.len() < clean.len() => format!("_{inner}"),
        Some(_) => clean,
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let owned = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        owned.collect()
    }

    #[track_caller]
    fn check(given: &[(&str, &str)], sent: &[(&str, &str)], is_cut: bool) {
        let reserved = BTreeSet::from(["team".to_owned()]);
        assert_eq!(fit(&labels(given), &reserved), (labels(sent), is_cut));
    }

    #[test]
    fn names_are_what_prometheus_takes() {
        for (name, want) in [
            ("path", "path"),
            ("http.route", "http_route"),
            ("1st", "_1st"),
            ("__name__", "_name__"),
            ("_private", "_private"),
            ("größe\n", "gr__e_"),
            ("", ""),
            ("é", ""),
        ] {
            assert_eq!(clean_name(name), want, "{name:?}");
        }
        assert_eq!(clean_name(&"x".repeat(1000)).len(), MAX_NAME_BYTES);
        assert!(may_be_added("team") && may_be_added("cluster"));
        for name in ["pod", "service_name", "__name__", "a-b", "", "span_id"] {
            assert!(!may_be_added(name), "{name}");
        }
    }

    #[test]
    fn no_label_of_a_sample_says_whose_it_is() {
        check(
            &[("pod", "evil"), ("team", "x"), ("user", "bob")],
            &[
                ("exported_pod", "evil"),
                ("exported_team", "x"),
                ("user", "bob"),
            ],
            false,
        );
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_told() {
        check(&[("a.b", "1"), ("a_b", "2")], &[("a_b", "1")], true);
        check(&[("a", ""), ("", "b")], &[], true);
        check(&[("a", "x\ny")], &[("a", "x\u{fffd}y")], false);
        let names: Vec<String> = (0..12).map(|i| format!("l{i:02}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
        check(&many, &many[..MAX_SAMPLE_LABELS], true);
        let long = "x".repeat(5000);
        let (fitting, _) = fit(&labels(&[("a", &long)]), &BTreeSet::new());
        assert_eq!(fitting[0].1.len(), 1024);
    }

    #[test]
    fn the_sets_with_most_samples_stay() {
        let reserved = BTreeSet::new();
        let user = |i: usize| labels(&[("user", &i.to_string())]);
        let given: Vec<Labels> = (0..=MAX_LABEL_SETS).map(user).collect();
        let mut sets = SampleLabels::new(&reserved);
        for (i, labels) in given.iter().enumerate() {
            assert_eq!(sets.add(labels, 2 + i as u64), i);
        }
        let (sent, cut) = sets.finish();
        assert_eq!(cut, Cut { labels: 0, sets: 2 });
        assert!(sent[0].is_empty());
        assert_eq!(sent[1..], given[1..]);
    }

    #[test]
    fn spans_are_no_series() {
        let reserved = BTreeSet::new();
        let span = |i: usize| labels(&[("span_id", &i.to_string()), ("user", "bob")]);
        let given: Vec<Labels> = (0..3 * MAX_LABEL_SETS).map(span).collect();
        let mut sets = SampleLabels::new(&reserved);
        for labels in &given {
            sets.add(labels, 1);
        }
        let (sent, cut) = sets.finish();
        assert_eq!((sent, cut), (given, Cut::default()));
    }

    #[test]
    fn a_profile_without_an_owner_has_a_service_all_the_same() {
        let nobody = Target {
            pid: 1,
            labels: [].into(),
            is_partial: true,
        };
        let sent = of_target(&nobody, "prod", "app\n");
        assert_eq!(
            sent,
            labels(&[("cluster", "prod"), ("service_name", "app")])
        );
        let sent = of_target(&nobody, "prod", "\n");
        assert_eq!(sent[1].1, "unknown");
    }

    #[test]
    fn containers_of_pods_go_without_their_id() {
        let target = |pod: &str| Target {
            pid: 1,
            labels: [
                (label::SERVICE_NAME, "a".to_owned()),
                (label::POD, pod.to_owned()),
                (label::CONTAINER_ID, "c0".to_owned()),
            ]
            .into(),
            is_partial: false,
        };
        let has_id = |pod| {
            let sent = of_target(&target(pod), "prod", "");
            sent.iter().any(|(name, _)| name == label::CONTAINER_ID)
        };
        assert!(has_id("") && !has_id("a-0"));
        // What a series may have at most, with the name and Pyroscope's own.
        const { assert!(IDENTITY.len() - 1 + 2 + MAX_STATIC_LABELS + MAX_SAMPLE_LABELS < 30) };
    }
}
