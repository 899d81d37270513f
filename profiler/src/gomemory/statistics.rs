//! What the runtime counts of itself: goroutines by what they do, the heap,
//! collections and their pauses, the scheduler. A moment's reading of memory; what
//! cannot be found or makes no sense is left out and told.

use std::collections::BTreeMap;

use foldhash::{HashMap, HashMapExt as _};
use serde::Serialize;

use super::latency::{Latency, MAX_SUM};
use super::program::{GcController, Program};
use crate::gobinary::{GcFields, GoroutineStatus, StructOffsets};

/// How often the pauses are read before it is given up: a collection may end
/// meanwhile.
const ATTEMPTS: usize = 8;
/// Functions that begin goroutines of which it is remembered whose they are.
const MAX_STARTS: usize = 4096;
/// Why something is not known whose place or contents are not as they must be.
const NOT_SAID: &str = "its code does not say where the runtime keeps that";
const NO_SENSE: &str = "what is where the runtime keeps that makes no sense";

/// What a program's runtime counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Statistics {
    /// Its goroutines.
    pub goroutines: Option<GoroutineCounts>,
    /// Its heap.
    pub heap: Option<Heap>,
    /// Its collections.
    pub gc: Option<Collections>,
    /// Its scheduler.
    pub scheduler: Option<Scheduler>,
    /// What is not known, and why; a clause each.
    pub unknown: Vec<String>,
}

/// Goroutines by what they do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GoroutineCounts {
    /// All that are alive.
    pub alive: u64,
    /// Of these, the runtime's own, which Go itself does not count.
    pub system: u64,
    /// All by status, in the runtime's words.
    pub by_status: BTreeMap<&'static str, u64>,
    /// Those that wait, by what for, in the runtime's words.
    pub by_wait_reason: BTreeMap<String, u64>,
    /// Those that could not be read or made no sense.
    pub unread: u64,
}

/// The heap, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Heap {
    /// Allocated and not found free yet.
    pub live_bytes: u64,
    /// Found in use by the last collection.
    pub marked_bytes: u64,
    /// At which the next collection begins by GOGC, or sooner where the memory
    /// limit has it so; None where GOGC is off.
    pub goal_bytes: Option<u64>,
    /// In spans in use.
    pub in_use_bytes: u64,
    /// In free spans that were not given back.
    pub free_bytes: u64,
    /// Given back to the system.
    pub released_bytes: u64,
    /// Allocated since the program began.
    pub allocated_bytes: u64,
    /// Of these, freed.
    pub freed_bytes: u64,
    /// GOGC in percent; None for off.
    pub gc_percent: Option<u32>,
    /// GOMEMLIMIT; None without one.
    pub memory_limit_bytes: Option<u64>,
}

/// Collections of garbage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Collections {
    /// How many are over.
    pub cycles: u32,
    /// Of these, how many the program asked for.
    pub forced: u32,
    /// The share of the CPU time since the start that they took.
    pub cpu_fraction: f64,
    /// How long they stopped the program in all.
    pub pause_total_ns: u64,
    /// The latest pauses, oldest first, as far as the runtime remembers them.
    pub pauses: Vec<Pause>,
}

/// What a collection stopped the program for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// Which collection, counted from one.
    pub cycle: u32,
    /// How long it stopped the program.
    pub pause_ns: u64,
    /// When it ended, in nanoseconds since 1970.
    pub end_unix_ns: u64,
}

/// The scheduler.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scheduler {
    /// How many threads run Go code at once at most (`GOMAXPROCS`).
    pub gomaxprocs: Option<u32>,
    /// Threads that the runtime has.
    pub threads: u64,
    /// Of these, those that wait for work.
    pub idle_threads: u32,
    /// How long goroutines could run and did not yet, since the start. The runtime
    /// times one wait in eight.
    pub latency: Latency,
    /// How long goroutines waited for mutexes, in all, by one wait in eight; None
    /// up to 1.19, which does not count it.
    pub mutex_wait_ns: Option<u64>,
}

impl Heap {
    fn of(found: GcController) -> Self {
        Heap {
            live_bytes: found.heap_live,
            marked_bytes: found.heap_marked,
            goal_bytes: (found.goal != u64::MAX).then_some(found.goal),
            in_use_bytes: found.heap_in_use,
            free_bytes: found.heap_free,
            released_bytes: found.heap_released,
            allocated_bytes: found.total_alloc,
            freed_bytes: found.total_free,
            gc_percent: u32::try_from(found.gc_percent).ok(),
            memory_limit_bytes: (found.memory_limit != i64::MAX)
                .then_some(found.memory_limit.unsigned_abs()),
        }
    }
}

