//! The walk along frame pointers, over any memory. Both of Go's 64-bit
//! targets store the caller's frame pointer at `[fp]` and the return address
//! at `[fp + 8]`.

use crate::wire::WalkEnd;

/// Memory of the walked thread.
pub trait UserMemory {
    /// Reads two words at `address`, or nothing where that would fault.
    fn read_pair(&self, address: u64) -> Option<[u64; 2]>;
}

/// Bytes of memory that are read at once where there is no reason for fewer:
/// frames are small, so that several lie in as many.
pub const BLOCK_BYTES: u64 = 512;

/// The smallest page. What begins in one that is there, and ends in it, can be
/// read.
const PAGE_BYTES: u64 = 4096;

/// How many bytes to read from `address` (a multiple of eight) on: a pair of
/// words, and no more than are surely there if the pair is.
#[inline(always)]
pub fn block_bytes(address: u64) -> u64 {
    let in_page = PAGE_BYTES - (address & (PAGE_BYTES - 1));
    in_page.clamp(16, BLOCK_BYTES)
}

/// What one step of the walk came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A frame, and the frame pointer to go on with.
    Frame {
        /// Where this frame returns to.
        return_address: u64,
        /// The caller's frame pointer.
        next: u64,
    },
    /// There is no further frame.
    End(WalkEnd),
}

/// Takes one step from `fp`. The caller bounds how many: a chain can turn in a
/// circle.
///
/// Addresses may go down as well as up: `systemstack` goes from the thread's
/// stack to a goroutine's, which may lie on either side.
#[inline(always)]
pub fn step<M: UserMemory>(memory: &M, fp: u64) -> Step {
    if fp == 0 {
        return Step::End(WalkEnd::Root);
    }
    if fp & 7 != 0 {
        return Step::End(WalkEnd::Malformed);
    }
    let Some([next, return_address]) = memory.read_pair(fp) else {
        return Step::End(WalkEnd::Unreadable);
    };
    if return_address == 0 {
        return Step::End(WalkEnd::Root);
    }
    if next == fp {
        return Step::End(WalkEnd::Malformed);
    }
    Step::Frame {
        return_address,
        next,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{vec, vec::Vec};

    struct Words(u64, Vec<u64>);
    impl UserMemory for Words {
        fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
            let index = address.checked_sub(self.0)? as usize / 8;
            Some([*self.1.get(index)?, *self.1.get(index + 1)?])
        }
    }
    fn check(words: Vec<u64>, fp: u64) -> (Vec<u64>, WalkEnd) {
        let memory = Words(0x1000, words);
        let (mut fp, mut frames) = (fp, vec![]);
        for _ in 0..16 {
            match step(&memory, fp) {
                Step::End(end) => return (frames, end),
                Step::Frame {
                    return_address,
                    next,
                } => {
                    frames.push(return_address);
                    fp = next;
                }
            }
        }
        (frames, WalkEnd::DepthLimit)
    }

    #[test]
    fn blocks_end_where_their_page_does_but_hold_a_pair() {
        assert_eq!(block_bytes(0x7000), BLOCK_BYTES);
        assert_eq!(block_bytes(0x8000 - BLOCK_BYTES), BLOCK_BYTES);
        assert_eq!(block_bytes(0x8000 - BLOCK_BYTES + 8), BLOCK_BYTES - 8);
        assert_eq!(block_bytes(0x7ff0), 16);
        assert_eq!(block_bytes(0x7ff8), 16);
    }

    #[test]
    fn follows_the_chain_to_its_root() {
        let (frames, end) = check(vec![0x1010, 0xa, 0x1020, 0xb, 0, 0xc], 0x1000);
        assert_eq!(frames, [0xa, 0xb, 0xc]);
        assert_eq!(end, WalkEnd::Root);
    }

    #[test]
    fn goes_down_as_well_as_up() {
        let (frames, end) = check(vec![0, 0xb, 0x1000, 0xa], 0x1010);
        assert_eq!(frames, [0xa, 0xb]);
        assert_eq!(end, WalkEnd::Root);
    }

    #[test]
    fn keeps_what_it_has_where_memory_ends() {
        let (frames, end) = check(vec![0x9000, 0xa], 0x1000);
        assert_eq!(frames, [0xa]);
        assert_eq!(end, WalkEnd::Unreadable);
    }

    #[test]
    fn refuses_unaligned_frame_pointers() {
        assert_eq!(check(vec![0; 4], 0x1003), (vec![], WalkEnd::Malformed));
    }

    #[test]
    fn stops_at_a_frame_that_is_its_own_caller() {
        let (frames, end) = check(vec![0x1000, 0xa], 0x1000);
        assert_eq!(frames, []);
        assert_eq!(end, WalkEnd::Malformed);
    }
}
