//! What goroutines wait for, by address: channels, and what semaphores are part of.
//! Follows what stands for them in queues (`runtime.sudog`), no further than is
//! bounded, and believes what refers back to them.

use std::collections::{HashMap, HashSet};

use super::{
    Goroutine, Memory, blocks::Blocks, goroutines::Head, pieces::Pieces, program::Program,
};
use crate::gobinary::{GoroutineStatus, SemaphoreTable, StructOffsets, SudogOffsets};

/// Channels of one `select` that are looked at.
const MAX_CASES: usize = 256;
/// Those that are looked at of all that wait for semaphores.
const MAX_WAITERS: usize = 1 << 20;
/// Those that are looked at for the goroutines of a batch.
const MAX_OF_BATCH: usize = 1 << 17;
/// Bytes read for all semaphores.
const MAX_TABLE_BYTES: usize = 256 << 20;

/// What a goroutine waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Awaited {
    /// The channel at an address (`runtime.hchan`), to send to or receive from.
    Channel(u64),
    /// The semaphore at an address, or the list of a `sync.Cond`.
    Semaphore(u64),
}

/// More bytes than a sudog has.
const MAX_SUDOG_BYTES: usize = 256;

/// Bytes of a sudog up to the last field that is used.
fn sudog_bytes(offsets: &SudogOffsets) -> usize {
    let fields = [
        offsets.g,
        offsets.next,
        offsets.prev,
        offsets.elem,
        offsets.wait_link,
        offsets.c,
    ];
    fields.into_iter().max().unwrap_or(0) as usize + 8
}

/// What stands for a goroutine in a queue.
struct Sudog {
    g: u64,
    next: u64,
    prev: u64,
    elem: u64,
    wait_link: u64,
    c: u64,
}

/// Reads them.
struct Sudogs<'m> {
    blocks: Blocks<'m>,
    offsets: &'m SudogOffsets,
}

impl Sudogs<'_> {
    fn at(&mut self, address: u64) -> Option<Sudog> {
        if address == 0 || !address.is_multiple_of(8) {
            return None;
        }
        let offsets = self.offsets;
        let mut bytes = [0; MAX_SUDOG_BYTES];
        let bytes = bytes.get_mut(..sudog_bytes(offsets))?;
        if !self.blocks.read(address, bytes) {
            return None;
        }
        Sudog::of(bytes, offsets)
    }
}

impl Sudog {
    fn of(bytes: &[u8], offsets: &SudogOffsets) -> Option<Self> {
        let word = |offset: u32| {
            let word = bytes.get(offset as usize..)?.first_chunk::<8>()?;
            Some(u64::from_le_bytes(*word))
        };
        Some(Sudog {
            g: word(offsets.g)?,
            next: word(offsets.next)?,
            prev: word(offsets.prev)?,
            elem: word(offsets.elem)?,
            wait_link: word(offsets.wait_link)?,
            c: word(offsets.c)?,
        })
    }
}

impl Program<'_> {
    /// What each of some goroutines waits for, as far as they say it themselves:
    /// nothing of those that do not wait, or went on meanwhile.
    pub fn awaited(&self, offsets: &StructOffsets, goroutines: &[&Goroutine]) -> Vec<Vec<Awaited>> {
        let Ok(lists) = &offsets.lists else {
            return vec![Vec::new(); goroutines.len()];
        };
        let mut awaited = awaited_by(goroutines, self.memory, &lists.sudog);
        let head = Head::of(offsets);
        let is_same = head.still_of(self.memory, goroutines);
        for (awaited, is_same) in awaited.iter_mut().zip(is_same) {
            if !is_same {
                awaited.clear();
            }
        }
        awaited
    }

    /// The semaphores that goroutines wait for, by where their structs are. None
    /// where the table of them is not found, or makes no sense.
    pub fn semaphores(&self, offsets: &StructOffsets) -> Option<HashMap<u64, u64>> {
        let table = self.address(self.variables.semaphores?);
        let mut sudogs = Sudogs {
            blocks: Blocks::new(self.memory, MAX_TABLE_BYTES),
            offsets: &offsets.lists.as_ref().ok()?.sudog,
        };
        let mut waiters = HashMap::new();
        let mut seen = HashSet::new();
        for root in 0..SemaphoreTable::ROOTS {
            let at = root * SemaphoreTable::STRIDE + SemaphoreTable::TREE;
            let mut open = vec![self.memory.word(table.wrapping_add(at))?];
            while let Some(node) = open.pop() {
                if node == 0 || seen.len() >= MAX_WAITERS || !seen.insert(node) {
                    continue;
                }
                // The tree changes while it is read: what makes no sense is let go.
                let Some(first) = sudogs.at(node) else {
                    continue;
                };
                if SemaphoreTable::root_of(first.elem) != root {
                    continue;
                }
                open.extend([first.next, first.prev]);
                waiters.insert(first.g, first.elem);
                let mut next = first.wait_link;
                while next != 0 && seen.len() < MAX_WAITERS && seen.insert(next) {
                    let Some(sudog) = sudogs.at(next) else {
                        break;
                    };
                    if sudog.elem != first.elem {
                        break;
                    }
                    waiters.insert(sudog.g, sudog.elem);
                    next = sudog.wait_link;
                }
            }
        }
        Some(waiters)
    }
}

