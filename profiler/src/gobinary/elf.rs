//! The ELF side of a Go binary: segments, sections by name, the build id, and
//! relocated words. Trusts nothing it reads; keeps only what lookups need.

use std::ops::Range;

use object::LittleEndian;
use object::elf;
use object::read::elf::{Dyn, FileHeader, NoteIterator, ProgramHeader, SectionHeader};

use super::GoBinaryError;
use super::bytes::read_u64;

type Header = elf::FileHeader64<LittleEndian>;

/// The kernel refuses to run what has more program headers (64 KiB of them,
/// `fs/binfmt_elf.c`).
const MAX_SEGMENTS: usize = (64 << 10) / 56;
/// Section counts past 16 bits mark object files, not programs.
const MAX_SECTIONS: usize = 1 << 16;
/// Notes are small; what lies past this in a note segment is not read.
const MAX_NOTE_BYTES: usize = 64 << 10;
/// Build ids are 16 or 20 bytes; longer ones are cut.
const MAX_BUILD_ID_BYTES: usize = 64;
/// Larger tables are not read: a hundred times what large programs have would
/// still fit.
const MAX_RELOCATION_BYTES: u64 = 1 << 28;
/// Bytes searched for one thing before giving up: sparse files may claim any
/// size, and overlapping segments claim the same bytes many times.
const MAX_SEARCH_BYTES: usize = 1 << 30;
/// Entries of the dynamic table looked at.
const MAX_DYNAMIC: usize = 1024;

/// The processor a binary is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// amd64.
    X86_64,
    /// arm64.
    Aarch64,
}

impl Machine {
    /// The type number of a relocation that adds the load address to a word
    /// (`R_X86_64_RELATIVE`, `R_AARCH64_RELATIVE`).
    fn relative_relocation(self) -> u32 {
        match self {
            Machine::X86_64 => 8,
            Machine::Aarch64 => 1027,
        }
    }

    /// The type number of a relocation that stores a symbol's address, whatever
    /// file has it (`R_X86_64_64`, `R_AARCH64_ABS64`).
    fn absolute_relocation(self) -> u32 {
        match self {
            Machine::X86_64 => 1,
            Machine::Aarch64 => 257,
        }
    }

    /// The smallest instruction in bytes: the unit of pclntab's distances.
    pub(super) fn min_instruction(self) -> u8 {
        match self {
            Machine::X86_64 => 1,
            Machine::Aarch64 => 4,
        }
    }
}

/// A loaded segment: `mem_size` bytes from `vaddr`, of which the first
/// `file_size` come from the file at `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Link-time address.
    pub vaddr: u64,
    /// Bytes in memory.
    pub mem_size: u64,
    /// Byte offset in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Whether the segment holds code.
    pub executable: bool,
}

impl Segment {
    fn file_range(&self, file_len: usize) -> Option<Range<usize>> {
        let start = usize::try_from(self.offset).ok()?;
        let end = self.offset.checked_add(self.file_size)?;
        let end = usize::try_from(end).unwrap_or(usize::MAX).min(file_len);
        (start < end).then_some(start..end)
    }
}

/// What of an ELF file is kept.
#[derive(Debug)]
pub(super) struct Elf {
    pub machine: Machine,
    pub segments: Vec<Segment>,
    pub build_id: String,
    /// File range of the RELA table the dynamic section names.
    relocations: Option<Range<usize>>,
    section_headers: Option<SectionHeaders>,
}

#[derive(Debug, Clone)]
struct SectionHeaders {
    names: Range<usize>,
}

/// A section found by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    /// Link-time address, 0 where the section is not loaded.
    pub vaddr: u64,
    /// Where its bytes are in the file.
    pub range: Range<usize>,
    /// The bytes are compressed, after a header that says how.
    pub compressed: bool,
}

impl Section {
    /// The address of a file offset within the section. Wraps where the section
    /// header lies; such an address is then found nowhere.
    pub(super) fn vaddr_of(&self, offset: usize) -> u64 {
        let distance = offset.wrapping_sub(self.range.start) as u64;
        self.vaddr.wrapping_add(distance)
    }
}

