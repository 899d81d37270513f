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
    is_read: Vec<bool>,
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
        let mut read = vec![0; runs.iter().map(|run| run.bytes).sum()];
        let mut rest = read.as_mut_slice();
        let mut requests = Vec::with_capacity(runs.len());
        for run in &runs {
            let (now, later) = rest.split_at_mut(run.bytes);
            requests.push(Request::new(addresses[run.first], now));
            rest = later;
        }
        memory.read_many(&mut requests);
        let mut pieces = Self {
            bytes: vec![0; addresses.len() * len],
            len,
            is_read: vec![false; addresses.len()],
        };
        let mut alone = Vec::new();
        for (run, request) in runs.iter().zip(&requests) {
            for index in run.first..run.end {
                let start = (addresses[index] - addresses[run.first]) as usize;
                if request.is_filled {
                    let piece = &request.bytes[start..start + len];
                    pieces.bytes[index * len..][..len].copy_from_slice(piece);
                    pieces.is_read[index] = true;
                } else if run.end - run.first > 1 {
                    // What lies in between may be what cannot be read.
                    alone.push(index);
                }
            }
        }
        for index in alone {
            let piece = &mut pieces.bytes[index * len..][..len];
            pieces.is_read[index] = memory.read(addresses[index], piece);
        }
        pieces
    }

    /// A piece by its place; None where it could not be read.
    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let is_read = self.is_read.get(index).copied().unwrap_or(false);
        is_read.then(|| &self.bytes[index * self.len..][..self.len])
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
