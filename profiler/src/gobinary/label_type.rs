//! In which form a program keeps pprof labels, by the type that it keeps them
//! as. Reads Go's type descriptors, stripped or not; takes no version's word.

use std::ops::Range;

use memchr::memmem;

use super::bytes::{read_i32, read_u8, read_u64};
use super::elf::find_u32;
use super::structs::LabelFormat;

/// The name of `runtime/pprof.labelMap` as descriptors refer to it: not exported,
/// 15 bytes long, with the star of the pointer type that shares it
/// (`internal/abi.Name`, all versions).
const NAME: &[u8] = b"\0\x0f*pprof.labelMap";
/// Its package likewise, which tells it from another's.
const PACKAGE: &[u8] = b"\0\x0druntime/pprof";
/// Names, and descriptors, that are looked at before giving up.
const MAX_CANDIDATES: usize = 16;

/// Byte offsets in `internal/abi.Type`, all versions (up to 1.20
/// `runtime._type`).
mod at {
    /// `Size_ uintptr`.
    pub const SIZE: usize = 0;
    /// `TFlag`.
    pub const FLAGS: usize = 20;
    /// `Kind_`, whose upper bits are flags up to 1.26.
    pub const KIND: usize = 23;
    /// `Str`: the name's offset from where types begin.
    pub const NAME: usize = 40;
    /// Of the `UncommonType` behind a struct's descriptor: its first word is the
    /// package's offset from where types begin.
    pub const AFTER_STRUCT: usize = 80;
    /// The same behind a map's (`abi.MapType` up to 1.23).
    pub const AFTER_MAP: usize = 88;
}

/// `abi.TFlagUncommon` and `abi.TFlagExtraStar`.
const FLAGS: u8 = 1 | 2;
const KIND_MASK: u8 = 31;
const KIND_MAP: u8 = 21;
const KIND_STRUCT: u8 = 25;

/// The form by the descriptor of `runtime/pprof.labelMap`, to be found in the
/// range `types` of a file. None where the program has no such type, and so sets
/// no labels, or one that is neither.
pub(super) fn find(data: &[u8], types: Range<usize>) -> Option<LabelFormat> {
    let names = memmem::find_iter(data.get(types.clone())?, NAME);
    let mut descriptors = names.take(MAX_CANDIDATES).flat_map(|name| {
        // No type has a name more than 2 GiB away: then nothing is found.
        let offset = u32::try_from(name).unwrap_or_default();
        let referring = find_u32(data, types.clone(), 8, offset);
        referring
            .filter_map(|place| place.checked_sub(at::NAME))
            .take(MAX_CANDIDATES)
    });
    descriptors.find_map(|descriptor| {
        let (format, uncommon) = format(data.get(descriptor..types.end)?)?;
        let package = usize::try_from(read_i32(data, descriptor + uncommon)?).ok()?;
        let package = data.get(types.start.checked_add(package)?..types.end)?;
        package.starts_with(PACKAGE).then_some(format)
    })
}

/// The form by a descriptor, and how far behind it the package is said.
fn format(descriptor: &[u8]) -> Option<(LabelFormat, usize)> {
    let kind = read_u8(descriptor, at::KIND)? & KIND_MASK;
    let named = read_u8(descriptor, at::FLAGS)? & FLAGS == FLAGS;
    match (kind, read_u64(descriptor, at::SIZE)?) {
        (KIND_MAP, 8) if named => Some((LabelFormat::Map, at::AFTER_MAP)),
        (KIND_STRUCT, 24) if named => Some((LabelFormat::Slice, at::AFTER_STRUCT)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the types begin in a file.
    const START: usize = 64;

    /// A file with a descriptor of this kind and size at 128, the name's offset
    /// in it, and what names its package.
    fn file(kind: u8, size: u64, package: &[u8]) -> Vec<u8> {
        let mut data = vec![0; 512];
        let mut put = |at: usize, bytes: &[u8]| data[at..at + bytes.len()].copy_from_slice(bytes);
        put(300, NAME);
        put(340, package);
        // The pointer type shares the name.
        put(64 + at::KIND, &[22]);
        put(64 + at::NAME, &236u32.to_le_bytes());
        put(128, &size.to_le_bytes());
        put(128 + at::FLAGS, &[FLAGS | 4]);
        put(128 + at::KIND, &[kind]);
        put(128 + at::NAME, &236u32.to_le_bytes());
        let uncommon = match kind & KIND_MASK {
            KIND_MAP => at::AFTER_MAP,
            _ => at::AFTER_STRUCT,
        };
        put(128 + uncommon, &276u32.to_le_bytes());
        data
    }

    #[test]
    fn the_kind_of_the_type_is_the_form() {
        let of = |data: Vec<u8>| find(&data, START..data.len());
        assert_eq!(of(file(KIND_MAP, 8, PACKAGE)), Some(LabelFormat::Map));
        let direct = KIND_MAP | 32;
        assert_eq!(of(file(direct, 8, PACKAGE)), Some(LabelFormat::Map));
        let slice = of(file(KIND_STRUCT, 24, PACKAGE));
        assert_eq!(slice, Some(LabelFormat::Slice));
    }

    #[test]
    fn other_types_say_nothing() {
        let of = |data: Vec<u8>| find(&data, START..data.len());
        assert_eq!(of(file(KIND_STRUCT, 24, b"\0\x0dproject/pprof")), None);
        assert_eq!(of(file(KIND_STRUCT, 32, PACKAGE)), None);
        assert_eq!(of(file(KIND_MAP, 24, PACKAGE)), None);
        assert_eq!(of(file(22, 8, PACKAGE)), None);
        assert_eq!(of(vec![0; 512]), None);
        let mut unnamed = file(KIND_STRUCT, 24, PACKAGE);
        unnamed[128 + at::FLAGS] = 0;
        assert_eq!(of(unnamed), None);
    }

    #[test]
    fn what_is_cut_off_says_nothing() {
        let whole = file(KIND_STRUCT, 24, PACKAGE);
        for end in START..340 + PACKAGE.len() {
            assert_eq!(find(&whole, START..end), None, "{end}");
            assert_eq!(find(&whole[..end], START..whole.len()), None, "{end}");
        }
        assert_eq!(find(&whole, 600..700), None);
        assert_eq!(find(&[], 0..0), None);
    }
}
