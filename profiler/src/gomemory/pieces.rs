//! Reads many pieces of one length, those that lie side by side together: the kernel
//! takes as long to find a small piece as it does for a page.

use super::{Memory, Request};

/// Bytes of a run, which the kernel finds in two or three pages.
const MAX_RUN_BYTES: u64 = 8192;
/// Bytes between two pieces that are read with them.
const MAX_GAP_BYTES: u64 = 512;

/// Pieces of memory, each of the same length.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    len: usize,
    /// Where each begins in the bytes; None of one that could not be read.
    starts: Vec<Option<usize>>,
}

/// Pieces that are read together.
struct Run {
    first: usize,
    end: usize,
    bytes: usize,
}

impl Pieces {
    /// Reads so many bytes from each of these addresses on.
    pub(super) fn read(memory: &dyn Memory, addresses: &[u64], len: usize) -> Self {
        let runs = runs(addresses, len);
        let mut bytes = vec![0; runs.iter().map(|run| run.bytes).sum()];
        let mut rest = bytes.as_mut_slice();
        let mut requests = Vec::with_capacity(runs.len());
        for run in &runs {
            let (now, later) = rest.split_at_mut(run.bytes);
            requests.push(Request::new(addresses[run.first], now));
            rest = later;
        }
        memory.read_many(&mut requests);
        let is_filled: Vec<bool> = requests.iter().map(|request| request.is_filled).collect();
        let mut starts = vec![None; addresses.len()];
        let mut start = 0;
        for (run, is_filled) in runs.iter().zip(is_filled) {
            let is_alone = run.end - run.first == 1;
            for index in run.first..run.end {
                let at = start + (addresses[index] - addresses[run.first]) as usize;
                // What lies in between may be what cannot be read.
                let is_read = is_filled
                    || (!is_alone && memory.read(addresses[index], &mut bytes[at..at + len]));
                starts[index] = is_read.then_some(at);
            }
            start += run.bytes;
        }
        Self { bytes, len, starts }
    }

    /// A piece by its place; None where it could not be read.
    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let start = self.starts.get(index).copied().flatten()?;
        self.bytes.get(start..start + self.len)
    }
}

fn runs(addresses: &[u64], len: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        if let Some(run) = runs.last_mut()
            && let Some(bytes) = address.checked_sub(addresses[run.first])
            && let Some(gap) = bytes.checked_sub(run.bytes as u64)
            && gap <= MAX_GAP_BYTES
            && bytes + len as u64 <= MAX_RUN_BYTES
        {
            run.bytes = bytes as usize + len;
            run.end = index + 1;
            continue;
        }
        runs.push(Run {
            first: index,
            end: index + 1,
            bytes: len,
        });
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::super::fake::Words;
    use super::*;

    #[test]
    fn pieces_side_by_side_are_one_run_and_others_are_not() {
        let addresses = [0x1000, 0x1100, 0x1180, 0x1080, 0x5000, 0x7000, u64::MAX - 3];
        let runs = runs(&addresses, 0x40);
        let found: Vec<_> = runs
            .iter()
            .map(|run| (run.first..run.end, run.bytes))
            .collect();
        let alone = |index| (index..index + 1, 0x40);
        assert_eq!(
            found,
            [(0..3, 0x1c0), alone(3), alone(4), alone(5), alone(6)]
        );
    }

    #[test]
    fn pieces_are_what_is_there_whatever_lies_between() {
        let mut words = Words::default();
        words.put(0x1000, &[1, 2]);
        words.put(0x1040, &[3, 4]);
        words.put(0x1080, &[5]);
        let pieces = Pieces::read(&words, &[0x1000, 0x1040, 0x1080, 0x1008], 16);
        let first = |index| pieces.get(index).map(|piece: &[u8]| piece[0]);
        assert_eq!([0, 1, 2, 3].map(first), [Some(1), Some(3), None, None]);
        assert_eq!(pieces.get(4), None);
    }
}
