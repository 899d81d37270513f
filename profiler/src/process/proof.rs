//! Whether the layout of a runtime that its version promises is the one that a
//! process has: its goroutines, read from outside, must look like goroutines.
//! Reads a few hundred words at most, follows nothing without a limit, and stops
//! nothing.

use std::{thread, time::Duration};

use crate::gobinary::{AllGoroutines, FuncKind, GoroutineStatus, LabelFormat, StructOffsets};
use crate::gomemory::Memory;

/// Goroutines looked at.
const MAX_GOROUTINES: u64 = 32;
/// More goroutines, and labels of one, than a program can have.
const MAX_COUNT: u64 = 1 << 32;
/// Slots of a bucket of a map (`runtime/map.go`, up to 1.23). A map has more
/// buckets before all are full.
const MAP_SLOTS: u64 = 8;
/// The program goes on while it is read: a goroutine that contradicts itself is
/// read again this often, and all of them once more.
const ATTEMPTS: usize = 8;
/// And this much later: two goroutines that hand over to each other every few
/// microseconds can be in step with who reads them, and look the same each time.
const PAUSE: Duration = Duration::from_micros(100);
/// Go's smallest stack (`runtime.stackMin`) and its largest
/// (`runtime.maxstackceiling`), in bytes.
const STACK_BYTES: std::ops::RangeInclusive<u64> = 2048..=2 << 30;
/// Ids are counted from one, and never reach where Go's heap begins
/// (`runtime.mallocinit`): a pointer is not taken for one.
const MAX_GOID: u64 = 0xc0_0000_0000;

/// What a proof came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// The layout is right.
    Holds,
    /// The program has no goroutine yet.
    TooEarly,
    /// The layout is wrong; says what gave it away.
    Fails(&'static str),
}

/// A process's memory, and where its Go code is.
pub(super) struct Program<'a, T> {
    /// The process's memory.
    pub memory: &'a dyn Memory,
    /// What the function is that holds an address; None outside Go code.
    pub kind: T,
    /// What to look for.
    pub offsets: &'a StructOffsets,
}

