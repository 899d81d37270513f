//! Where a process's memory can be read: the ranges that its list of mappings
//! shows. Parses text; reads no file.

use std::ops::Range;

/// Most mappings kept; a hostile process can have hundreds of thousands.
const MAX_RANGES: usize = 128 * 1024;

/// Ranges of addresses, by address, none touching another.
#[derive(Debug, Default)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// The private readable mappings in the text of `/proc/PID/maps`. Go keeps
    /// nothing of its own in shared ones, and behind those may be a device, or a
    /// file system that never answers.
    pub(super) fn parse(text: &[u8]) -> Ranges {
        let lines = text.split(|byte| *byte == b'\n');
        Ranges::of(lines.filter_map(parse_line).take(MAX_RANGES).collect())
    }

    /// Those ranges, joined where they touch.
    pub(super) fn of(mut ranges: Vec<Range<u64>>) -> Ranges {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Ranges(joined)
    }

    /// The first address.
    pub(super) fn first(&self) -> Option<u64> {
        self.0.first().map(|range| range.start)
    }

    /// Whether so many bytes from an address all lie in one range.
    pub(super) fn hold(&self, address: u64, len: usize) -> bool {
        let Some(end) = address.checked_add(len as u64) else {
            return false;
        };
        let after = self.0.partition_point(|range| range.start <= address);
        let range = after.checked_sub(1).map(|index| &self.0[index]);
        range.is_some_and(|range| end <= range.end && address < range.end)
    }
}

/// `start-end perms ...`, proc(5).
fn parse_line(line: &[u8]) -> Option<Range<u64>> {
    // The path is any bytes; what comes before it is ASCII.
    let end = line.len().min(64);
    let head = String::from_utf8_lossy(&line[..end]);
    let mut fields = head.split(' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?.as_bytes();
    let is_private = permissions.first() == Some(&b'r') && permissions.get(3) == Some(&b'p');
    let address = |text| u64::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    // The kernel's own page of clocks cannot be read like memory.
    (is_private && !line.ends_with(b"[vvar]")).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_readable_mappings_are_ranges() {
        let text = b"\
1000-3000 r-xp 00000000 fe:01 12   /bin/a
3000-4000 rw-p 00002000 fe:01 12   /bin/a
5000-6000 ---p 00000000 00:00 0
6000-7000 rw-s 00000000 00:05 3    /dev/x
8000-9000 r--p 00000000 00:00 0    [vvar]
9000-9000 r--p 00000000 00:00 0
nonsense
a000-b000 r--p 00000000 00:00 0";
        let ranges = Ranges::parse(text);
        assert_eq!(ranges.0, [0x1000..0x4000, 0xa000..0xb000]);
        assert!(ranges.hold(0x1000, 0x3000));
        assert!(ranges.hold(0x3fff, 1));
        assert!(!ranges.hold(0x3fff, 2));
        assert!(!ranges.hold(0xfff, 2));
        assert!(!ranges.hold(0x4000, 0));
        assert!(!ranges.hold(0x5000, 1));
        assert!(!ranges.hold(u64::MAX, 2));
        assert!(!Ranges::default().hold(0, 1));
    }
}
