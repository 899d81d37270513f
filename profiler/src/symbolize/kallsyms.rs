//! Picks from `/proc/kallsyms` the few lines that name some addresses, in one
//! pass that keeps nothing else: the whole of it is a hundred thousand symbols.
//! Names nothing itself.

use std::io::{self, Read};

use memchr::memchr;

/// Bytes read at once; the kernel hands out less.
const CHUNK_BYTES: usize = 64 * 1024;
/// A longer line is not the kernel's, which limits a symbol's name to 512.
const MAX_LINE_BYTES: usize = 4096;

/// The lines of the symbols nearest below each of `addresses`, which are sorted
/// and at least one; of symbols at the same address all. Lines that cannot be
/// read, or without an address (for whom the kernel hides them), are left out.
///
/// # Errors
/// `symbols` cannot be read, or is not lines.
pub(super) fn nearest(symbols: impl Read, addresses: &[u64]) -> io::Result<Vec<u8>> {
    let mut nearest = Nearest {
        addresses,
        below: vec![Below::default(); addresses.len()],
        last: 0,
    };
    each_line(symbols, |line| nearest.consider(line))?;
    let mut lines = Vec::new();
    for below in &nearest.below {
        lines.extend_from_slice(&below.lines);
    }
    Ok(lines)
}

struct Nearest<'a> {
    addresses: &'a [u64],
    /// For each address: the symbols nearest below it that lie above the
    /// address before it.
    below: Vec<Below>,
    /// Index of the address that the last symbol was below.
    last: usize,
}

#[derive(Clone, Default)]
struct Below {
    address: u64,
    lines: Vec<u8>,
}

impl Nearest<'_> {
    fn consider(&mut self, line: &[u8]) {
        let Some(symbol) = address(line).filter(|address| *address != 0) else {
            return;
        };
        let index = self.index(symbol);
        let Some(below) = self.below.get_mut(index) else {
            return;
        };
        if symbol < below.address {
            return;
        }
        if symbol > below.address {
            below.address = symbol;
            below.lines.clear();
        }
        below.lines.extend_from_slice(line);
        below.lines.push(b'\n');
    }

    /// Index of the first address that is not below `symbol`. Most symbols
    /// stand in the file by their addresses, so it is most often the last.
    fn index(&mut self, symbol: u64) -> usize {
        let before = self.last.checked_sub(1).map(|index| self.addresses[index]);
        let same = before.is_none_or(|before| before < symbol)
            && self.addresses.get(self.last).is_none_or(|at| symbol <= *at);
        if !same {
            self.last = self.addresses.partition_point(|address| *address < symbol);
        }
        self.last
    }
}

/// The address that a line begins with.
fn address(line: &[u8]) -> Option<u64> {
    let mut address = 0u64;
    for (index, byte) in line.iter().enumerate() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b' ' if index > 0 => return Some(address),
            _ => return None,
        };
        if address >> 60 != 0 {
            return None;
        }
        address = address << 4 | u64::from(digit);
    }
    None
}

/// Calls `take` with each line, without its end.
fn each_line(mut text: impl Read, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut filled = 0;
    loop {
        let read = text.read(&mut buffer[filled..])?;
        if read == 0 {
            take(&buffer[..filled]);
            return Ok(());
        }
        filled += read;
        let mut rest = &buffer[..filled];
        while let Some(end) = memchr(b'\n', rest) {
            take(&rest[..end]);
            rest = &rest[end + 1..];
        }
        let kept = rest.len();
        if kept > MAX_LINE_BYTES {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        buffer.copy_within(filled - kept..filled, 0);
        filled = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOLS: &str = "\
0000000000000000 A hidden
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000100 t first
ffffffff81000200 t second
ffffffff81000300 T third\t[module]
ffffffff81000180 t out_of_order
not a line
fffffffff81000301 t too_long
ffffffff81000400 t last";

    /// Hands out a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);
    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(self.1).min(buffer.len());
            let (now, later) = self.0.split_at(count);
            buffer[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    #[track_caller]
    fn check(addresses: &[u64], expected: &[&str]) {
        for bytes in [1, 7, 64, 1 << 20] {
            let lines = nearest(Slow(SYMBOLS.as_bytes(), bytes), addresses).unwrap();
            let lines = String::from_utf8(lines).unwrap();
            let names: Vec<&str> = lines
                .lines()
                .map(|line| line.split_ascii_whitespace().nth(2).unwrap())
                .collect();
            assert_eq!(names, expected, "{bytes} bytes at a time");
        }
    }

    const TEXT: u64 = 0xffff_ffff_8100_0000;

    #[test]
    fn keeps_the_symbol_nearest_below_each_address() {
        check(&[TEXT + 0x210], &["second"]);
        check(&[TEXT + 0x200], &["second"]);
        check(&[TEXT + 0x1ff], &["out_of_order"]);
        check(&[TEXT + 0x17f, TEXT + 0x300], &["first", "third"]);
        check(&[TEXT + 0x1000], &["last"]);
    }

    #[test]
    fn keeps_all_symbols_at_one_address() {
        check(&[TEXT + 1], &["_stext", "_text"]);
    }

    #[test]
    fn addresses_of_one_symbol_keep_it_once() {
        check(&[TEXT + 0x301, TEXT + 0x302, TEXT + 0x303], &["third"]);
    }

    #[test]
    fn below_the_first_symbol_is_none() {
        check(&[1, TEXT - 1], &[]);
        check(&[TEXT - 1, TEXT + 0x110], &["first"]);
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let text = vec![b'f'; 2 * CHUNK_BYTES];
        assert!(nearest(&text[..], &[1]).is_err());
    }

    #[test]
    fn picks_what_a_search_over_all_of_the_running_kernels_symbols_finds() {
        let text = std::fs::read("/proc/kallsyms").unwrap();
        let mut all: Vec<u64> = text
            .split(|byte| *byte == b'\n')
            .filter_map(address)
            .filter(|address| *address != 0)
            .collect();
        all.sort_unstable();
        // Without the rights the kernel gives zeros, of which nothing is kept.
        let Some(first) = all.first().copied() else {
            assert_eq!(nearest(&text[..], &[TEXT]).unwrap(), b"");
            return;
        };
        let wanted: Vec<u64> = all.iter().step_by(997).map(|at| at + 5).collect();
        let kept = nearest(&text[..], &wanted).unwrap();
        let kept: Vec<u64> = kept.split(|b| *b == b'\n').filter_map(address).collect();
        for address in wanted {
            let below = |symbols: &[u64]| symbols.iter().copied().filter(|s| *s <= address).max();
            assert!(address > first);
            assert_eq!(below(&kept), below(&all), "{address:#x}");
        }
    }
}
