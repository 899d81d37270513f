//! What goroutines wait for, in the words of the runtime itself: its table is
//! found by one of its texts. Reads the file alone.

use memchr::memmem;

use super::bytes::to_text;
use super::elf::{Elf, Words, find_u32};

/// A text that the table has had in all versions, at the second place
/// (`runtime.waitReasonStrings`).
const MARK: &[u8] = b"GC assist marking";
/// Places that look like it before giving up.
const MAX_CANDIDATES: usize = 64;
/// Entries of the table, and bytes of a text, of which Go has 44 and 40.
const MAX_REASONS: u64 = 96;
const MAX_TEXT_BYTES: u64 = 96;

/// The texts by their number in `g.waitreason`; the first is empty. None where
/// the file has no such table.
pub(super) fn find(elf: &Elf, data: &[u8]) -> Option<Vec<String>> {
    let texts = memmem::find_iter(data, MARK).take(MAX_CANDIDATES);
    let addresses: Vec<u64> = texts
        .filter_map(|offset| elf.offset_to_vaddr(offset as u64))
        .collect();
    let in_file = addresses.iter().flat_map(|text| {
        elf.data_segments(data).flat_map(|segment| {
            let words = find_u32(data, segment.range.clone(), 8, *text as u32);
            let vaddrs = words.map(|offset| segment.vaddr_of(offset));
            vaddrs.take(MAX_CANDIDATES).collect::<Vec<_>>()
        })
    });
    // In a PIE the words are written by relocations.
    let relocated = elf.relative_relocations(data);
    let relocated = relocated.filter(|(_, text)| addresses.contains(text));
    in_file
        .chain(relocated.map(|(place, _)| place).take(MAX_CANDIDATES))
        .find_map(|place| table(elf, data, place.checked_sub(16)?))
}

/// The table that begins at an address, if one does.
fn table(elf: &Elf, data: &[u8], vaddr: u64) -> Option<Vec<String>> {
    let words = Words::at(elf, data, vaddr, MAX_REASONS * 16)?;
    let text = |index: u64| {
        let (text, len) = (words.u64(index * 16)?, words.u64(index * 16 + 8)?);
        if index == 0 {
            return (len == 0).then(String::new);
        }
        if !(1..=MAX_TEXT_BYTES).contains(&len) {
            return None;
        }
        let range = elf.range_from(data, text)?;
        let bytes = data.get(range)?.get(..usize::try_from(len).ok()?)?;
        let plain = bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
        plain.then(|| to_text(bytes))
    };
    let texts: Vec<String> = (0..MAX_REASONS).map_while(text).collect();
    let is_it = texts.get(1).is_some_and(|text| text.as_bytes() == MARK);
    is_it.then_some(texts)
}
