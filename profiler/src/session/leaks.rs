//! Goroutines over several snapshots: which stacks only gain some, and never lose
//! one. Keeps of each goroutine only what the rule of `docs/leaks.md` asks for.

use foldhash::{HashMap, HashMapExt as _};

use super::goroutines::{Group, Record, Snapshot};
use crate::gobinary::GoroutineStatus;

/// The least snapshots that tell anything.
pub const MIN_SNAPSHOTS: usize = 3;

/// How the goroutines of a stack leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Some are new in every snapshot.
    Grows,
    /// Some are new in most snapshots, and each waits as it did when it was first seen.
    Ages,
}

/// A stack whose goroutines leak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// How.
    pub kind: Kind,
    /// Those there now, by place in the last snapshot.
    pub group: Group,
    /// How many were there in each snapshot.
    pub counts: Vec<u32>,
    /// How many of those there now were first seen in each snapshot.
    pub first_seen: Vec<u32>,
}

impl Leak {
    /// How many came after the first snapshot.
    pub fn newcomers(&self) -> u32 {
        self.first_seen.iter().skip(1).sum()
    }
}

/// A stack, and the statement that started the goroutines on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    stack: u32,
    created_at: u64,
}

/// What is remembered of a goroutine.
#[derive(Debug, Clone, Copy)]
struct Track {
    first: u32,
    last: u32,
    at: Place,
    since_ns: Option<u64>,
    /// It was seen at two stacks, or went on between two snapshots.
    has_moved: bool,
}

/// What is remembered of a place.
#[derive(Debug, Default)]
struct Seen {
    counts: Vec<u32>,
    ended: u64,
    /// One waited there, or was in a system call. Who is seen there and does not has just
    /// been woken: of many that wait for tickers that may be all at once.
    is_wait: bool,
}

/// Watches a program over its snapshots.
#[derive(Debug, Default)]
pub struct Watch {
    snapshots: u32,
    stacks: HashMap<Box<[u64]>, u32>,
    tracks: HashMap<u64, Track>,
    places: HashMap<Place, Seen>,
}

impl Watch {
    /// Adds the next snapshot.
    pub fn add(&mut self, snapshot: &Snapshot) {
        let now = self.snapshots;
        self.snapshots += 1;
        let places: Vec<Place> = self.places_of(snapshot);
        for (goroutine, place) in snapshot.goroutines.iter().zip(places) {
            let seen = self.places.entry(place).or_default();
            seen.counts.resize(now as usize + 1, 0);
            seen.counts[now as usize] += 1;
            let status = goroutine.status;
            seen.is_wait |= matches!(status, GoroutineStatus::Waiting | GoroutineStatus::Syscall);
            let since_ns = goroutine.since_ns;
            let track = self.tracks.entry(goroutine.goid).or_insert(Track {
                first: now,
                last: now,
                at: place,
                since_ns,
                has_moved: false,
            });
            let went_on = track.since_ns.is_some() && track.since_ns != since_ns;
            track.has_moved |= track.at != place || went_on;
            (track.last, track.at, track.since_ns) = (now, place, since_ns);
        }
        // One that could not be read may be there again in the next.
        let places = &mut self.places;
        self.tracks.retain(|_, track| {
            let is_kept = track.last + 1 >= now;
            if !is_kept && let Some(seen) = places.get_mut(&track.at) {
                seen.ended += 1;
            }
            is_kept
        });
    }

    /// How many snapshots there were.
    pub fn snapshots(&self) -> usize {
        self.snapshots as usize
    }

    fn places_of(&mut self, snapshot: &Snapshot) -> Vec<Place> {
        let mut stacks = Vec::with_capacity(snapshot.stacks.len());
        for stack in &snapshot.stacks {
            let next = self.stacks.len() as u32;
            stacks.push(*self.stacks.entry(stack.clone()).or_insert(next));
        }
        let goroutines = snapshot.goroutines.iter();
        goroutines
            .map(|goroutine| Place {
                stack: stacks[goroutine.stack as usize],
                created_at: goroutine.created_at,
            })
            .collect()
    }