impl Elf {
    /// Reads the headers of a 64-bit little-endian ELF for amd64 or arm64.
    pub(super) fn parse(data: &[u8]) -> Result<Elf, GoBinaryError> {
        let header = check_header(data)?;
        let endian = LittleEndian;
        let machine = match header.e_machine(endian) {
            elf::EM_X86_64 => Machine::X86_64,
            elf::EM_AARCH64 => Machine::Aarch64,
            _ => return Err(GoBinaryError::WrongArch("neither amd64 nor arm64")),
        };
        let damaged = GoBinaryError::Damaged("ELF program headers");
        let Ok(headers) = header.program_headers(endian, data) else {
            return Err(damaged);
        };
        if headers.is_empty() || headers.len() > MAX_SEGMENTS {
            return Err(damaged);
        }
        let segments: Vec<Segment> = headers
            .iter()
            .filter(|header| header.p_type(endian) == elf::PT_LOAD)
            .map(|header| Segment {
                vaddr: header.p_vaddr(endian),
                mem_size: header.p_memsz(endian),
                offset: header.p_offset(endian),
                file_size: header.p_filesz(endian).min(header.p_memsz(endian)),
                executable: header.p_flags(endian).contains(elf::PF_X),
            })
            .collect();
        let mut elf = Elf {
            machine,
            segments,
            build_id: String::new(),
            relocations: None,
            section_headers: None,
        };
        elf.relocations = elf.find_relocations(data, headers);
        elf.section_headers = find_section_names(data, header);
        elf.build_id = find_build_id(data, headers)
            .or_else(|| {
                // Go's linker leaves its GNU note outside the note segment.
                let section = elf.section(data, ".note.gnu.build-id")?;
                read_build_id(data.get(section.range)?, 4)
            })
            .unwrap_or_default();
        Ok(elf)
    }

    /// Whether the file has a section table. Without one no section can be
    /// found by name, whether it is there or not.
    pub(super) fn has_sections(&self) -> bool {
        self.section_headers.is_some()
    }

    /// The section of that name whose bytes all lie in the file.
    pub(super) fn section(&self, data: &[u8], name: &str) -> Option<Section> {
        let table = self.section_headers.as_ref()?;
        let names = data.get(table.names.clone())?;
        let header = check_header(data).ok()?;
        let headers = header.section_headers(LittleEndian, data).ok()?;
        headers.iter().take(MAX_SECTIONS).find_map(|section| {
            let at = section.sh_name(LittleEndian) as usize;
            // Compared in place: looking for the end of each name first would
            // let a hostile string table cost its length for every section.
            let rest = names.get(at..)?;
            let found = rest.starts_with(name.as_bytes()) && rest.get(name.len()) == Some(&0);
            let (offset, size) = section
                .file_range(LittleEndian)
                .filter(|(_, size)| found && *size > 0)?;
            let flags = section.sh_flags(LittleEndian);
            Some(Section {
                vaddr: section.sh_addr(LittleEndian),
                range: in_file(data, offset, size)?,
                compressed: flags.contains(elf::SHF_COMPRESSED),
            })
        })
    }

