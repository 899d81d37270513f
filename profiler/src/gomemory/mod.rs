//! Go's memory, read from outside: of a live process or out of a core file. Never
//! stops or writes what it reads, believes nothing it has not checked, and bounds
//! each walk; what Go keeps where, `gobinary` knows.

mod blocks;
mod core_file;
mod draw;
mod goroutines;
mod heap;
mod labels;
mod latency;
mod list;
mod live;
mod maps;
mod notes;
mod once;
mod pieces;
mod program;
mod stacks;
mod statistics;
mod waits;

pub use core_file::{Core, CoreError, CoreFile, CoreThread, open_backing};
pub use goroutines::{Goroutine, GoroutineBatch, Registers};
pub use heap::{Bucket, HeapProfile, NoHeap};
pub use latency::{Latency, LatencyRange};
pub use list::{Few, Listing, MAX_GOROUTINES};
pub use live::Live;
pub use program::{GcController, Program};
pub use stacks::{StackRead, Stacks};
pub use statistics::{Collections, GoroutineCounts, Heap, Pause, Scheduler, Statistics};
pub use waits::Awaited;

/// Memory of a program, by its addresses.
///
/// Reads are not atomic: a program that runs changes what is read meanwhile, so
/// that what belongs together may not fit together. Who uses it has to notice.
pub trait Memory {
    /// Fills each of the requests that can be filled whole, in their order, and says
    /// which.
    fn read_many(&self, requests: &mut [Request<'_>]);

    /// Fills `bytes` from an address; says whether that could be done whole.
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let mut request = [Request::new(address, bytes)];
        self.read_many(&mut request);
        request[0].is_filled
    }

    /// The word at an address, where it can be read.
    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)
            .then(|| u64::from_le_bytes(bytes))
    }

    /// The 32-bit word at an address, where it can be read.
    fn half_word(&self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)
            .then(|| u32::from_le_bytes(bytes))
    }

    /// Whether it is still the memory of the program it was opened for: not after
    /// that has exited or begun another.
    fn is_there(&self) -> bool;
}

/// A piece of memory that is wanted.
#[derive(Debug)]
pub struct Request<'b> {
    /// Where it begins.
    pub address: u64,
    /// Where it is to go; how much is wanted.
    pub bytes: &'b mut [u8],
    /// Whether all of it was read. If not, `bytes` may hold anything.
    pub is_filled: bool,
}

impl<'b> Request<'b> {
    /// A piece that has not been read yet.
    pub fn new(address: u64, bytes: &'b mut [u8]) -> Self {
        Self {
            address,
            bytes,
            is_filled: false,
        }
    }
}

#[cfg(test)]
pub(crate) mod fake;
