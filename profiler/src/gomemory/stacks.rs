//! The stacks of goroutines that do not run: of each its struct, its stack and its
//! struct again, read one right after the other, so that a goroutine that ran
//! meanwhile shows. Reads no more than it is told to.

use std::ops::Range;

use super::{Goroutine, GoroutineBatch, Memory, Request, goroutines::Head};

/// What was read of a goroutine's stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackRead {
    /// It is there, from the word below the stack pointer up: whole, or the first part
    /// of it.
    Read {
        /// Whether it goes on.
        is_cut: bool,
    },
    /// The goroutine runs, and its stack is known to its processor alone.
    Runs,
    /// The goroutine went on, or ended, while it was read.
    Changed,
    /// Its registers or the bounds of its stack make no sense.
    Nonsense,
    /// Its memory cannot be read, though the goroutine is as it was: it is mapped no
    /// more, or not in the core.
    Unreadable,
}

/// The stacks of some goroutines.
#[derive(Debug, Default)]
pub struct Stacks {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Where it begins, in the program.
    address: u64,
    /// Where it is in the bytes, without the structs around it.
    start: usize,
    len: usize,
    outcome: StackRead,
}

impl GoroutineBatch<'_> {
    /// Reads up to so many bytes of the stack of each of
    /// [`GoroutineBatch::goroutines`], in their order.
    pub fn stacks(&self, memory: &dyn Memory, max_bytes: usize) -> Stacks {
        self.read_stacks(memory, 0..self.goroutines.len(), max_bytes)
    }

    /// The same for one of them.
    pub fn stack(&self, index: usize, memory: &dyn Memory, max_bytes: usize) -> Stacks {
        let end = index.saturating_add(1).min(self.goroutines.len());
        self.read_stacks(memory, index.min(end)..end, max_bytes)
    }

    fn read_stacks(&self, memory: &dyn Memory, which: Range<usize>, max_bytes: usize) -> Stacks {
        let head = Head::of(self.offsets);
        let goroutines = &self.goroutines[which];
        let wanted = goroutines
            .iter()
            .map(|goroutine| wanted(goroutine, max_bytes));
        let mut pieces: Vec<Piece> = wanted.collect();
        let mut plan = Plan::new(head.len());
        let mut order: Vec<usize> = (0..pieces.len()).collect();
        order.retain(|index| pieces[*index].len > 0);
        order.sort_unstable_by_key(|index| head.address(&goroutines[*index]));
        for index in &order {
            let piece = &mut pieces[*index];
            piece.start = plan.add(head.address(&goroutines[*index]), piece);
        }
        let mut bytes = vec![0; plan.bytes];
        let is_filled = plan.read(memory, &mut bytes);
        for (index, around) in order.iter().zip(&plan.around) {
            let piece = &mut pieces[*index];
            let is_same = |(request, start): (usize, usize)| {
                let bytes = bytes.get(start..start + head.len());
                is_filled[request] && bytes.is_some_and(|b| head.is_of(&goroutines[*index], b))
            };
            if !is_same(around.before) || !is_same(around.after) {
                piece.outcome = StackRead::Changed;
            } else if !is_filled[around.stack] {
                piece.outcome = StackRead::Unreadable;
            }
        }
        Stacks { bytes, pieces }
    }
}

/// The farthest that two structs lie apart which are read together, in bytes: with it
/// no page is read that neither of them is on.
const MAX_APART: u64 = 1024;

/// What is read, in which order: before each stack and after it the struct. Where the
/// next one's lies near, that is read with it: the kernel takes as long to find a
/// piece as to copy it.
struct Plan {
    head_bytes: usize,
    /// Where each piece is in the program, and how many bytes.
    requests: Vec<(u64, usize)>,
    around: Vec<Around>,
    bytes: usize,
}

/// The piece that a stack is, and where the structs around it are: the piece, and the
/// place in all bytes.
struct Around {
    before: (usize, usize),
    stack: usize,
    after: (usize, usize),
}

impl Plan {
    fn new(head_bytes: usize) -> Self {
        Self {
            head_bytes,
            requests: Vec::new(),
            around: Vec::new(),
            bytes: 0,
        }
    }

    /// Adds a stack, and the struct at an address. Says where the stack will be.
    fn add(&mut self, head: u64, stack: &Piece) -> usize {
        let before = self.before(head);
        let (number, start) = self.push(stack.address, stack.len);
        let after = self.push(head, self.head_bytes);
        self.around.push(Around {
            before,
            stack: number,
            after,
        });
        start
    }

    /// Where a struct is read first: behind the last one, if that lies near.
    fn before(&mut self, head: u64) -> (usize, usize) {
        if let Some((address, len)) = self.requests.last_mut()
            && let Some(apart) = head.checked_sub(*address)
            && apart <= MAX_APART
        {
            let more = apart as usize;
            *len += more;
            self.bytes += more;
            let last = self.requests.len() - 1;
            return (last, self.bytes - self.head_bytes);
        }
        self.push(head, self.head_bytes)
    }

    fn push(&mut self, address: u64, len: usize) -> (usize, usize) {
        let start = self.bytes;
        self.requests.push((address, len));
        self.bytes += len;
        (self.requests.len() - 1, start)
    }

    /// Reads everything; says which pieces could be read.
    fn read(&self, memory: &dyn Memory, bytes: &mut [u8]) -> Vec<bool> {
        let mut rest = bytes;
        let mut requests = Vec::with_capacity(self.requests.len());
        for (address, len) in &self.requests {
            let (now, later) = rest.split_at_mut(*len);
            requests.push(Request::new(*address, now));
            rest = later;
        }
        memory.read_many(&mut requests);
        requests.iter().map(|request| request.is_filled).collect()
    }
}

/// What is to be read of a goroutine's stack.
fn wanted(goroutine: &Goroutine, max_bytes: usize) -> Piece {
    let none = |outcome| Piece {
        address: 0,
        start: 0,
        len: 0,
        outcome,
    };
    let Some(registers) = goroutine.saved() else {
        return none(StackRead::Runs);
    };
    let (sp, stack) = (registers.sp, &goroutine.stack);
    if !stack.contains(&sp) || !sp.is_multiple_of(8) {
        return none(StackRead::Nonsense);
    }
    // On arm64 the word below is where a function keeps its caller's frame pointer.
    let address = if sp - stack.start >= 8 { sp - 8 } else { sp };
    let whole = stack.end - address;
    let len = usize::try_from(whole).unwrap_or(usize::MAX).min(max_bytes);
    Piece {
        address,
        len,
        ..none(StackRead::Read {
            is_cut: (len as u64) < whole,
        })
    }
}

impl Stacks {
    /// What became of the stack of a goroutine, by its place in the batch.
    pub fn outcome(&self, index: usize) -> StackRead {
        let piece = self.pieces.get(index);
        piece.map_or(StackRead::Nonsense, |piece| piece.outcome)
    }

    /// A word of that stack, where it was read.
    pub fn word(&self, index: usize, address: u64) -> Option<u64> {
        let piece = self.pieces.get(index)?;
        let distance = usize::try_from(address.checked_sub(piece.address)?).ok()?;
        let end = distance.checked_add(8)?;
        if end > piece.len {
            return None;
        }
        let bytes = self.bytes.get(piece.start + distance..piece.start + end)?;
        Some(u64::from_le_bytes(*bytes.first_chunk()?))
    }
}
