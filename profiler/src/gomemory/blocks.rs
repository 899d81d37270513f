//! Reads many small things that lie near each other, such as a linked list of
//! what was allocated one after the other: a block of memory at a time.

use foldhash::{HashMap, HashMapExt as _};

use super::{Memory, Request};

/// Bytes of a block, and its alignment: a page, which is mapped as a whole.
const BLOCK_BYTES: usize = 4096;
/// Most blocks read at once, from the one that is wanted on: twice as many as before
/// where that follows on those, else it alone.
const BLOCKS_AT_ONCE: u64 = 16;

/// Memory, with what was read of it. What is read of a block twice is of the
/// same moment.
pub(super) struct Blocks<'m> {
    memory: &'m dyn Memory,
    blocks: HashMap<u64, Option<Box<[u8]>>>,
    /// Blocks that may still be read.
    left: usize,
    /// How many were read at once the last time, and where the next one begins.
    last: (u64, u64),
}

impl<'m> Blocks<'m> {
    /// Of so many bytes at most.
    pub(super) fn new(memory: &'m dyn Memory, max_bytes: usize) -> Self {
        Self {
            memory,
            blocks: HashMap::new(),
            left: max_bytes / BLOCK_BYTES,
            last: (0, 0),
        }
    }

    /// Fills `bytes` from an address; says whether that could be done whole.
    pub(super) fn read(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        let mut address = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let offset = (address % BLOCK_BYTES as u64) as usize;
            let Some(block) = self.block(address - offset as u64) else {
                return false;
            };
            let from = &block[offset..];
            let len = from.len().min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&from[..len]);
            rest = later;
            match address.checked_add(len as u64) {
                Some(next) => address = next,
                None => return rest.is_empty(),
            }
        }
        true
    }

    fn block(&mut self, start: u64) -> Option<&[u8]> {
        if !self.blocks.contains_key(&start) {
            self.fetch(start);
        }
        self.blocks.get(&start)?.as_deref()
    }

    fn fetch(&mut self, start: u64) {
        let at_once = match self.last {
            (before, next) if next == start => (before * 2).clamp(1, BLOCKS_AT_ONCE),
            _ => 1,
        };
        self.last = (at_once, start.wrapping_add(at_once * BLOCK_BYTES as u64));
        let starts = (0..at_once)
            .map_while(|index| start.checked_add(index * BLOCK_BYTES as u64))
            .filter(|start| !self.blocks.contains_key(start));
        let starts: Vec<u64> = starts.take(self.left).collect();
        self.left -= starts.len();
        let mut bytes = vec![0; starts.len() * BLOCK_BYTES];
        let pieces = bytes.chunks_mut(BLOCK_BYTES);
        let mut requests: Vec<Request<'_>> = starts
            .iter()
            .zip(pieces)
            .map(|(start, piece)| Request::new(*start, piece))
            .collect();
        self.memory.read_many(&mut requests);
        for request in requests {
            let block = request.is_filled.then(|| Box::from(&*request.bytes));
            self.blocks.insert(request.address, block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Words;
    use super::*;

    fn memory() -> Words {
        let mut words = Words::default();
        let page: Vec<u64> = (0..1024).collect();
        words.put(0x1000, &page);
        words
    }

    #[test]
    fn reads_across_blocks_and_not_past_them() {
        let memory = memory();
        let mut blocks = Blocks::new(&memory, 1 << 20);
        let mut bytes = [0; 16];
        assert!(blocks.read(0x1ff8, &mut bytes));
        assert_eq!(bytes[..8], 511u64.to_le_bytes());
        assert_eq!(bytes[8..], 512u64.to_le_bytes());
        assert!(!blocks.read(0x2ff8, &mut bytes));
        assert!(!blocks.read(u64::MAX - 3, &mut bytes));
    }

    #[test]
    fn no_more_is_read_than_may_be() {
        let memory = memory();
        let mut blocks = Blocks::new(&memory, 4096);
        let mut bytes = [0; 8];
        assert!(blocks.read(0x1000, &mut bytes));
        assert!(!blocks.read(0x2000, &mut bytes));
        assert!(blocks.read(0x1008, &mut bytes));
    }
}
