//! What a reader of a profile of goroutines must know, one sentence each.

use super::{SnapshotFacts, SnapshotRecording, Unread};
use crate::session::programs;

/// Programs named of those that could not be read.
const MAX_NAMED: usize = 3;

impl SnapshotRecording {
    /// What a reader must know, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.facts.notes();
        for Unread { pid, comm, why } in self.unread.iter().take(MAX_NAMED) {
            notes.push(format!(
                "not all of {comm} (pid {pid}) could be read: {why}"
            ));
        }
        let more = self.unread.len().saturating_sub(MAX_NAMED);
        if more > 0 {
            notes.push(format!("nor of {} more", programs(more)));
        }
        notes
    }
}

impl SnapshotFacts {
    /// How many of the goroutines were looked at, unless all were.
    fn looked_at(&self) -> Option<String> {
        let mean = |count: u64| count as f64 / self.snapshots.max(1) as f64;
        (self.stand_for > self.goroutines).then(|| {
            format!(
                "each snapshot looked at {:.0} of {:.0} goroutines, chosen at random: each \
                 counts for those that it stands for",
                mean(self.goroutines),
                mean(self.stand_for)
            )
        })
    }

    fn notes(&self) -> Vec<String> {
        let left_out = self.left_out;
        let counts = [
            (
                self.running,
                "times a goroutine ran: of its stack only where it begins is known",
            ),
            (
                left_out.changed,
                "times a goroutine went on again and again while it was read: it counts without a stack",
            ),
            (
                left_out.ended,
                "times a goroutine ended while it was read: it counts without a stack",
            ),
            (
                left_out.nonsense + left_out.unreadable,
                "times a goroutine could not be read, and is left out",
            ),
            (
                left_out.cut,
                "times there were more goroutines than goprof reads",
            ),
            (self.broken, "times a stack could not be read whole"),
            (self.labels_damaged, "times labels could not be read whole"),
            (
                self.late,
                "snapshots had to wait for the ones before, and stand for more time",
            ),
            (
                self.failed,
                "times a program could not be read: what its goroutines did then is left out",
            ),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let counts = counts.map(|(count, what)| format!("{count} {what}"));
        let mut notes: Vec<String> = self.looked_at().into_iter().chain(counts).collect();
        if self.gone > 0 {
            notes.push(format!("{} exited meanwhile", programs(self.gone)));
        }
        notes
    }
}
