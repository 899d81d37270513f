//! The walk along frame pointers, over any memory. Both of Go's 64-bit
//! targets store the caller's frame pointer at `[fp]` and the return address
//! at `[fp + 8]`.

use crate::wire::{MAX_USER_FRAMES, WalkEnd};

/// Memory of the walked thread.
pub trait UserMemory {
    /// Reads two words at `address`, or nothing where that would fault.
    fn read_pair(&self, address: u64) -> Option<[u64; 2]>;
}

/// Takes the frames as they are found.
pub trait FrameSink {
    /// Stores the return address of frame `index`, which is below
    /// [`MAX_USER_FRAMES`], and that `index + 1` frames are stored.
    fn push(&mut self, index: usize, return_address: u64);
}

/// Follows the chain from `fp`, leaf first, until it ends.
///
/// Addresses may go down as well as up: `systemstack` goes from the thread's
/// stack to a goroutine's, which may lie on either side. A chain that turns in
/// a circle is cut by the depth limit.
#[inline(always)]
pub fn walk<M: UserMemory, S: FrameSink>(memory: &M, fp: u64, sink: &mut S) -> WalkEnd {
    let mut fp = fp;
    for index in 0..MAX_USER_FRAMES {
        if fp == 0 {
            return WalkEnd::Root;
        }
        if fp & 7 != 0 {
            return WalkEnd::Malformed;
        }
        let Some([next, return_address]) = memory.read_pair(fp) else {
            return WalkEnd::Unreadable;
        };
        if return_address == 0 {
            return WalkEnd::Root;
        }
        sink.push(index, return_address);
        if next == fp {
            return WalkEnd::Malformed;
        }
        fp = next;
    }
    WalkEnd::DepthLimit
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
    struct Frames(Vec<u64>);
    impl FrameSink for Frames {
        fn push(&mut self, index: usize, return_address: u64) {
            assert_eq!(index, self.0.len());
            self.0.push(return_address);
        }
    }
    fn check(words: Vec<u64>, fp: u64) -> (Vec<u64>, WalkEnd) {
        let mut frames = Frames(vec![]);
        let end = walk(&Words(0x1000, words), fp, &mut frames);
        (frames.0, end)
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
        assert_eq!(frames, [0xa]);
        assert_eq!(end, WalkEnd::Malformed);
    }

    #[test]
    fn cuts_circles_at_the_depth_limit() {
        let (frames, end) = check(vec![0x1010, 0xa, 0x1000, 0xb], 0x1000);
        assert_eq!(frames.len(), MAX_USER_FRAMES);
        assert_eq!(end, WalkEnd::DepthLimit);
    }
}