impl<T> Program<'_, T>
where
    T: Fn(u64) -> Option<FuncKind>,
{
    /// Proves the offsets by the goroutines of the list at these addresses.
    pub(super) fn prove(&self, list: AllGoroutines) -> Proof {
        let looked = match self.look_through(list) {
            Err(Odd::Perhaps(_)) => self.look_through(list),
            looked => looked,
        };
        looked.unwrap_or_else(|(Odd::Perhaps(why) | Odd::Surely(why))| Proof::Fails(why))
    }

    fn look_through(&self, list: AllGoroutines) -> Result<Proof, Odd> {
        // The count first: the array never has room for fewer.
        let (Some(count), Some(array)) = (self.word(list.count), self.word(list.array)) else {
            return Err("the list of its goroutines cannot be read".into());
        };
        if array == 0 || count == 0 {
            return Ok(Proof::TooEarly);
        }
        if count > MAX_COUNT {
            return Err("the list of its goroutines makes no sense".into());
        }
        let (mut ids, mut started) = (Vec::new(), false);
        for index in 0..count.min(MAX_GOROUTINES) {
            let Some(seen) = self.goroutine_at(list, index)? else {
                continue;
            };
            // The first of all runs `runtime.main` (`runtime.rt0_go`).
            let begins = (self.kind)(seen.start_pc);
            let is_first = begins == Some(FuncKind::RuntimeMain);
            if ids.contains(&seen.goid) || (is_first && seen.goid != 1) {
                return Err("its goroutine ids are not where they should be".into());
            }
            ids.push(seen.goid);
            started |= seen.start_pc != 0;
        }
        match (ids.is_empty(), started) {
            // The first of all is listed before it is made ready to run. Once
            // there are more, some of the runtime's own never end.
            (true, _) if count == 1 => Ok(Proof::TooEarly),
            (true, _) => Err("its goroutines are all dead".into()),
            (false, true) => Ok(Proof::Holds),
            (false, false) => Err("its goroutines begin nowhere".into()),
        }
    }

    fn goroutine_at(&self, list: AllGoroutines, index: u64) -> Result<Option<Seen>, Odd> {
        let mut result = Err("the list of its goroutines cannot be read".into());
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                thread::sleep(PAUSE);
            }
            // The array moves when the list grows.
            let array = self.word(list.array);
            let g = array.and_then(|array| self.word(array.wrapping_add(index * 8)));
            let Some(g) = g else {
                continue;
            };
            result = self.goroutine(g);
            if !matches!(result, Err(Odd::Perhaps(_))) {
                break;
            }
        }
        result
    }

    /// A goroutine, None for one that has ended or not begun.
    fn goroutine(&self, g: u64) -> Result<Option<Seen>, Odd> {
        let unreadable = "its goroutines cannot be read";
        let at = |base: u64, offset: u32| {
            let address = base.wrapping_add(offset.into());
            self.word(address).ok_or(unreadable)
        };
        let offsets = &self.offsets.g;
        if g == 0 || !g.is_multiple_of(8) {
            return Err("the list of its goroutines makes no sense".into());
        }
        let state = match GoroutineStatus::of(at(g, offsets.atomic_status)? as u32) {
            Some(state) if state.is_alive() => state,
            Some(_) => return Ok(None),
            None => return Err("its goroutines are in no known state".into()),
        };
        let stack = at(g, offsets.stack.lo)?..at(g, offsets.stack.hi)?;
        let size = stack.end.wrapping_sub(stack.start);
        if stack.start == 0 || !STACK_BYTES.contains(&size) {
            return Err("its goroutines have no stacks".into());
        }
        let seen = Seen {
            goid: at(g, offsets.goid)?,
            start_pc: at(g, offsets.start_pc)?,
        };
        if !(1..MAX_GOID).contains(&seen.goid) {
            return Err("its goroutine ids are not where they should be".into());
        }
        // Those that threads of C use begin nowhere.
        if seen.start_pc != 0 && (self.kind)(seen.start_pc).is_none() {
            return Err("its goroutines do not begin in its code".into());
        }
        let labels = at(g, offsets.labels)?;
        if labels != 0 && (!labels.is_multiple_of(8) || self.word(labels).is_none()) {
            return Err("its labels are not where they should be".into());
        }
        if labels != 0 && !self.has_form(labels) {
            let why = "its labels have another form";
            // A set never changes. While a goroutine has it, it is not freed: had
            // it before and after, it is no matter of the moment. A later look may
            // find the goroutine without any, and tells nothing of their form.
            let has_it_yet = at(g, offsets.labels)? == labels && !self.has_form(labels);
            return Err(if has_it_yet {
                Odd::Surely(why)
            } else {
                why.into()
            });
        }
        match state {
            GoroutineStatus::Running => self.thread(g, at(g, offsets.m)?)?,
            GoroutineStatus::Waiting => {
                let (sp, pc) = (at(g, offsets.sched.sp)?, at(g, offsets.sched.pc)?);
                if !stack.contains(&sp) || (self.kind)(pc).is_none() {
                    return Err("its goroutines do not wait in its code".into());
                }
            }
            _ => {}
        }
        Ok(Some(seen))
    }

    /// Whether a set of labels has the form that it should have.
    fn has_form(&self, set: u64) -> bool {
        let has_map = match self.word(set) {
            Some(0) => Some(0),
            map => map.and_then(|map| self.map_count(map)),
        };
        match self.offsets.labels {
            Some(LabelFormat::Map) => has_map.is_some(),
            // What follows a pointer to a map is another's, and may be zeros.
            Some(LabelFormat::Slice) => match self.words(set) {
                Some([_, 0, 0]) => has_map.is_none_or(|count| count == 0),
                Some([array, count, capacity]) => {
                    count <= capacity && capacity < MAX_COUNT && self.is_array(array, count)
                }
                None => false,
            },
            None => true,
        }
    }

    /// How many labels a map has: where it begins are its count, then two bytes
    /// of which the second is the logarithm of the number of its buckets, then
    /// where they are. None where that makes no sense.
    fn map_count(&self, map: u64) -> Option<u64> {
        let [count, packed, buckets] = self.words(map)?;
        let slots = MAP_SLOTS.checked_shl((packed >> 8) as u32 & 0xff)?;
        (count <= slots && self.is_array(buckets, count)).then_some(count)
    }

    /// Whether so many things can lie at an address.
    fn is_array(&self, address: u64, count: u64) -> bool {
        let there = address != 0 && address.is_multiple_of(8) && self.word(address).is_some();
        count < MAX_COUNT && (count == 0 || there)
    }

    fn words(&self, address: u64) -> Option<[u64; 3]> {
        let word = |index: u64| self.word(address.wrapping_add(index * 8));
        Some([word(0)?, word(1)?, word(2)?])
    }

    /// A thread that runs the goroutine.
    fn thread(&self, g: u64, m: u64) -> Result<(), &'static str> {
        let at = |base: u64, offset: u32| self.word(base.wrapping_add(offset.into()));
        let offsets = &self.offsets.m;
        let owned = |offset| {
            let other = at(m, offset)?;
            at(other, self.offsets.g.m)
        };
        let right = m != 0
            && at(m, offsets.curg) == Some(g)
            && owned(offsets.g0) == Some(m)
            && owned(offsets.gsignal) == Some(m);
        right
            .then_some(())
            .ok_or("its threads and goroutines do not refer to each other")
    }

    fn word(&self, address: u64) -> Option<u64> {
        self.memory.word(address)
    }
}

