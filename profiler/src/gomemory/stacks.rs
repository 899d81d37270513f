//! The stacks of goroutines that do not run: of each its struct, its stack and its
//! struct again, read one right after the other, so that a goroutine that ran
//! meanwhile shows. Reads no more than it is told to.

use std::ops::Range;

use super::{Goroutine, GoroutineBatch, Memory, Request, goroutines::Head};

/// What was read of a goroutine's stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackRead {
    /// It is there, from the stack pointer up: whole, or the first part of it.
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
        let mut size = 0;
        let mut pieces: Vec<Piece> = Vec::with_capacity(goroutines.len());
        for goroutine in goroutines {
            let mut piece = wanted(goroutine, max_bytes);
            if piece.len > 0 {
                piece.start = size + head.len();
                size += piece.len + 2 * head.len();
            }
            pieces.push(piece);
        }
        let mut bytes = vec![0; size];
        let mut requests = Vec::with_capacity(3 * goroutines.len());
        let mut rest = bytes.as_mut_slice();
        for (goroutine, piece) in goroutines.iter().zip(&pieces).filter(|(_, p)| p.len > 0) {
            let struct_of = (head.address(goroutine), head.len());
            for (address, len) in [struct_of, (piece.address, piece.len), struct_of] {
                let (now, later) = rest.split_at_mut(len);
                requests.push(Request::new(address, now));
                rest = later;
            }
        }
        memory.read_many(&mut requests);
        let read = goroutines
            .iter()
            .zip(&mut pieces)
            .filter(|(_, p)| p.len > 0);
        for ((goroutine, piece), triple) in read.zip(requests.chunks_exact(3)) {
            let is_same =
                |at: usize| triple[at].is_filled && head.is_of(goroutine, triple[at].bytes);
            if !is_same(0) || !is_same(2) {
                piece.outcome = StackRead::Changed;
            } else if !triple[1].is_filled {
                piece.outcome = StackRead::Unreadable;
            }
        }
        Stacks { bytes, pieces }
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
    let whole = stack.end - sp;
    let len = usize::try_from(whole).unwrap_or(usize::MAX).min(max_bytes);
    Piece {
        address: sp,
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