    /// The file offset of a link-time address, where the file holds it.
    pub(super) fn vaddr_to_offset(&self, vaddr: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let distance = vaddr.checked_sub(segment.vaddr)?;
            (distance < segment.file_size).then(|| segment.offset.checked_add(distance))?
        })
    }

    /// The link-time address of a file offset. Neighbouring segments may share
    /// a page of the file, code wins.
    pub(super) fn offset_to_vaddr(&self, offset: u64) -> Option<u64> {
        let within = |segment: &&Segment| {
            offset
                .checked_sub(segment.offset)
                .is_some_and(|distance| distance < segment.file_size)
        };
        let mut holders = self.segments.iter().filter(within);
        let first = holders.next()?;
        let segment = if first.executable {
            first
        } else {
            holders.find(|other| other.executable).unwrap_or(first)
        };
        segment.vaddr.checked_add(offset - segment.offset)
    }

    /// The file range from a link-time address to the end of its segment.
    pub(super) fn range_from(&self, data: &[u8], vaddr: u64) -> Option<Range<usize>> {
        self.segments.iter().find_map(|segment| {
            let distance = vaddr.checked_sub(segment.vaddr)?;
            if distance >= segment.file_size {
                return None;
            }
            let range = segment.file_range(data.len())?;
            let start = range.start.checked_add(usize::try_from(distance).ok()?)?;
            (start < range.end).then_some(start..range.end)
        })
    }

    /// File ranges of segments, code left out, with their link-time addresses.
    pub(super) fn data_segments<'a>(
        &'a self,
        data: &'a [u8],
    ) -> impl Iterator<Item = Section> + 'a {
        self.segments
            .iter()
            .filter(|segment| !segment.executable)
            .filter_map(|segment| {
                Some(Section {
                    vaddr: segment.vaddr,
                    range: segment.file_range(data.len())?,
                    compressed: false,
                })
            })
    }

    /// Every relocation that stores the load address plus an addend: address of
    /// the word, addend. The words in the file may be anything (mostly 0).
    pub(super) fn relative_relocations<'a>(
        &self,
        data: &'a [u8],
    ) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        let relative = u64::from(self.machine.relative_relocation());
        self.relocations(data).filter_map(move |entry| {
            (read_u64(entry, 8)? == relative).then_some((read_u64(entry, 0)?, read_u64(entry, 16)?))
        })
    }

    /// Whether the word at this address is the address of a symbol that another
    /// file may define: what it will be is not in this one.
    pub(super) fn is_symbols_address(&self, data: &[u8], vaddr: u64) -> bool {
        // The lower half is the type, the upper the symbol (`Elf64_Rela`).
        let absolute = self.machine.absolute_relocation();
        self.relocations(data).any(|entry| {
            read_u64(entry, 0) == Some(vaddr)
                && read_u64(entry, 8).map(|i| i as u32) == Some(absolute)
        })
    }

    fn relocations<'a>(&self, data: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.relocations
            .clone()
            .and_then(|range| data.get(range))
            .unwrap_or_default()
            .chunks_exact(24)
    }

    fn find_relocations(
        &self,
        data: &[u8],
        headers: &[elf::ProgramHeader64<LittleEndian>],
    ) -> Option<Range<usize>> {
        let dynamic = headers
            .iter()
            .find_map(|header| header.dynamic(LittleEndian, data).ok().flatten())?;
        let value = |tag: elf::DynamicTag| {
            dynamic
                .iter()
                .take(MAX_DYNAMIC)
                .find(|entry| entry.d_tag(LittleEndian) == tag)
                .map(|entry| entry.d_val(LittleEndian))
        };
        let (vaddr, size) = (value(elf::DT_RELA)?, value(elf::DT_RELASZ)?);
        if size > MAX_RELOCATION_BYTES {
            return None;
        }
        in_file(data, self.vaddr_to_offset(vaddr)?, size)
    }
}

/// Ends a list of places to search where searching them would take too long.
pub(super) fn searchable(
    sections: impl Iterator<Item = Section>,
    file_len: usize,
) -> impl Iterator<Item = Section> {
    let mut left = file_len.saturating_mul(2).min(MAX_SEARCH_BYTES);
    sections.map_while(move |section| {
        left = left.checked_sub(section.range.len())?;
        Some(section)
    })
}

/// A file range, where the file holds all of it.
fn in_file(data: &[u8], offset: u64, size: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    (end <= data.len()).then_some(start..end)
}

