//! Where allocations were seen, and how what was seen compares with what the runtime
//! counts, in words for people.

/// Where allocations are to be seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AllocSource {
    /// At the samples that the runtime takes for its heap profile where the program keeps
    /// one, else at calls of the allocator.
    #[default]
    Auto,
    /// At calls of the allocator, in windows.
    Calls,
    /// Where spans of memory are used up.
    Spans,
}

/// Where allocations were seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeenAt {
    /// At the runtime's samples, one in so many bytes.
    Samples(u64),
    /// At all calls of the allocator in windows.
    Calls,
    /// Where spans of blocks were used up, and at blocks that are larger.
    Spans,
}

/// Where allocations were seen, and how their sum compares.
#[derive(Debug, Clone, PartialEq)]
pub struct AllocationFacts {
    /// Where they were seen.
    pub at: SeenAt,
    /// Whether the program changed the rate of its samples meanwhile.
    pub rate_changed: bool,
    /// What was seen comes to so many bytes, by the time that was watched.
    pub estimated_bytes: f64,
    /// What the runtime counted meanwhile, in bytes.
    pub runtime_bytes: Option<u64>,
    /// What was seen in the windows of what the runtime counted in them, where that was
    /// enough to tell.
    pub seen_share: Option<f64>,
    /// Whether the values come to what the runtime counted.
    pub is_calibrated: bool,
    /// The share of what the runtime counted that came in bursts which lie between windows,
    /// where it is so much that what was seen in these says little.
    pub missed_share: Option<f64>,
}

impl AllocationFacts {
    /// Where allocations were seen, and what became of the total, in words.
    pub fn source(&self, watched_share: f64) -> String {
        let watched = match watched_share {
            share if share > 0.995 && self.at == SeenAt::Spans => "on all the time".to_owned(),
            share => format!("watched {:.1}% of the time", share * 100.0),
        };
        let mut words = match self.at {
            SeenAt::Samples(rate) => format!("sampled by the runtime (once in {rate} bytes)"),
            SeenAt::Calls => format!("windows over mallocgc, {watched}"),
            SeenAt::Spans => format!("spans used up (runtime.mcache.refill), {watched}"),
        };
        if self.rate_changed {
            words.push_str(", a rate that the program changed meanwhile");
        }
        let megabytes = |bytes: f64| format!("{:.1} MB", bytes / 1e6);
        let counted = self.runtime_bytes.map(|bytes| megabytes(bytes as f64));
        words.push_str(&match counted {
            Some(counted) if self.is_calibrated => {
                format!(", calibrated by the runtime's totals, {counted}")
            }
            Some(counted) => {
                let estimated = megabytes(self.estimated_bytes);
                format!(", {estimated} where the runtime counts {counted}")
            }
            None => ", the runtime's totals are not known".to_owned(),
        });
        if let Some(share) = self.seen_share {
            words.push_str(&format!(
                "; in the windows {:.1}% of what it counted was seen",
                share * 100.0
            ));
        }
        words
    }

    /// What a reader must know of how sure it is, one sentence each.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.at == SeenAt::Spans {
            doubts.push(
                "each span counts for who used the last of it: how far sites are off is not \
                 known, and two that allocate in step can be off by half without a sign"
                    .to_owned(),
            );
        }
        if let Some(share) = self.missed_share {
            let instead = match self.at {
                SeenAt::Spans => "a higher --probe-budget has more of them",
                _ => "--alloc-source spans sees these",
            };
            doubts.push(format!(
                "{:.0}% of the bytes came in bursts between the windows, where nobody watched: \
                 {instead}",
                share * 100.0
            ));
        }
        doubts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: AllocationFacts = AllocationFacts {
        at: SeenAt::Calls,
        rate_changed: false,
        estimated_bytes: 100e6,
        runtime_bytes: Some(103_000_000),
        seen_share: Some(0.987),
        is_calibrated: true,
        missed_share: None,
    };

    #[test]
    fn the_source_is_told_in_words() {
        let calibrated = "windows over mallocgc, watched 4.0% of the time, calibrated by the \
                          runtime's totals, 103.0 MB; in the windows 98.7% of what it counted was \
                          seen";
        assert_eq!(FACTS.source(0.04), calibrated);
        assert_eq!(FACTS.doubts(), [""; 0]);
        let sampled = AllocationFacts {
            at: SeenAt::Samples(512),
            seen_share: None,
            is_calibrated: false,
            ..FACTS
        };
        let expected = "sampled by the runtime (once in 512 bytes), 100.0 MB where the runtime \
                        counts 103.0 MB";
        assert_eq!(sampled.source(1.0), expected);
    }

    #[test]
    fn of_spans_it_is_told_what_is_not_known() {
        let spans = AllocationFacts {
            at: SeenAt::Spans,
            seen_share: None,
            ..FACTS
        };
        let expected = "spans used up (runtime.mcache.refill), on all the time, calibrated by the \
                        runtime's totals, 103.0 MB";
        assert_eq!(spans.source(0.999), expected);
        let watched = spans.source(0.5);
        assert!(
            watched.contains("refill), watched 50.0% of the time"),
            "{watched}"
        );
        let doubts = spans.doubts();
        assert!(
            doubts.len() == 1 && doubts[0].contains("is not known"),
            "{doubts:?}"
        );
    }

    #[test]
    fn bursts_that_were_missed_are_told_with_what_sees_them() {
        let missed = |at| {
            let facts = AllocationFacts {
                at,
                missed_share: Some(0.214),
                ..FACTS
            };
            facts.doubts().pop().unwrap_or_default()
        };
        let calls = missed(SeenAt::Calls);
        assert!(
            calls.starts_with("21% of the bytes came in bursts"),
            "{calls}"
        );
        assert!(
            calls.ends_with("--alloc-source spans sees these"),
            "{calls}"
        );
        assert!(missed(SeenAt::Spans).contains("--probe-budget"));
    }
}
