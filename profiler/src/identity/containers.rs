//! What is known of containers by their ids, as one source has told. Bounded;
//! knows nothing of how the source is asked.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::text::{clean, clean_some};

/// Containers remembered per source. A node has at most some hundreds of pods.
const MAX_CONTAINERS: usize = 8192;
/// Pod labels kept, each of at most 63 bytes of value by Kubernetes' rules.
const MAX_LABELS: usize = 64;
/// How long a container is remembered that its source no longer has: profiles
/// of its last minutes still want its name.
const KEEP_GONE: Duration = Duration::from_secs(15 * 60);
/// The annotation by which users of Pyroscope name a service.
const SERVICE_ANNOTATION: &str = "pyroscope.io/service_name";

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid in the API.
    pub uid: String,
    /// What its annotation calls the service.
    pub service_name: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Pod {
    /// A pod, with its texts made fit for labels.
    pub fn new(
        [namespace, name, uid]: [&str; 3],
        labels: impl IntoIterator<Item = (String, String)>,
        annotation: impl FnOnce(&str) -> Option<String>,
    ) -> Self {
        let labels = labels.into_iter().take(MAX_LABELS);
        Self {
            namespace: clean(namespace),
            name: clean(name),
            uid: clean(uid),
            service_name: annotation(SERVICE_ANNOTATION).and_then(clean_some),
            labels: labels.map(|(k, v)| (clean(k), clean(v))).collect(),
        }
    }
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name, within its pod.
    pub name: String,
    /// Its pod; `None` of a container without.
    pub pod: Option<Arc<Pod>>,
}

/// Containers by id, and by the group (a pod) that they come and go with.
#[derive(Debug, Default)]
pub struct Containers {
    by_id: HashMap<String, Known>,
    groups: HashMap<String, Vec<String>>,
    gone: VecDeque<(Instant, String)>,
    refused: u64,
}

impl Containers {
    /// What is known of a container.
    pub fn get(&self, id: &str) -> Option<&Known> {
        self.by_id.get(id)
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// How many were not remembered because there were too many.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The containers of `group` are now these.
    pub fn put(&mut self, group: &str, containers: Vec<(String, Known)>, now: Instant) {
        self.forget_gone(now);
        let mut ids = Vec::with_capacity(containers.len());
        for (id, known) in containers {
            if !self.by_id.contains_key(&id) && self.by_id.len() >= MAX_CONTAINERS {
                self.refused += 1;
                continue;
            }
            self.by_id.insert(id.clone(), known);
            ids.push(id);
        }
        let before = match ids.is_empty() {
            true => self.groups.remove(group),
            false => self.groups.insert(group.to_owned(), ids.clone()),
        };
        for id in before.into_iter().flatten() {
            if !ids.contains(&id) {
                self.gone.push_back((now, id));
            }
        }
    }

    /// These groups are all that there are.
    pub fn keep_only(&mut self, groups: &HashSet<String>, now: Instant) {
        let over = self.groups.keys().filter(|group| !groups.contains(*group));
        let over: Vec<String> = over.cloned().collect();
        for group in over {
            self.put(&group, Vec::new(), now);
        }
    }

    fn forget_gone(&mut self, now: Instant) {
        while let Some((since, id)) = self.gone.front() {
            let is_due = now.duration_since(*since) >= KEEP_GONE;
            let are_many = self.by_id.len().max(self.gone.len()) >= MAX_CONTAINERS;
            if !is_due && !are_many {
                return;
            }
            // It may have come back.
            if !self.groups.values().flatten().any(|present| present == id) {
                self.by_id.remove(id);
            }
            self.gone.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str) -> Known {
        Known {
            name: name.to_owned(),
            pod: None,
        }
    }

    fn one(id: &str) -> Vec<(String, Known)> {
        vec![(id.to_owned(), known(id))]
    }

    #[test]
    fn containers_that_are_gone_are_remembered_for_a_while() {
        let (mut containers, start) = (Containers::default(), Instant::now());
        containers.put("pod", one("a"), start);
        containers.put("pod", one("b"), start);
        containers.put("other", one("c"), start);
        assert!(containers.get("a").is_some(), "replaced");
        containers.keep_only(&HashSet::from(["other".to_owned()]), start);
        assert!(containers.get("b").is_some(), "its pod is gone");
        // One that came back stays.
        containers.put("pod", one("b"), start);
        containers.put("other", one("c"), start + KEEP_GONE);
        assert!(containers.get("a").is_none());
        assert!(containers.get("b").is_some() && containers.get("c").is_some());
        assert_eq!(containers.len(), 2);
    }

    #[test]
    fn containers_are_bounded() {
        let (mut containers, now) = (Containers::default(), Instant::now());
        for index in 0..MAX_CONTAINERS + 10 {
            containers.put(&format!("pod{index}"), one(&index.to_string()), now);
        }
        assert_eq!(containers.len(), MAX_CONTAINERS);
        assert_eq!(containers.refused(), 10);
        // Room is made of those that are gone, however lately.
        containers.keep_only(&HashSet::new(), now);
        containers.put("new", one("new"), now);
        assert!(containers.get("new").is_some());
        for _ in 0..3 * MAX_CONTAINERS {
            containers.put("new", Vec::new(), now);
            containers.put("new", one("new"), now);
        }
        assert!(containers.gone.len() <= MAX_CONTAINERS);
    }
}
