//! What goroutines wait for, by address, and who else waits for the same.

use foldhash::{HashMap, HashMapExt as _};

use super::{Snapshot, Taking, batch::Read};
use crate::{
    gobinary::{GoroutineStatus, is_for_semaphore, owner_of_semaphore},
    gomemory::{Awaited, Goroutine},
};

/// What goroutines wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// What is there: a `channel`, a `mutex`, what else of `sync`, or a `semaphore`
    /// that cannot be told to be of any.
    pub what: &'static str,
    /// Its address.
    pub address: u64,
}

impl Taking<'_, '_> {
    /// Adds goroutines to the snapshot, with what they wait for.
    pub(super) fn add_places(&mut self, read: Vec<Read>) {
        let source = self.source;
        if !self.wanted.places {
            let records = read.into_iter().map(|read| read.record);
            self.snapshot.goroutines.extend(records);
            return;
        }
        let queued: Vec<&Goroutine> = read
            .iter()
            .map(|read| &read.goroutine)
            .filter(|goroutine| goroutine.waiting != 0)
            .collect();
        let awaited = source.program.awaited(&source.offsets, &queued);
        let mut awaited = awaited.into_iter();
        for Read {
            mut record,
            goroutine,
        } in read
        {
            let of_queue = match goroutine.waiting {
                0 => None,
                _ => awaited.next(),
            };
            let reason = self.snapshot.reason(&record).to_owned();
            let start = self.snapshot.places.len() as u32;
            for awaited in of_queue.into_iter().flatten() {
                self.snapshot.places.push(place(awaited, &reason));
            }
            record.places = start..self.snapshot.places.len() as u32;
            let waits = goroutine.status == GoroutineStatus::Waiting;
            if waits && record.places.is_empty() && is_for_semaphore(&reason) {
                let index = self.snapshot.goroutines.len();
                self.for_semaphores.push((index, goroutine.address));
            }
            self.snapshot.goroutines.push(record);
        }
    }

    /// Adds the semaphores that goroutines wait for who do not say so themselves:
    /// those that they waited for at the beginning and at the end.
    pub(super) fn add_semaphores(&mut self) {
        let source = self.source;
        if self.for_semaphores.is_empty() {
            return;
        }
        let after = source
            .program
            .semaphores(&source.offsets)
            .unwrap_or_default();
        for (index, address) in std::mem::take(&mut self.for_semaphores) {
            let before = self.semaphores.get(&address);
            let Some(semaphore) = before.filter(|before| after.get(&address) == Some(before))
            else {
                continue;
            };
            let reason = self.snapshot.reason(&self.snapshot.goroutines[index]);
            let found = place(Awaited::Semaphore(*semaphore), reason);
            let start = self.snapshot.places.len() as u32;
            self.snapshot.places.push(found);
            self.snapshot.goroutines[index].places = start..start + 1;
        }
    }
}

fn place(awaited: Awaited, reason: &str) -> Place {
    let (what, address) = match awaited {
        Awaited::Channel(address) => ("channel", address),
        Awaited::Semaphore(address) => owner_of_semaphore(reason, address),
    };
    Place { what, address }
}

impl Snapshot {
    /// What a goroutine waits for; a `select` for several channels, each once.
    pub fn places(&self, goroutine: &super::Record) -> Vec<Place> {
        let range = goroutine.places.start as usize..goroutine.places.end as usize;
        let mut places = self.places.get(range).unwrap_or_default().to_vec();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Who waits for each, by id; whether it was asked for or not.
    pub fn waiters(&self) -> HashMap<Place, Vec<u64>> {
        let mut waiters: HashMap<Place, Vec<u64>> = HashMap::new();
        for goroutine in &self.goroutines {
            for place in self.places(goroutine) {
                waiters.entry(place).or_default().push(goroutine.goid);
            }
        }
        waiters
    }
}