    /// The stacks that leak, with at least `least` new goroutines, those that grew
    /// most first; only stacks with a goroutine that is `wanted`. `last` is the snapshot that
    /// was added last.
    pub fn leaks(
        &mut self,
        last: &Snapshot,
        least: u32,
        wanted: impl Fn(&Record) -> bool,
    ) -> Vec<Leak> {
        let snapshots = self.snapshots();
        if snapshots < MIN_SNAPSHOTS {
            return Vec::new();
        }
        let places = self.places_of(last);
        let mut members: HashMap<Place, Vec<u32>> = HashMap::new();
        for (index, place) in (0..).zip(places) {
            members.entry(place).or_default().push(index);
        }
        let mut ended: HashMap<Place, u64> = HashMap::new();
        let is_gone = |track: &&Track| track.last + 1 < self.snapshots;
        for track in self.tracks.values().filter(is_gone) {
            *ended.entry(track.at).or_default() += 1;
        }
        let mut leaks: Vec<Leak> = Vec::new();
        for (place, members) in members {
            let Some(seen) = self.places.get(&place) else {
                continue;
            };
            if !seen.is_wait || seen.ended > 0 || ended.contains_key(&place) {
                continue;
            }
            let of_last = |index: &u32| last.goroutines.get(*index as usize);
            let is_wanted = members.iter().filter_map(of_last).any(&wanted);
            if let Some(kind) = self.kind(last, &members, least).filter(|_| is_wanted) {
                leaks.push(Leak {
                    kind,
                    counts: seen.counts.clone(),
                    first_seen: self.first_seen(last, &members),
                    group: Group { members },
                });
            }
        }
        leaks.sort_by_key(|leak| {
            (
                std::cmp::Reverse(leak.newcomers()),
                leak.group.members.clone(),
            )
        });
        leaks
    }

    fn tracks_of(&self, last: &Snapshot, members: &[u32]) -> impl Iterator<Item = &Track> {
        let records = members
            .iter()
            .map(|index| &last.goroutines[*index as usize]);
        let ids: Vec<u64> = records.map(|record| record.goid).collect();
        ids.into_iter().filter_map(|goid| self.tracks.get(&goid))
    }

    fn first_seen(&self, last: &Snapshot, members: &[u32]) -> Vec<u32> {
        let mut first_seen = vec![0; self.snapshots()];
        for track in self.tracks_of(last, members) {
            first_seen[track.first as usize] += 1;
        }
        first_seen
    }

