//! Which struct offsets hold for a Go binary: those of its version where they
//! are proven, those of its own DWARF where they are not. Never a guess.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::ZlibDecoder;

use super::bytes::{read_u32, read_u64};
use super::dwarf::Sections;
use super::elf::Elf;
use super::offsets_table::{LATEST, TABLE};
use super::structs::StructOffsets;
use super::version::GoVersion;

/// Bytes of a DWARF section that are read, decompressed. The largest Go
/// programs stay below.
const MAX_SECTION_BYTES: u64 = 256 << 20;
/// `ELFCOMPRESS_ZLIB`; Go writes no other.
const ZLIB: u32 = 1;
/// Bytes of `Elf64_Chdr`.
const COMPRESSION_HEADER: usize = 24;

/// Where the fields of the runtime's structs are, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeOffsets {
    /// By the version, from the table made of that version's own builds.
    Known(&'static StructOffsets),
    /// From the binary's own DWARF: its version is not in the table.
    FromDwarf(StructOffsets),
    /// It is not known.
    Unknown {
        /// One clause that says why, for people.
        why: String,
    },
}

impl RuntimeOffsets {
    /// The offsets, if they are known.
    pub fn get(&self) -> Option<&StructOffsets> {
        match self {
            RuntimeOffsets::Known(offsets) => Some(offsets),
            RuntimeOffsets::FromDwarf(offsets) => Some(offsets),
            RuntimeOffsets::Unknown { .. } => None,
        }
    }

    /// Looks the version up, else reads DWARF.
    pub(super) fn of(version: &GoVersion, elf: &Elf, data: &[u8]) -> RuntimeOffsets {
        if let Some(offsets) = lookup(version) {
            return RuntimeOffsets::Known(offsets);
        }
        match read_dwarf(elf, data) {
            Ok(offsets) => RuntimeOffsets::FromDwarf(offsets),
            Err(why) => RuntimeOffsets::Unknown {
                why: format!("{version} is not a release of Go 1.19 to 1.{LATEST}, and {why}"),
            },
        }
    }
}

/// The offsets of a release. Snapshots and candidates may differ from the
/// release they led to, and are not looked up.
fn lookup(version: &GoVersion) -> Option<&'static StructOffsets> {
    let (major, minor) = version.major_minor();
    if major != 1 || !version.is_release() {
        return None;
    }
    TABLE
        .iter()
        .find(|(minors, _)| minors.contains(&minor))
        .map(|(_, offsets)| offsets)
}

fn read_dwarf(elf: &Elf, data: &[u8]) -> Result<StructOffsets, String> {
    let section = |name| read_section(elf, data, name);
    let (Some(info), Some(abbrev)) = (section(".debug_info")?, section(".debug_abbrev")?) else {
        return Err("it has no DWARF".to_owned());
    };
    StructOffsets::read(Sections {
        info: &info,
        abbrev: &abbrev,
        str: &section(".debug_str")?.unwrap_or_default(),
    })
}

/// The bytes of a section, decompressed. None where there is none.
fn read_section<'a>(
    elf: &Elf,
    data: &'a [u8],
    name: &'static str,
) -> Result<Option<Cow<'a, [u8]>>, String> {
    let Some(section) = elf.section(data, name) else {
        return Ok(None);
    };
    let bytes = data.get(section.range).unwrap_or_default();
    let size = if section.compressed {
        read_u64(bytes, 8).unwrap_or(u64::MAX)
    } else {
        bytes.len() as u64
    };
    if size > MAX_SECTION_BYTES {
        return Err(format!("its {name} is larger than goprof reads"));
    }
    if !section.compressed {
        return Ok(Some(Cow::Borrowed(bytes)));
    }
    if read_u32(bytes, 0) != Some(ZLIB) {
        return Err(format!("its {name} is not compressed by zlib"));
    }
    let mut plain = Vec::new();
    let stream = bytes.get(COMPRESSION_HEADER..).unwrap_or_default();
    match ZlibDecoder::new(stream).take(size).read_to_end(&mut plain) {
        Ok(read) if read as u64 == size => Ok(Some(Cow::Owned(plain))),
        _ => Err(format!("its {name} is damaged")),
    }
}