impl Collections {
    /// Out of the bytes from the time of the last collection on. None where they
    /// are not of one moment, or make no sense.
    fn of(bytes: &[u8]) -> Option<Self> {
        let word = |offset: i64| {
            let at = usize::try_from(offset - GcFields::LAST_GC_UNIX).ok()?;
            Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
        };
        let counts = word(0)?;
        let (cycles, forced) = (counts as u32, (counts >> 32) as u32);
        let ring = u32::try_from(GcFields::RING).ok()?;
        let remembered = ring.min(cycles);
        let pause = |cycle: u32| {
            // The ring's place of a collection is that of the count before it.
            let place = i64::from((cycle - 1) % ring);
            Some(Pause {
                cycle,
                pause_ns: word(GcFields::PAUSE_NS + place * 8)?,
                end_unix_ns: word(GcFields::PAUSE_END + place * 8)?,
            })
        };
        let first = cycles - remembered;
        let pauses: Option<Vec<Pause>> = (0..remembered).map(|n| pause(first + n + 1)).collect();
        let found = Collections {
            cycles,
            forced,
            cpu_fraction: f64::from_bits(word(GcFields::CPU_FRACTION)?),
            pause_total_ns: word(GcFields::PAUSE_TOTAL_NS)?,
            pauses: pauses?,
        };
        let last = found.pauses.last().map_or(0, |pause| pause.end_unix_ns);
        let paused = found
            .pauses
            .iter()
            .try_fold(0_u64, |sum, pause| sum.checked_add(pause.pause_ns))?;
        let adds_up = match cycles <= ring {
            true => paused == found.pause_total_ns,
            false => paused <= found.pause_total_ns,
        };
        // When a collection ends is written first, its pause then, its count last.
        let is_sane = word(GcFields::LAST_GC_UNIX)? == last
            && adds_up
            && found.pause_total_ns < MAX_SUM
            && forced <= cycles
            && (0.0..=1.0).contains(&found.cpu_fraction);
        is_sane.then_some(found)
    }
}

impl Program<'_> {
    /// What the runtime counts at this moment. Without `offsets`, which must be
    /// proven to be the program's, goroutines are not counted; `reasons` are what
    /// they wait for, by [`crate::gobinary::GoBinary::wait_reasons`]. Nor are they where
    /// the list has more places than `most`.
    pub fn statistics(
        &self,
        offsets: Result<&StructOffsets, String>,
        reasons: &[String],
        most: u64,
    ) -> Statistics {
        let mut unknown = Vec::new();
        let goroutines = offsets.and_then(|offsets| match self.goroutines_listed()? {
            listed if listed > most => Err(format!(
                "{listed} are listed, more than the {most} that are read"
            )),
            _ => self.count_goroutines(offsets, reasons),
        });
        let scheduler = self.scheduler(&mut unknown);
        Statistics {
            heap: known("heap", self.heap_counts(), &mut unknown),
            gc: known("collections", self.collections(), &mut unknown),
            scheduler: known("scheduler", scheduler, &mut unknown),
            goroutines: known("goroutines", goroutines, &mut unknown),
            unknown,
        }
    }

    fn has_known_layout(&self) -> Result<(), String> {
        let version = self.binary.version();
        match version.is_known_release() {
            true => Ok(()),
            false => Err(format!("goprof does not know how {version} keeps that")),
        }
    }

    fn heap_counts(&self) -> Result<Heap, String> {
        self.has_known_layout()?;
        self.variables.gc_controller.ok_or(NOT_SAID)?;
        Ok(self.gc_controller().map(Heap::of).ok_or(NO_SENSE)?)
    }

    fn count_goroutines(
        &self,
        offsets: &StructOffsets,
        reasons: &[String],
    ) -> Result<GoroutineCounts, String> {
        let mut counts = GoroutineCounts::default();
        let mut by_status: HashMap<GoroutineStatus, u64> = HashMap::new();
        let mut waiting = [0_u64; 256];
        let mut starts: HashMap<u64, bool> = HashMap::new();
        let listing = self.for_each_goroutine(offsets, |batch| {
            for goroutine in &batch.goroutines {
                *by_status.entry(goroutine.status).or_default() += 1;
                if goroutine.status == GoroutineStatus::Waiting {
                    waiting[usize::from(goroutine.wait_reason)] += 1;
                }
                let start = self.vaddr(goroutine.start_pc);
                let is_system = starts.get(&start).copied().unwrap_or_else(|| {
                    let is_system = self.binary.begins_system_goroutines(start);
                    if starts.len() < MAX_STARTS {
                        starts.insert(start, is_system);
                    }
                    is_system
                });
                counts.system += u64::from(is_system);
            }
        })?;
        let by_status = by_status.into_iter();
        counts.by_status = by_status.map(|(s, count)| (s.name(), count)).collect();
        counts.alive = listing.alive;
        counts.unread = listing.unreadable + listing.nonsense;
        let waiting = waiting.iter().enumerate().filter(|(_, count)| **count > 0);
        for (number, count) in waiting {
            let reason = reasons.get(number).filter(|reason| !reason.is_empty());
            let reason = reason
                .cloned()
                .unwrap_or_else(|| format!("reason {number}"));
            *counts.by_wait_reason.entry(reason).or_default() += count;
        }
        Ok(counts)
    }

    fn collections(&self) -> Result<Collections, String> {
        let at = self.variables.num_gc.ok_or(NOT_SAID)?;
        let from = self.address(at).wrapping_add_signed(GcFields::LAST_GC_UNIX);
        let size = GcFields::CPU_FRACTION + 8 - GcFields::LAST_GC_UNIX;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        for _ in 0..ATTEMPTS {
            if !self.memory.read(from, &mut bytes) {
                return Err("it cannot be read".to_owned());
            }
            // Another's end is written before anything of it.
            let last = bytes.first_chunk().map(|word| u64::from_le_bytes(*word));
            if self.memory.word(from) == last
                && let Some(found) = Collections::of(&bytes)
            {
                return Ok(found);
            }
        }
        Err(NO_SENSE.to_owned())
    }

    fn scheduler(&self, unknown: &mut Vec<String>) -> Result<Scheduler, String> {
        self.has_known_layout()?;
        self.variables.sched.ok_or(NOT_SAID)?;
        let (base, fields) = self.sched().ok_or(NO_SENSE)?;
        let address = |offset: u64| base.wrapping_add(offset);
        let word = |offset: u64| self.memory.word(address(offset)).ok_or(NO_SENSE);
        let mut bytes = vec![0; fields.histogram.words() * 8];
        let read = self.memory.read(address(fields.time_to_run), &mut bytes);
        let words = bytes.as_chunks().0.iter();
        let words: Vec<u64> = words.map(|word| u64::from_le_bytes(*word)).collect();
        let latency = Latency::of(&words, fields.histogram).filter(|_| read);
        // Threads that have ended first: those began before.
        let ended = word(fields.threads_freed)?;
        let threads = word(fields.threads_made)?.checked_sub(ended);
        let idle = self.memory.half_word(address(fields.idle_threads));
        let gomaxprocs = match self.variables.gomaxprocs {
            Some(_) => self.gomaxprocs().ok_or(NO_SENSE),
            None => Err(NOT_SAID),
        };
        let mutex_wait = match fields.mutex_wait {
            Some(offset) => word(offset).and_then(|ns| match ns < MAX_SUM {
                true => Ok(ns),
                false => Err(NO_SENSE),
            }),
            None => Err("its version of Go does not count them"),
        };
        Ok(Scheduler {
            gomaxprocs: known("GOMAXPROCS", gomaxprocs, unknown),
            threads: threads.ok_or(NO_SENSE)?,
            idle_threads: idle.ok_or(NO_SENSE)?,
            latency: latency.ok_or(NO_SENSE)?,
            mutex_wait_ns: known("waits for mutexes", mutex_wait, unknown),
        })
    }
}