/// What contradicts a layout, in words.
enum Odd {
    /// Unless it was read at a bad moment.
    Perhaps(&'static str),
    /// Whenever it is read.
    Surely(&'static str),
}

impl From<&'static str> for Odd {
    fn from(why: &'static str) -> Self {
        Self::Perhaps(why)
    }
}

/// What is known of a goroutine that is alive.
struct Seen {
    goid: u64,
    start_pc: u64,
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::HashMap};

    use super::*;
    use crate::gobinary::{
        GOffsets, ListOffsets, MOffsets, SavedRegisters, SpanOffsets, StackBounds, SudogOffsets,
        SyscallRegisters,
    };
    use crate::gomemory::{Request, fake::Words};

    const OFFSETS: StructOffsets = StructOffsets {
        g: GOffsets {
            stack: StackBounds { lo: 0, hi: 8 },
            m: 48,
            sched: SavedRegisters {
                sp: 56,
                pc: 64,
                bp: 96,
            },
            syscall: SyscallRegisters {
                sp: 112,
                pc: 120,
                bp: None,
            },
            atomic_status: 144,
            goid: 152,
            start_pc: 296,
            labels: 344,
        },
        m: MOffsets {
            g0: 0,
            procid: 64,
            gsignal: 72,
            curg: 184,
            p: 200,
            id: 224,
        },
        lists: Ok(ListOffsets {
            wait_since: 168,
            wait_reason: 176,
            go_pc: 280,
            waiting: 312,
            parent_goid: None,
            sudog: SudogOffsets {
                g: 0,
                next: 8,
                prev: 16,
                elem: 24,
                wait_link: 64,
                c: 80,
            },
        }),
        spans: Ok(SpanOffsets {
            cache_alloc: 48,
            used: 96,
            used_before: 102,
            block_bytes: 104,
        }),
        labels: None,
    };
    const LIST: AllGoroutines = AllGoroutines {
        array: 0x1000,
        count: 0x1008,
    };
    const RUNS: u64 = 0x1_0000;
    const WAITS: u64 = 0x2_0000;
    const M: u64 = 0x3_0000;
    const G0: u64 = 0x4_0000;

