//! The heap profile that the runtime keeps of itself: what was allocated by which
//! stack, sampled, since the program began. Reads it as it stands, and starts
//! nothing in the program.

use std::collections::{HashMap, HashSet};

use super::{blocks::Blocks, program::Program};
use crate::gobinary::{
    BUCKET_BYTES, BucketCounts, BucketHead, CountsLayout, FuncKind, MAX_BUCKET_FRAMES, Machine,
    bucket_kind, is_hidden_allocator,
};

/// Buckets read before giving up: large servers have some thousands.
const MAX_BUCKETS: usize = 1 << 17;
/// Frames of all buckets together.
const MAX_FRAMES: usize = 1 << 22;
/// Bytes of memory read in one walk.
const MAX_BYTES: usize = 64 << 20;
/// Walks before what was read last is taken: a collection changes all counts.
const MAX_WALKS: usize = 6;
/// How often counts are read again that contradict themselves.
const MAX_READS_AGAIN: usize = 4;
/// Rates beyond are no rates, in bytes: where Go's heap begins
/// (`runtime.mallocinit`), so that a pointer is not taken for one.
const MAX_RATE: u64 = 0xc0_0000_0000;
/// Sampled once in `rate` bytes, a program that has allocated so many times that
/// has a sample.
const SURELY_SAMPLED: u64 = 100;

/// What one stack allocated in blocks of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Where the runtime has it: never anywhere else, and nothing else there.
    pub address: u64,
    /// Return addresses, leaf first, as Go lists them: an inlined call has one of
    /// its own. See [`Program::physical`].
    pub stack: Vec<u64>,
    /// The size of a block, in bytes.
    pub size_bytes: u64,
    /// How many were sampled.
    pub counts: BucketCounts,
}

/// A program's heap profile.
#[derive(Debug, Clone, Default)]
pub struct HeapProfile {
    /// One in how many bytes is sampled (`runtime.MemProfileRate`).
    pub rate: u64,
    /// The buckets, the latest first.
    pub buckets: Vec<Bucket>,
    /// Buckets that were dropped: their counts contradict themselves, as they do
    /// where they are read while they are written.
    pub torn: u64,
    /// Whether there are more than were read.
    pub is_cut: bool,
    /// Whether the figures are those of one moment: else a collection went on
    /// every time that they were read.
    pub is_settled: bool,
}

impl HeapProfile {
    /// How much memory it takes, about.
    pub fn bytes(&self) -> usize {
        let stacks = self.buckets.iter().map(|bucket| bucket.stack.capacity());
        self.buckets.capacity() * size_of::<Bucket>() + stacks.sum::<usize>() * size_of::<u64>()
    }

    /// Forgets the stacks: a later profile of the program has them again.
    pub fn forget_stacks(&mut self) {
        for bucket in &mut self.buckets {
            bucket.stack = Vec::new();
        }
    }

    /// Adds the buckets of an older one that could not be read this time: they never
    /// go, so that they are as they were, or have more, but are not new.
    pub fn take_over(&mut self, older: Vec<Bucket>) {
        let read: HashSet<u64> = self.buckets.iter().map(|bucket| bucket.address).collect();
        let missing = older.into_iter();
        self.buckets
            .extend(missing.filter(|bucket| !read.contains(&bucket.address)));
        self.buckets.shrink_to_fit();
    }
}

/// Why there is no heap profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoHeap {
    /// The program takes none: the rate is 0.
    Off {
        /// Whether it could: else the linker has left it out, as nothing in the
        /// program reads it.
        is_linked: bool,
    },
    /// It cannot be found; why, for people.
    Unknown(String),
}

impl NoHeap {
    fn unknown(why: &str) -> Self {
        NoHeap::Unknown(why.to_owned())
    }
}

impl std::fmt::Display for NoHeap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoHeap::Off { is_linked: false } => f.write_str(
                "it takes no heap profile: nothing in it reads one, so Go's linker left it out",
            ),
            NoHeap::Off { is_linked: true } => f.write_str(
                "it takes no heap profile: its runtime.MemProfileRate is 0 (set by the program, or \
                 by GODEBUG=memprofilerate=0)",
            ),
            NoHeap::Unknown(why) => f.write_str(why),
        }
    }
}

