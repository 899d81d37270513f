//! Bounds-checked little-endian reads from mapped bytes. Every function here
//! answers None rather than reach past the end.

use memchr::memchr;

/// The `N` bytes at `offset`.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes
        .get(offset..offset.checked_add(N)?)
        .and_then(|slice| slice.try_into().ok())
}

pub(super) fn read_u8(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

pub(super) fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

pub(super) fn read_i32(bytes: &[u8], offset: usize) -> Option<i32> {
    array(bytes, offset).map(i32::from_le_bytes)
}

pub(super) fn read_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// An unsigned LEB128 number of at most 32 bits: value and bytes taken. None
/// where it does not end within five bytes; excess bits are dropped, as Go does
/// (`runtime.readvarint`).
#[inline]
pub(super) fn read_varint(bytes: &[u8], offset: usize) -> Option<(u32, usize)> {
    // Most numbers in Go's tables take one byte.
    let first = read_u8(bytes, offset)?;
    if first & 0x80 == 0 {
        return Some((u32::from(first), 1));
    }
    read_long_varint(bytes, offset)
}

fn read_long_varint(bytes: &[u8], offset: usize) -> Option<(u32, usize)> {
    let mut value = 0u32;
    for taken in 0..5 {
        let byte = read_u8(bytes, offset.checked_add(taken)?)?;
        value |= u32::from(byte & 0x7f) << (7 * taken);
        if byte & 0x80 == 0 {
            return Some((value, taken + 1));
        }
    }
    None
}

/// Text that ends with a NUL, at most `limit` bytes of it. The bytes are copied
/// before they are judged, because the file may change meanwhile; what is not
/// UTF-8 is replaced.
pub(super) fn read_text(bytes: &[u8], offset: usize, limit: usize) -> Option<String> {
    let rest = bytes.get(offset..)?;
    let within = &rest[..rest.len().min(limit)];
    match memchr(0, within) {
        Some(end) => Some(to_text(&within[..end])),
        None => (rest.len() > limit).then(|| to_text(within)),
    }
}

/// Copies bytes into text.
pub(super) fn to_text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec())
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stay_inside() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(read_u32(&bytes, 5), Some(0x0908_0706));
        assert_eq!(read_u32(&bytes, 6), None);
        assert_eq!(read_u64(&bytes, 2), None);
        assert_eq!(read_u64(&bytes, usize::MAX), None);
        assert_eq!(read_i32(&[0xff; 4], 0), Some(-1));
        assert_eq!(read_u8(&bytes, 9), None);
    }

    #[test]
    fn varints_end() {
        assert_eq!(read_varint(&[0x05], 0), Some((5, 1)));
        assert_eq!(read_varint(&[0xac, 0x02], 0), Some((300, 2)));
        assert_eq!(
            read_varint(&[0xff, 0xff, 0xff, 0xff, 0x0f], 0),
            Some((u32::MAX, 5))
        );
        assert_eq!(read_varint(&[0x80; 1000], 0), None, "never ends");
        assert_eq!(read_varint(&[0x80], 0), None, "cut off");
        assert_eq!(read_varint(&[], 0), None);
        assert_eq!(read_varint(&[0], usize::MAX), None);
    }

    #[test]
    fn text_is_bounded() {
        assert_eq!(read_text(b"abc\0def", 0, 10).as_deref(), Some("abc"));
        assert_eq!(read_text(b"abc\0def", 4, 10), None, "no end");
        assert_eq!(
            read_text(&[b'x'; 100], 0, 10).as_deref(),
            Some("xxxxxxxxxx")
        );
        assert_eq!(read_text(b"a\xffb\0", 0, 10).as_deref(), Some("a\u{fffd}b"));
        assert_eq!(read_text(b"", 1, 10), None);
    }
}