    /// How those who are at a place now leak, where none that was there has ended.
    fn kind(&self, last: &Snapshot, members: &[u32], least: u32) -> Option<Kind> {
        let first_seen = self.first_seen(last, members);
        let came: u32 = first_seen.iter().skip(1).sum();
        if came < least {
            return None;
        }
        let intervals = first_seen.len() - 1;
        let with_new = first_seen.iter().skip(1).filter(|new| **new > 0).count();
        let has_moved = || self.tracks_of(last, members).any(|track| track.has_moved);
        if with_new == intervals {
            Some(Kind::Grows)
        } else if with_new * 2 > intervals && !has_moved() {
            Some(Kind::Ages)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::StackEnd;

    /// A snapshot of goroutines by id, each at a stack.
    fn snapshot(goroutines: &[(u64, u32)]) -> Snapshot {
        let record = |(goid, stack): &(u64, u32)| Record {
            goid: *goid,
            status: GoroutineStatus::Waiting,
            reason: Some(1),
            since_ns: None,
            waits_ns: None,
            parent: None,
            created_at: 7,
            stack: *stack,
            end: StackEnd::Whole,
            labels: 0,
            places: 0..0,
        };
        Snapshot {
            goroutines: goroutines.iter().map(record).collect(),
            stacks: vec![Box::from([1]), Box::from([2])],
            ..Snapshot::default()
        }
    }

    fn leaks(snapshots: &[Vec<(u64, u32)>], least: u32) -> Vec<(Kind, Vec<u32>)> {
        let mut watch = Watch::default();
        let snapshots: Vec<Snapshot> = snapshots.iter().map(|all| snapshot(all)).collect();
        for snapshot in &snapshots {
            watch.add(snapshot);
        }
        let last = snapshots.last().unwrap();
        let leaks = watch.leaks(last, least, |_| true);
        leaks
            .into_iter()
            .map(|leak| (leak.kind, leak.counts))
            .collect()
    }

    fn at(stack: u32, ids: std::ops::Range<u64>) -> Vec<(u64, u32)> {
        ids.map(|id| (id, stack)).collect()
    }

    #[test]
    fn what_only_gains_leaks() {
        let grows = [at(0, 1..3), at(0, 1..6), at(0, 1..9), at(0, 1..12)];
        assert_eq!(leaks(&grows, 8), [(Kind::Grows, vec![2, 5, 8, 11])]);
        assert!(leaks(&grows, 10).is_empty(), "too few to tell");
        assert!(leaks(&grows[..2], 1).is_empty(), "too few snapshots");
    }

    #[test]
    fn one_that_was_missed_once_has_not_ended() {
        let missed = [at(0, 1..3), at(0, 2..6), at(0, 1..9)];
        assert_eq!(leaks(&missed, 6), [(Kind::Grows, vec![2, 4, 8])]);
    }

    #[test]
    fn where_nobody_was_seen_to_wait_is_no_leak() {
        let with_runnable = |from: usize| {
            let ids = [1..3, 1..12, 1..22];
            let mut snapshots: Vec<Snapshot> =
                ids.into_iter().map(|ids| snapshot(&at(0, ids))).collect();
            let mut watch = Watch::default();
            for goroutine in snapshots[from..].iter_mut().flat_map(|s| &mut s.goroutines) {
                goroutine.status = GoroutineStatus::Runnable;
            }
            snapshots.iter().for_each(|snapshot| watch.add(snapshot));
            watch.leaks(&snapshots[2], 8, |_| true).len()
        };
        assert_eq!([0, 1, 2, 3].map(with_runnable), [0, 1, 1, 1]);
    }

    #[test]
    fn what_ends_or_stays_is_no_leak() {
        let steady = [at(0, 1..99), at(0, 1..99), at(0, 1..99)];
        let burst = [at(0, 1..3), at(0, 1..99), at(0, 1..99), at(0, 1..99)];
        let one_ended = [at(0, 1..9), at(0, 2..30), at(0, 2..60), at(0, 2..90)];
        let now_ended = [at(0, 1..9), at(0, 1..30), at(0, 1..60), at(0, 2..90)];
        for all in [&steady[..], &burst, &one_ended, &now_ended] {
            assert_eq!(leaks(all, 8), [], "{all:?}");
        }
    }

    #[test]
    fn those_that_come_from_elsewhere_are_not_new() {
        let busy = |ids| at(1, ids);
        let both = |idle, ids| [at(0, idle), busy(ids)].concat();
        let settles = [both(0..0, 1..50), both(1..9, 9..50), both(1..19, 19..50)];
        assert_eq!(leaks(&settles, 8), []);
    }

    #[test]
    fn what_comes_in_most_snapshots_and_only_waits_leaks() {
        let ages = [
            at(0, 1..9),
            at(0, 1..19),
            at(0, 1..19),
            at(0, 1..29),
            at(0, 1..39),
        ];
        assert_eq!(leaks(&ages, 8), [(Kind::Ages, vec![8, 18, 18, 28, 38])]);
        let mut moves = ages.clone();
        moves[1][0].1 = 1;
        assert_eq!(leaks(&moves, 8), []);
    }
}