/// What was found, or None and why in `unknown`.
fn known<T, E: std::fmt::Display>(
    what: &str,
    found: Result<T, E>,
    unknown: &mut Vec<String>,
) -> Option<T> {
    found
        .map_err(|why| unknown.push(format!("{what}: {why}")))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a program that has collected `cycles` times, with a pause of
    /// as many nanoseconds as the collection's number.
    fn collected(cycles: u32) -> Vec<u64> {
        let ring = GcFields::RING as u32;
        let mut words = vec![0_u64; 2 + 2 * GcFields::RING + 2];
        for cycle in 1..=cycles {
            let place = 2 + ((cycle - 1) % ring) as usize;
            words[place] = u64::from(cycle);
            words[place + GcFields::RING] = 1_000 + u64::from(cycle);
            words[0] = 1_000 + u64::from(cycle);
            words[1] += u64::from(cycle);
        }
        words[2 + 2 * GcFields::RING] = u64::from(cycles);
        words[3 + 2 * GcFields::RING] = 0.25_f64.to_bits();
        words
    }

    fn read(words: &[u64]) -> Option<Collections> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Collections::of(&bytes)
    }

    #[test]
    fn each_pause_has_its_collection_however_often_the_ring_went_round() {
        for cycles in [0, 1, 3, 255, 256, 257, 1000] {
            let found = read(&collected(cycles)).unwrap();
            assert_eq!(found.cycles, cycles);
            let pauses = found.pauses;
            assert_eq!(pauses.len(), cycles.min(256) as usize);
            for (pause, cycle) in pauses.iter().rev().zip((1..=cycles).rev()) {
                let expected = Pause {
                    cycle,
                    pause_ns: cycle.into(),
                    end_unix_ns: 1_000 + u64::from(cycle),
                };
                assert_eq!(*pause, expected);
            }
        }
    }

    #[test]
    fn pauses_that_do_not_belong_together_are_not_taken() {
        let end = 2 + 2 * GcFields::RING;
        // Word to change, and what to add to it: the end that is written first, the
        // sum, a pause, the last end, forced ones, the share.
        for (word, more) in [
            (0, 1),
            (1, 1),
            (2, 1),
            (2 + GcFields::RING + 2, 1),
            (end, 4 << 32),
            (end, 1),
            (end + 1, f64::NAN.to_bits() - 0.25_f64.to_bits()),
        ] {
            let mut words = collected(3);
            words[word] += more;
            assert_eq!(read(&words), None, "{word} {more}");
        }
        assert_eq!(read(&collected(3)[1..]), None);
        assert_eq!(read(&[]), None);
    }
}
