//! What a reader of a profile of memory must know, one sentence each.

use std::collections::BTreeMap;

use super::heap::{HeapRecording, WithoutHeap};

/// Processes named of those that have no profile.
const MAX_NAMED: usize = 3;

impl HeapRecording {
    /// What a reader must know, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut rates: BTreeMap<u64, usize> = BTreeMap::new();
        for facts in &self.read {
            *rates.entry(facts.rate).or_default() += 1;
            let who = format!("{} (pid {})", facts.comm, facts.pid);
            if facts.torn > 0 {
                notes.push(format!(
                    "{who}: {} buckets could not be read whole",
                    facts.torn
                ));
            }
            if facts.is_cut {
                notes.push(format!("{who}: has more buckets than were read"));
            }
            if !facts.is_settled {
                notes.push(format!("{who}: collected garbage each time it was read"));
            }
        }
        if rates.len() > 1 {
            let rates: Vec<String> = rates
                .iter()
                .map(|(rate, count)| format!("{} once in {rate} bytes", programs(*count)))
                .collect();
            notes.push(format!("sampled at several rates: {}", rates.join(", ")));
        }
        if self.gone > 0 {
            notes.push(format!(
                "{} exited during the recording: what they allocated is not in it",
                programs(self.gone)
            ));
        }
        if self.late > 0 {
            notes.push(format!(
                "{} came to be wanted during the recording: what they allocated is not in it",
                programs(self.late)
            ));
        }
        if self.not_kept > 0 {
            notes.push(format!(
                "of {} the memory limit has no room to keep what was allocated before: what they allocated is not in it",
                programs(self.not_kept)
            ));
        }
        if self.enabled > 0 {
            notes.push(format!(
                "in {} the heap profile was turned on by goprof: what was allocated before is not in it",
                programs(self.enabled)
            ));
        }
        let without = without_by_reason(&self.without);
        for (why, who) in without {
            let names: Vec<String> = who
                .iter()
                .take(MAX_NAMED)
                .map(|one| format!("{} (pid {})", one.comm, one.pid))
                .collect();
            let more = if who.len() > MAX_NAMED { ", ..." } else { "" };
            notes.push(format!(
                "without a heap profile: {}: {}{more}: {why}",
                programs(who.len()),
                names.join(", ")
            ));
        }
        notes
    }
}

fn without_by_reason(without: &[WithoutHeap]) -> BTreeMap<String, Vec<&WithoutHeap>> {
    let mut by_reason: BTreeMap<String, Vec<&WithoutHeap>> = BTreeMap::new();
    for one in without {
        by_reason.entry(one.why.to_string()).or_default().push(one);
    }
    by_reason
}

/// So many programs, in words.
pub fn programs(count: usize) -> String {
    match count {
        1 => "1 program".to_owned(),
        count => format!("{count} programs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gomemory::NoHeap;

    #[test]
    fn programs_without_a_profile_are_grouped_by_why() {
        let one = |pid, why| WithoutHeap {
            pid,
            comm: format!("p{pid}"),
            why,
        };
        let off = NoHeap::Off { is_linked: false };
        let without = [
            one(1, off.clone()),
            one(2, NoHeap::Unknown("x".to_owned())),
            one(3, off),
        ];
        let by_reason = without_by_reason(&without);
        let counts: Vec<usize> = by_reason.values().map(Vec::len).collect();
        assert_eq!(counts, [2, 1]);
    }
}