impl Program<'_> {
    /// Where the rate is, and what it is: `runtime.MemProfileRate`.
    ///
    /// # Errors
    /// It cannot be found or read, or is none.
    pub fn mem_profile_rate(&self) -> Result<(u64, u64), NoHeap> {
        let Some(at) = self.variables.mem_profile_rate else {
            return Err(self.not_found("MemProfileRate"));
        };
        let at = self.address(at);
        match self.memory.word(at) {
            Some(rate) if rate < MAX_RATE => Ok((at, rate)),
            Some(_) => Err(NoHeap::unknown("its runtime.MemProfileRate makes no sense")),
            None => Err(NoHeap::unknown("its memory cannot be read")),
        }
    }

    /// Reads the heap profile.
    ///
    /// # Errors
    /// The program takes none, or it cannot be found.
    pub fn heap(&self) -> Result<HeapProfile, NoHeap> {
        let (_, rate) = self.mem_profile_rate()?;
        if rate == 0 {
            let is_linked = self.variables.reads_mem_profile;
            return Err(NoHeap::Off { is_linked });
        }
        let layouts = CountsLayout::candidates(self.binary.version());
        if layouts.is_empty() {
            return Err(NoHeap::Unknown(format!(
                "how {} keeps its heap profile is not known",
                self.binary.version()
            )));
        }
        if self.variables.buckets.is_empty() {
            return Err(self.not_found("mbuckets"));
        }
        let Some(list) = self.buckets() else {
            let allocated = self.gc_controller().map(|gc| gc.total_alloc);
            if allocated.is_some_and(|bytes| bytes / SURELY_SAMPLED > rate) {
                return Err(self.not_found("mbuckets"));
            }
            // Nothing was sampled yet.
            return Ok(HeapProfile {
                rate,
                is_settled: true,
                ..HeapProfile::default()
            });
        };
        let read = layouts
            .iter()
            .find_map(|layout| self.settled(list, *layout));
        let mut profile =
            read.ok_or_else(|| NoHeap::unknown("its heap profile contradicts itself"))?;
        profile.rate = rate;
        Ok(profile)
    }

    /// The variable that lists what was allocated: its word leads to a bucket of
    /// that kind.
    fn buckets(&self) -> Option<u64> {
        let candidates = self.variables.buckets.iter();
        let mut addresses = candidates.map(|vaddr| self.address(*vaddr));
        addresses.find(|variable| {
            let first = self.memory.word(*variable);
            first.is_some_and(|first| self.is_memory_bucket(first))
        })
    }

    fn is_memory_bucket(&self, address: u64) -> bool {
        let mut blocks = Blocks::new(self.memory, 64 << 10);
        let Some(head) = read_head(&mut blocks, address) else {
            return false;
        };
        let stack = read_stack(&mut blocks, address, &head);
        head.kind == bucket_kind::MEMORY
            && stack.is_some_and(|stack| stack.iter().any(|pc| self.is_code(*pc)))
    }

    /// Walks the list until two walks in a row show the same finished collection.
    /// None where the layout is another.
    fn settled(&self, variable: u64, layout: CountsLayout) -> Option<HeapProfile> {
        let mut last = self.walk(variable, layout)?;
        for _ in 1..MAX_WALKS {
            let next = self.walk(variable, layout)?;
            let is_settled = is_same_cycle(&last, &next);
            last = HeapProfile { is_settled, ..next };
            if is_settled {
                break;
            }
        }
        Some(last)
    }

    fn walk(&self, variable: u64, layout: CountsLayout) -> Option<HeapProfile> {
        let mut blocks = Blocks::new(self.memory, MAX_BYTES);
        let mut profile = HeapProfile::default();
        let mut seen = HashSet::new();
        let mut frames = 0;
        let mut counts = vec![0; layout.bytes()];
        let mut next = self.memory.word(variable)?;
        while next != 0 {
            if seen.len() >= MAX_BUCKETS || frames >= MAX_FRAMES || !seen.insert(next) {
                profile.is_cut = true;
                break;
            }
            // Buckets are made whole before they are listed, and never go.
            let bucket = read_head(&mut blocks, next)
                .filter(|head| head.kind == bucket_kind::MEMORY)
                .and_then(|head| Some((head, read_stack(&mut blocks, next, &head)?)));
            let Some((head, stack)) = bucket else {
                profile.is_cut = true;
                break;
            };
            frames += stack.len();
            let behind = next.checked_add(BUCKET_BYTES as u64 + head.frames * 8)?;
            let read = blocks.read(behind, &mut counts);
            let first = layout.read(&counts, head.size_bytes).filter(|_| read);
            let again = || self.read_counts_again(behind, layout, head.size_bytes);
            match first.or_else(again) {
                Some(counts) => profile.buckets.push(Bucket {
                    address: next,
                    stack,
                    size_bytes: head.size_bytes,
                    counts,
                }),
                None => profile.torn += 1,
            }
            next = head.next;
        }
        // A few are torn. Of another layout nearly all are.
        (profile.torn as usize <= 8 + profile.buckets.len() / 8).then_some(profile)
    }

    /// Counts that were read while they were written may be whole a moment later.
    fn read_counts_again(
        &self,
        address: u64,
        layout: CountsLayout,
        size_bytes: u64,
    ) -> Option<BucketCounts> {
        let mut bytes = vec![0; layout.bytes()];
        (0..MAX_READS_AGAIN).find_map(|_| {
            let read = self.memory.read(address, &mut bytes);
            layout.read(&bytes, size_bytes).filter(|_| read)
        })
    }

    /// The addresses of the instructions that call, leaf first, of a stack as Go
    /// lists it: without the allocator's own functions at its begin, and once for
    /// all calls that are inlined into one another. Go's profiles leave out what
    /// every goroutine ends in.
    pub fn physical(&self, stack: &[u64]) -> Vec<u64> {
        let calls: Vec<u64> = stack.iter().map(|pc| pc.wrapping_sub(1)).collect();
        // Go asks who returns there and not who calls (`runtime.FuncForPC`), which is
        // another where a call is the last of what is inlined, or comes before it.
        let is_allocator = |pc: &u64| {
            let name = self.binary.innermost_name(self.vaddr(*pc));
            name.is_some_and(|name| is_hidden_allocator(&name))
        };
        let hidden = stack.iter().take_while(|pc| is_allocator(pc)).count();
        // As Go does it: all of them, where there is nothing else.
        let first = if hidden == calls.len() { 0 } else { hidden };
        let mut rest = &calls[first..];
        let mut physical = Vec::with_capacity(rest.len());
        while let Some((call, outer)) = rest.split_first() {
            let function = self.binary.function(self.vaddr(*call));
            if function.is_none_or(|function| function.kind != FuncKind::Goexit) {
                physical.push(*call);
            }
            rest = outer;
            let chain = self.binary.inlined_calls(self.vaddr(*call));
            for vaddr in chain.iter().flatten().skip(1) {
                // Wrappers are in the chain and not in the list.
                if rest.first() == Some(&self.address(*vaddr)) {
                    rest = &rest[1..];
                }
            }
        }
        physical
    }

    /// The return address in the first function of a stack that is not the
    /// allocator's own: the code before it says what was allocated.
    pub fn allocating_call(&self, stack: &[u64]) -> Option<u64> {
        stack.iter().copied().find(|pc| {
            let name = self.binary.innermost_name(self.vaddr(pc.wrapping_sub(1)));
            !name.is_some_and(|name| is_hidden_allocator(&name))
        })
    }

    fn not_found(&self, variable: &str) -> NoHeap {
        let machine = match self.binary.machine() {
            Machine::X86_64 => "",
            Machine::Aarch64 => " on arm64 yet",
        };
        NoHeap::Unknown(format!("its runtime.{variable} cannot be found{machine}"))
    }
}

