//! When to look at a process again because it may have loaded Go code. Keeps
//! times, and what was seen the last time; looks at nothing itself.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use profiler_ebpf::wire::THREAD_PAUSE_NS;

/// How long after the news of a thread the process is looked at. By then most
/// have started all their threads, and many are gone; and the kernel side tells
/// again of threads that are started later.
const LOOK_AFTER: Duration = Duration::from_millis(100);
const _: () = assert!(LOOK_AFTER.as_nanos() > THREAD_PAUSE_NS as u128);

/// Processes remembered beside those that are due for a look. Who is forgotten
/// is looked at closely once more.
const MAX_IDLE: usize = 4096;

/// The looks that are due, by pid.
#[derive(Debug, Default)]
pub(super) struct Looks {
    processes: HashMap<u32, Look>,
    due: usize,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    /// None where no look is due.
    at: Option<Instant>,
    /// How much code was mapped at the last look.
    code_bytes: Option<u64>,
}

impl Looks {
    /// The process has started a thread, or has another reason to be looked at.
    pub(super) fn note(&mut self, pid: u32, now: Instant) {
        if self.processes.len() >= self.due + MAX_IDLE {
            self.processes.retain(|_, look| look.at.is_some());
        }
        let look = self.processes.entry(pid).or_insert(Look {
            at: None,
            code_bytes: None,
        });
        if look.at.is_none() {
            look.at = Some(now + LOOK_AFTER);
            self.due += 1;
        }
    }

    /// The process is gone, or is wanted now.
    pub(super) fn forget(&mut self, pid: u32) {
        if let Some(Look { at: Some(_), .. }) = self.processes.remove(&pid) {
            self.due -= 1;
        }
    }

    /// Whether no look is due.
    pub(super) fn is_empty(&self) -> bool {
        self.due == 0
    }

    /// The processes to look at now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<u32> {
        if self.due == 0 {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (pid, look) in &mut self.processes {
            if look.at.is_some_and(|at| at <= now) {
                look.at = None;
                due.push(*pid);
            }
        }
        self.due -= due.len();
        due
    }

    /// Whether a process that is looked at has as much code mapped as the last
    /// time: then a closer look would see nothing new.
    pub(super) fn is_unchanged(&mut self, pid: u32, code_bytes: Option<u64>) -> bool {
        let Some(look) = self.processes.get_mut(&pid) else {
            return false;
        };
        let before = std::mem::replace(&mut look.code_bytes, code_bytes);
        before.is_some() && before == code_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_looked_at_once_for_many_threads() {
        let (mut looks, start) = (Looks::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        looks.note(7, start);
        looks.note(7, after(60));
        assert!(looks.take_due(after(99)).is_empty());
        assert!(!looks.is_empty());
        assert_eq!(looks.take_due(after(100)), [7]);
        assert!(looks.is_empty());
        assert!(looks.take_due(after(5000)).is_empty());
        looks.note(7, after(5000));
        assert_eq!(looks.take_due(after(5100)), [7]);
    }

    #[test]
    fn what_is_forgotten_is_not_looked_at() {
        let (mut looks, start) = (Looks::default(), Instant::now());
        looks.note(7, start);
        looks.forget(7);
        looks.forget(7);
        assert!(looks.is_empty());
        assert!(looks.take_due(start + LOOK_AFTER).is_empty());
    }

    #[test]
    fn only_more_code_is_worth_a_closer_look() {
        let mut looks = Looks::default();
        looks.note(7, Instant::now());
        assert!(!looks.is_unchanged(7, Some(4096)), "the first look");
        assert!(looks.is_unchanged(7, Some(4096)));
        assert!(!looks.is_unchanged(7, Some(8192)));
        assert!(!looks.is_unchanged(7, None), "nothing is known of it");
        assert!(!looks.is_unchanged(7, None));
        looks.forget(7);
        assert!(!looks.is_unchanged(7, Some(8192)), "another process");
    }

    #[test]
    fn processes_without_a_look_are_forgotten_once_they_are_many() {
        let (mut looks, start) = (Looks::default(), Instant::now());
        for pid in 0..3 * MAX_IDLE as u32 {
            looks.note(pid, start);
            assert_eq!(looks.take_due(start + LOOK_AFTER), [pid]);
            assert!(looks.processes.len() <= MAX_IDLE);
        }
    }
}