    /// A program with a goroutine that runs and one that waits.
    fn program() -> HashMap<u64, u64> {
        let mut words = HashMap::from([
            (LIST.array, 0x2000),
            (LIST.count, 2),
            (0x2000, RUNS),
            (0x2008, WAITS),
            (RUNS + 48, M),
            (WAITS + 48, 0),
            (WAITS + 56, 0x7f00),
            (WAITS + 64, 0x40_0100),
            (M, G0),
            (M + 72, G0),
            (M + 184, RUNS),
            (G0 + 48, M),
        ]);
        for (g, goid, state, start) in [(RUNS, 1, 2, 0), (WAITS, 18, 4 | 0x1000, 0x200)] {
            words.extend([(g, 0x7000), (g + 8, 0x8000), (g + 144, state)]);
            words.extend([(g + 152, goid), (g + 296, 0x40_0000 + start), (g + 344, 0)]);
        }
        words
    }

    fn prove(words: &HashMap<u64, u64>) -> Proof {
        prove_with(words, &OFFSETS)
    }

    fn prove_with(words: &HashMap<u64, u64>, offsets: &StructOffsets) -> Proof {
        prove_in(&Words(words.clone()), offsets)
    }

    fn prove_in(memory: &dyn Memory, offsets: &StructOffsets) -> Proof {
        let program = Program {
            memory,
            kind: |address| match address {
                0x40_0000 => Some(FuncKind::RuntimeMain),
                0x40_0001..0x50_0000 => Some(FuncKind::Normal),
                _ => None,
            },
            offsets,
        };
        program.prove(LIST)
    }

    #[test]
    fn goroutines_that_look_like_goroutines_are_proof() {
        assert_eq!(prove(&program()), Proof::Holds);
    }

    #[test]
    fn a_program_without_goroutines_is_asked_too_early() {
        for change in [
            &[(LIST.count, 0)][..],
            &[(LIST.array, 0)],
            &[(LIST.count, 1), (RUNS + 144, 6)],
        ] {
            let mut words = program();
            words.extend(change.iter().copied());
            assert_eq!(prove(&words), Proof::TooEarly, "{change:x?}");
        }
    }

    #[test]
    fn one_word_amiss_is_no_proof() {
        let mut dead = program();
        dead.extend([(RUNS + 144, 6), (WAITS + 144, 0)]);
        assert!(matches!(prove(&dead), Proof::Fails(_)));
        let wrong = [
            (LIST.count, u64::MAX),
            (0x2000, 0),
            (0x2008, WAITS + 1),
            (RUNS + 144, 0x77),
            (WAITS + 8, 0x7000),
            (RUNS + 152, 0),
            (RUNS + 152, 5),
            (WAITS + 152, 1),
            (WAITS + 152, u64::MAX),
            (WAITS + 296, 0x7000),
            (WAITS + 344, 7),
            (WAITS + 344, 0x9_0000),
            (RUNS + 48, 0),
            (M, WAITS),
            (M + 184, WAITS),
            (M + 72, 0),
            (G0 + 48, 0),
            (WAITS + 56, 0x9000),
            (WAITS + 64, 0x7000),
        ];
        for (address, word) in wrong {
            let mut words = program();
            words.insert(address, word);
            let proof = prove(&words);
            assert!(matches!(proof, Proof::Fails(_)), "{address:x}: {proof:?}");
        }
    }

