//! Memory for tests: words at addresses, the rest not mapped.

use std::collections::HashMap;

use super::{Memory, Request};

/// Words by address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Words(pub HashMap<u64, u64>);

impl Words {
    /// Puts words one behind the other.
    pub(crate) fn put(&mut self, address: u64, words: &[u64]) {
        let addresses = (address..).step_by(8);
        self.0.extend(addresses.zip(words.iter().copied()));
    }

    fn byte(&self, address: u64) -> Option<u8> {
        let word = self.0.get(&(address & !7))?;
        Some(word.to_le_bytes()[(address & 7) as usize])
    }
}

impl Memory for Words {
    fn read_many(&self, requests: &mut [Request<'_>]) {
        for request in requests {
            let mut address = request.address;
            request.is_filled = true;
            for byte in request.bytes.iter_mut() {
                match self.byte(address) {
                    Some(read) => *byte = read,
                    None => request.is_filled = false,
                }
                address = address.wrapping_add(1);
            }
        }
    }

    fn is_there(&self) -> bool {
        true
    }
}