/// What each goroutine waits for: what stands for them is read of all at once, then
/// what is linked to that.
fn awaited_by(
    goroutines: &[&Goroutine],
    memory: &dyn Memory,
    offsets: &SudogOffsets,
) -> Vec<Vec<Awaited>> {
    let mut awaited = vec![Vec::new(); goroutines.len()];
    let waiting = goroutines.iter().enumerate();
    let mut open: Vec<(usize, u64)> = waiting
        .filter(|(_, goroutine)| goroutine.status == GoroutineStatus::Waiting)
        .map(|(index, goroutine)| (index, goroutine.waiting))
        .collect();
    let len = sudog_bytes(offsets).min(MAX_SUDOG_BYTES);
    let mut left = MAX_OF_BATCH;
    for _ in 0..MAX_CASES {
        open.retain(|(_, next)| *next != 0 && next.is_multiple_of(8));
        open.truncate(left);
        left -= open.len();
        let addresses: Vec<u64> = open.iter().map(|(_, next)| *next).collect();
        let pieces = Pieces::read(memory, &addresses, len);
        let mut at = 0..;
        open.retain_mut(|(index, next)| {
            let bytes = at.next().and_then(|at| pieces.get(at));
            let sudog = bytes.and_then(|bytes| Sudog::of(bytes, offsets));
            // One that is not this goroutine's was let go of, and is another's.
            let address = goroutines[*index].address;
            let Some(sudog) = sudog.filter(|sudog| sudog.g == address) else {
                return false;
            };
            match (sudog.c, sudog.elem) {
                (0, 0) => {}
                (0, elem) => awaited[*index].push(Awaited::Semaphore(elem)),
                (c, _) => awaited[*index].push(Awaited::Channel(c)),
            }
            *next = sudog.wait_link;
            true
        });
        if open.is_empty() {
            break;
        }
    }
    awaited
}

#[cfg(test)]
mod tests {
    use super::super::fake::Words;
    use super::super::goroutines::tests::{OFFSETS, waiting};
    use super::*;

    #[test]
    fn semaphores_hash_as_the_runtime_does() {
        assert_eq!(SemaphoreTable::root_of(0), 0);
        assert_eq!(SemaphoreTable::root_of(251 * 8 + 12), 1);
    }

    #[test]
    fn a_chain_without_an_end_ends() {
        let mut words = Words::default();
        // Its next is itself, of the goroutine at 0x100.
        words.put(0x1000, &[0x100, 0, 0, 0, 0, 0, 0, 0, 0x1000, 0, 0x2000, 0]);
        words.put(0x1060, &[0; 500]);
        let offsets = &OFFSETS.lists.as_ref().unwrap().sudog;
        let (its, others) = (waiting(0x100, 0x1000), waiting(0x108, 0x1000));
        let awaited = awaited_by(&[&others, &its], &words, offsets);
        assert_eq!(awaited[1], vec![Awaited::Channel(0x2000); MAX_CASES]);
        assert!(awaited[0].is_empty());
        // Many of them have no more together than is looked at.
        let many = vec![&its; 4096];
        let awaited = awaited_by(&many, &words, offsets);
        assert_eq!(awaited.iter().map(Vec::len).sum::<usize>(), MAX_OF_BATCH);
    }
}