fn read_head(blocks: &mut Blocks<'_>, address: u64) -> Option<BucketHead> {
    let mut bytes = [0; BUCKET_BYTES];
    let aligned = address != 0 && address.is_multiple_of(8);
    let read = aligned && blocks.read(address, &mut bytes);
    let head = BucketHead::read(&bytes).filter(|_| read)?;
    (1..=MAX_BUCKET_FRAMES)
        .contains(&head.frames)
        .then_some(head)
}

fn read_stack(blocks: &mut Blocks<'_>, address: u64, head: &BucketHead) -> Option<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(head.frames).ok()? * 8];
    let read = blocks.read(address.checked_add(BUCKET_BYTES as u64)?, &mut bytes);
    let words = bytes.as_chunks().0.iter();
    read.then(|| words.map(|word| u64::from_le_bytes(*word)).collect())
}

/// Whether no collection ended between two walks: what was in both has the same
/// counts as of the last one.
fn is_same_cycle(before: &HeapProfile, after: &HeapProfile) -> bool {
    let active = |bucket: &Bucket| (bucket.address, bucket.counts.active);
    let before: HashMap<_, _> = before.buckets.iter().map(active).collect();
    after.buckets.iter().all(|bucket| {
        let (address, now) = active(bucket);
        before.get(&address).is_none_or(|before| *before == now)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gobinary::Blocks;

    fn bucket(address: u64, allocs: u64) -> Bucket {
        Bucket {
            address,
            stack: vec![1; 32],
            size_bytes: 16,
            counts: BucketCounts {
                active: Blocks::default(),
                all: Blocks { allocs, frees: 0 },
            },
        }
    }

    #[test]
    fn a_bucket_that_was_not_read_stays_as_it_was() {
        let mut profile = HeapProfile {
            buckets: vec![bucket(8, 12), bucket(24, 1)],
            ..HeapProfile::default()
        };
        profile.take_over(vec![bucket(8, 10), bucket(16, 5)]);
        let counts = profile.buckets.iter();
        let counts = counts.map(|bucket| (bucket.address, bucket.counts.all.allocs));
        assert_eq!(counts.collect::<Vec<_>>(), [(8, 12), (24, 1), (16, 5)]);
        let with_stacks = profile.bytes();
        profile.forget_stacks();
        assert_eq!(profile.bytes(), with_stacks - 3 * 32 * 8);
    }
}