fn check_header(data: &[u8]) -> Result<&Header, GoBinaryError> {
    if !data.starts_with(&elf::ELFMAG) {
        return Err(GoBinaryError::NotElf);
    }
    if data.get(4) == Some(&1) {
        return Err(GoBinaryError::WrongArch("a 32-bit program"));
    }
    if data.get(5) == Some(&2) {
        return Err(GoBinaryError::WrongArch("a big-endian program"));
    }
    Header::parse(data).map_err(|_| GoBinaryError::Damaged("ELF header"))
}

fn find_section_names(data: &[u8], header: &Header) -> Option<SectionHeaders> {
    let headers = header.section_headers(LittleEndian, data).ok()?;
    let index = header.section_strings_index(LittleEndian, data).ok()?;
    let (offset, size) = headers.get(index.0)?.file_range(LittleEndian)?;
    Some(SectionHeaders {
        names: in_file(data, offset, size)?,
    })
}

/// The GNU build id of the note segments.
fn find_build_id(data: &[u8], headers: &[elf::ProgramHeader64<LittleEndian>]) -> Option<String> {
    headers
        .iter()
        .filter(|header| header.p_type(LittleEndian) == elf::PT_NOTE)
        .find_map(|header| {
            let notes = header.data(LittleEndian, data).ok()?;
            read_build_id(notes, header.p_align(LittleEndian))
        })
}

fn read_build_id(notes: &[u8], align: u64) -> Option<String> {
    let notes = &notes[..notes.len().min(MAX_NOTE_BYTES)];
    let note = NoteIterator::<Header>::new(LittleEndian, align, notes)
        .ok()?
        .map_while(Result::ok)
        .find(|note| {
            note.name() == elf::ELF_NOTE_GNU && note.n_type(LittleEndian) == elf::NT_GNU_BUILD_ID
        })?;
    let id = note.desc();
    let id = &id[..id.len().min(MAX_BUILD_ID_BYTES)];
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The words of a small range of addresses as a loaded program has them, less
/// the load address: relocations over file content.
#[derive(Debug)]
pub(super) struct Words<'a> {
    bytes: &'a [u8],
    vaddr: u64,
    relocated: Vec<(u64, u64)>,
}

impl<'a> Words<'a> {
    /// `size` bytes from `vaddr`, less what the file does not hold.
    pub(super) fn at(elf: &Elf, data: &'a [u8], vaddr: u64, size: u64) -> Option<Words<'a>> {
        let range = elf.range_from(data, vaddr)?;
        let end = range
            .end
            .min(range.start.saturating_add(usize::try_from(size).ok()?));
        let last = vaddr.checked_add(size)?;
        let mut relocated: Vec<(u64, u64)> = elf
            .relative_relocations(data)
            .filter(|(at, _)| (vaddr..last).contains(at))
            // One word has one relocation; more are an attack on memory.
            .take(usize::try_from(size / 8).ok()?)
            .collect();
        relocated.sort_unstable();
        Some(Words {
            bytes: data.get(range.start..end)?,
            vaddr,
            relocated,
        })
    }

    /// The link-time address `offset` bytes in.
    pub(super) fn vaddr_of(&self, offset: u64) -> Option<u64> {
        self.vaddr.checked_add(offset)
    }

    /// The 64-bit word `offset` bytes in.
    pub(super) fn u64(&self, offset: u64) -> Option<u64> {
        let vaddr = self.vaddr_of(offset)?;
        match self.relocated.binary_search_by_key(&vaddr, |entry| entry.0) {
            Ok(index) => Some(self.relocated[index].1),
            Err(_) => read_u64(self.bytes, usize::try_from(offset).ok()?),
        }
    }
}

/// Offsets, `step`-aligned, at which `word` stands in a file range.
pub(super) fn find_u32(
    data: &[u8],
    range: Range<usize>,
    step: usize,
    word: u32,
) -> impl Iterator<Item = usize> {
    let start = range.start.next_multiple_of(step);
    let word = word.to_le_bytes();
    data.get(start..range.end)
        .unwrap_or_default()
        .chunks_exact(step)
        .enumerate()
        .filter(move |(_, chunk)| chunk.starts_with(&word))
        .map(move |(index, _)| start + index * step)
}