    #[test]
    fn labels_of_another_form_are_no_proof() {
        // A map, its buckets, a slice and its array; the strings lie elsewhere.
        let mut words = program();
        let (map, slice, heap) = (0xc0_0000_1000, 0xc0_0000_2000, 0xc0_0000_3000);
        // A slice whose strings the program was linked with.
        let low = 0xc0_0000_4000;
        // Maps with nothing behind the pointer to them, or one pointer.
        let (alone, before) = (0xc0_0000_5000, 0xc0_0000_6000);
        words.extend([(alone, map + 0x40), (alone + 8, 0), (alone + 16, 0)]);
        words.extend([(before, map + 0x40), (before + 8, 0), (before + 16, heap)]);
        words.extend([(map, map + 0x40), (map + 8, heap), (map + 16, heap)]);
        words.extend([(map + 0x40, 2), (map + 0x48, 1 << 8), (map + 0x50, heap)]);
        words.extend([(slice, slice + 0x40), (slice + 8, 2), (slice + 16, 3)]);
        words.extend([
            (slice + 0x40, heap),
            (slice + 0x48, 4),
            (slice + 0x50, heap),
        ]);
        words.extend([(low, low + 0x40), (low + 8, 1), (low + 16, 1)]);
        words.extend([
            (low + 0x40, 0x4a_0123),
            (low + 0x48, 4),
            (low + 0x50, 0x4a_0200),
        ]);
        words.extend([(0x4a_0200, 0)]);
        words.extend([(heap, 0), (heap + 8, 0), (heap + 16, 0)]);
        let of = |labels: u64, form| {
            let mut words = words.clone();
            words.insert(WAITS + 344, labels);
            let labels = Some(form);
            prove_with(&words, &StructOffsets { labels, ..OFFSETS })
        };
        let other = Proof::Fails("its labels have another form");
        for (labels, form, proof) in [
            (map, LabelFormat::Map, Proof::Holds),
            (slice, LabelFormat::Slice, Proof::Holds),
            (slice, LabelFormat::Map, other),
            (map, LabelFormat::Slice, other),
            (low, LabelFormat::Map, other),
            (alone, LabelFormat::Map, Proof::Holds),
            (alone, LabelFormat::Slice, other),
            (before, LabelFormat::Slice, other),
            // Of no labels both are alike.
            (heap, LabelFormat::Map, Proof::Holds),
            (heap, LabelFormat::Slice, Proof::Holds),
        ] {
            assert_eq!(of(labels, form), proof, "{labels:x} as {form:?}");
        }
    }

    /// A goroutine that has its labels only for the first few times it is read.
    struct Fleeting {
        words: Words,
        times: Cell<u32>,
    }

    impl Memory for Fleeting {
        fn read_many(&self, requests: &mut [Request<'_>]) {
            self.words.read_many(requests);
            for request in requests {
                if request.address == WAITS + 344 {
                    let left = self.times.get().checked_sub(1);
                    self.times.set(left.unwrap_or_default());
                    if left.is_none() {
                        request.bytes.fill(0);
                    }
                }
            }
        }

        fn is_there(&self) -> bool {
            true
        }
    }

    #[test]
    fn labels_need_be_seen_but_twice() {
        let slice = 0xc0_0000_2000;
        let mut words = Words(program());
        words.put(WAITS + 344, &[slice]);
        words.put(slice, &[slice + 0x40, 2, 3]);
        words.put(slice + 0x40, &[0xc0_0000_3000, 4, 0xc0_0000_3000]);
        let other = Proof::Fails("its labels have another form");
        for (times, proof) in [(0, Proof::Holds), (1, Proof::Holds), (2, other)] {
            let memory = Fleeting {
                words: words.clone(),
                times: Cell::new(times),
            };
            let labels = Some(LabelFormat::Map);
            let offsets = StructOffsets { labels, ..OFFSETS };
            assert_eq!(prove_in(&memory, &offsets), proof, "{times}");
        }
    }

    #[test]
    fn one_word_that_cannot_be_read_is_no_proof() {
        for address in program().into_keys() {
            // Whose thread it is matters of one that runs alone.
            if address == WAITS + 48 {
                continue;
            }
            let mut words = program();
            words.remove(&address);
            let proof = prove(&words);
            assert!(matches!(proof, Proof::Fails(_)), "{address:x}: {proof:?}");
        }
    }
}
