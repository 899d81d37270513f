//! Finds pclntab and the runtime's moduledata, and proves that they are those of
//! one program. What `runtime.moduledataverify1` checks at start is checked here,
//! so that a table that merely looks like one is never used.

use std::ops::Range;

use super::GoBinaryError;
use super::bytes::read_u64;
use super::elf::{Elf, Section, Words, find_u32, searchable};
use super::pclntab::Pclntab;
use super::version::{GoVersion, Layout, moduledata as at};

/// Places that look like a pclntab header or a moduledata before giving up.
const MAX_CANDIDATES: usize = 8;
/// Text sections: one, but for very large arm64 programs linked externally.
const MAX_TEXT_SECTIONS: u64 = 64;

/// The sections that may hold pclntab: 1.25 and before have the second name in
/// PIE. An external linker may have merged it into the last ones.
const PCLNTAB_SECTIONS: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];
const MERGED_SECTIONS: [&str; 2] = [".data.rel.ro", ".rodata"];
/// The sections that may hold moduledata: 1.26 and later, earlier, merged.
const MODULEDATA_SECTIONS: [&str; 4] = [".go.module", ".noptrdata", ".data", ".data.rel.ro"];

/// A part of the text with its own base (`runtime.textsect`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TextSection {
    /// Offset in the text as pclntab counts.
    start: u64,
    end: u64,
    /// Link-time address.
    vaddr: u64,
}

/// A program's tables, found and proven.
#[derive(Debug)]
pub(super) struct Module {
    pub pclntab: Pclntab,
    pub layout: &'static Layout,
    /// Addresses pclntab covers.
    pub pcs: Range<u64>,
    /// Addresses of Go's text.
    pub text: Range<u64>,
    /// File range that inline trees are offsets into.
    pub gofunc: Range<usize>,
    /// File range of the type descriptors and their names; empty where that
    /// makes no sense.
    pub types: Range<usize>,
    /// Where they are in memory, as linked.
    pub types_vaddr: u64,
    text_sections: Vec<TextSection>,
}

impl Module {
    /// Finds the tables of a program of that version.
    pub(super) fn find(
        elf: &Elf,
        data: &[u8],
        version: &GoVersion,
    ) -> Result<Module, GoBinaryError> {
        let layouts = Layout::candidates(version);
        if layouts.is_empty() {
            return Err(GoBinaryError::UnsupportedVersion(version.to_string()));
        }
        let mut seen = 0;
        for section in pclntab_places(elf, data) {
            let magic_at = |magic| find_u32(data, section.range.clone(), 8, magic);
            let exact = PCLNTAB_SECTIONS
                .iter()
                .any(|name| elf.section(data, name).as_ref() == Some(&section));
            let offsets: Box<dyn Iterator<Item = usize>> = if exact {
                Box::new(std::iter::once(section.range.start))
            } else {
                Box::new(magic_at(layouts[0].magic))
            };
            for offset in offsets {
                let vaddr = section.vaddr_of(offset);
                let min_instruction = elf.machine.min_instruction();
                let range = offset..section.range.end;
                let Some(pclntab) = Pclntab::parse(data, range, vaddr, min_instruction) else {
                    continue;
                };
                seen += 1;
                if let Some(module) = Module::of(elf, data, &pclntab, layouts) {
                    return Ok(module);
                }
                if seen >= MAX_CANDIDATES {
                    break;
                }
            }
        }
        match seen {
            0 => Err(GoBinaryError::NoPclntab),
            _ if version.is_newer_than_known() => {
                Err(GoBinaryError::UnsupportedVersion(version.to_string()))
            }
            _ => Err(GoBinaryError::Damaged("Go's moduledata")),
        }
    }

    /// The moduledata that points to this pclntab, if one proves right.
    fn of(elf: &Elf, data: &[u8], pclntab: &Pclntab, layouts: &'static [Layout]) -> Option<Module> {
        moduledata_places(elf, data, pclntab)
            .into_iter()
            .find_map(|vaddr| {
                let words = Words::at(elf, data, vaddr, at::SIZE)?;
                layouts
                    .iter()
                    .filter(|layout| pclntab.magic(data) == Some(layout.magic))
                    .find_map(|layout| Module::prove(elf, data, pclntab, (&words, layout)))
            })
    }

    fn prove(
        elf: &Elf,
        data: &[u8],
        pclntab: &Pclntab,
        (words, layout): (&Words<'_>, &'static Layout),
    ) -> Option<Module> {
        let points_to = |word: u64, part: usize| {
            Some(words.u64(word)? == pclntab.vaddr.checked_add(pclntab.part_offsets[part])?)
        };
        let parts = [
            (at::FUNCNAMETAB, 0),
            (at::CUTAB, 1),
            (at::FILETAB, 2),
            (at::PCTAB, 3),
            (at::PCLNTABLE, 4),
            (at::FTAB, 4),
        ];
        let right = words.u64(at::PC_HEADER)? == pclntab.vaddr
            && parts
                .iter()
                .all(|(word, part)| points_to(*word, *part) == Some(true))
            && words.u64(at::FTAB + 8)? == pclntab.functions as u64 + 1;
        let text = words.u64(at::TEXT)?..words.u64(at::ETEXT)?;
        let pcs = words.u64(at::MINPC)?..words.u64(at::MAXPC)?;
        let ordered = text.start <= pcs.start && pcs.start < pcs.end && pcs.end <= text.end;
        let mapped = elf.segments.iter().any(|segment| {
            let end = text.end.checked_sub(segment.vaddr);
            segment.executable
                && text.start >= segment.vaddr
                && end.is_some_and(|end| end <= segment.mem_size)
        });
        if !right || !ordered || !mapped {
            return None;
        }
        let module = Module {
            pclntab: pclntab.clone(),
            layout,
            pcs,
            text,
            gofunc: elf.range_from(data, words.u64(layout.gofunc)?)?,
            types: types(elf, data, words, layout).unwrap_or_default(),
            types_vaddr: words.u64(layout.types.0)?,
            text_sections: read_text_sections(elf, data, words, layout)?,
        };
        let view = pclntab.view(data, layout);
        let first = module.offset_to_vaddr(view.entry(0)?)?;
        let last = module.offset_to_vaddr(view.entry(pclntab.functions)?)?;
        let funcs = view.func(0).is_some() && view.func(pclntab.functions - 1).is_some();
        (first == module.pcs.start && last == module.pcs.end && funcs).then_some(module)
    }

    /// pclntab's text offset of a link-time address within `pcs`.
    pub(super) fn vaddr_to_offset(&self, vaddr: u64) -> Option<u32> {
        if !self.pcs.contains(&vaddr) {
            return None;
        }
        let offset = if self.text_sections.is_empty() {
            vaddr - self.text.start
        } else {
            self.text_sections.iter().find_map(|section| {
                let distance = vaddr.checked_sub(section.vaddr)?;
                (distance < section.end - section.start).then_some(section.start + distance)
            })?
        };
        u32::try_from(offset).ok()
    }

    /// The reverse. The end of the last text section counts as in it.
    pub(super) fn offset_to_vaddr(&self, offset: u32) -> Option<u64> {
        let offset = u64::from(offset);
        let Some(last) = self.text_sections.last() else {
            return self.text.start.checked_add(offset);
        };
        self.text_sections
            .iter()
            .find(|section| (section.start..section.end).contains(&offset))
            .or((offset == last.end).then_some(last))
            .and_then(|section| section.vaddr.checked_add(offset - section.start))
    }
}

/// Where pclntab may be, likeliest first: its own section, one it was merged
/// into, any segment that is not code.
fn pclntab_places<'a>(elf: &'a Elf, data: &'a [u8]) -> impl Iterator<Item = Section> + 'a {
    let sections = PCLNTAB_SECTIONS
        .into_iter()
        .chain(MERGED_SECTIONS)
        .filter_map(|name| elf.section(data, name));
    searchable(sections.chain(elf.data_segments(data)), data.len())
}

/// Addresses at which a word pointing to pclntab is followed by one pointing to
/// its names, as moduledata begins.
fn moduledata_places(elf: &Elf, data: &[u8], pclntab: &Pclntab) -> Vec<u64> {
    let header = pclntab.vaddr;
    let Some(names) = header.checked_add(pclntab.part_offsets[0]) else {
        return Vec::new();
    };
    // In the file, where it holds what the loaded program holds.
    let sections = MODULEDATA_SECTIONS
        .into_iter()
        .filter_map(|name| elf.section(data, name))
        .chain(elf.data_segments(data).filter(|_| !elf.has_sections()));
    let mut places: Vec<u64> = searchable(sections, data.len())
        .flat_map(|section| {
            let candidates = find_u32(data, section.range.clone(), 8, header as u32);
            candidates
                .filter(|offset| {
                    read_u64(data, *offset) == Some(header)
                        && read_u64(data, *offset + 8) == Some(names)
                })
                .map(move |offset| section.vaddr_of(offset))
        })
        .take(MAX_CANDIDATES)
        .collect();
    if places.is_empty() {
        // In a PIE, where it is written by relocations.
        places.extend(
            elf.relative_relocations(data)
                .filter(|(_, addend)| *addend == header)
                .map(|(place, _)| place)
                .take(MAX_CANDIDATES),
        );
    }
    places
}

/// Where the type descriptors are.
fn types(elf: &Elf, data: &[u8], words: &Words<'_>, layout: &Layout) -> Option<Range<usize>> {
    let (start, end) = layout.types;
    let (start, end) = (words.u64(start)?, words.u64(end)?);
    let len = usize::try_from(end.checked_sub(start)?).ok()?;
    let range = elf.range_from(data, start)?;
    Some(range.start..range.end.min(range.start.checked_add(len)?))
}

/// The text sections, empty for a text in one piece. None where the words are
/// not those of a slice of them: the layout does not fit.
fn read_text_sections(
    elf: &Elf,
    data: &[u8],
    words: &Words<'_>,
    layout: &Layout,
) -> Option<Vec<TextSection>> {
    let vaddr = words.u64(layout.textsectmap)?;
    let count = words.u64(layout.textsectmap + 8)?;
    let capacity = words.u64(layout.textsectmap + 16)?;
    if count != capacity || count == 0 || count > MAX_TEXT_SECTIONS {
        return None;
    }
    // In a plugin the table is a symbol's that the host may have too. Of one
    // section nothing in it is needed.
    if count == 1 && elf.is_symbols_address(data, words.vaddr_of(layout.textsectmap)?) {
        return Some(Vec::new());
    }
    let table = Words::at(elf, data, vaddr, count * 24)?;
    let mut sections = Vec::new();
    for index in 0..count {
        let section = TextSection {
            start: table.u64(index * 24)?,
            end: table.u64(index * 24 + 8)?,
            vaddr: table.u64(index * 24 + 16)?,
        };
        if section.start > section.end {
            return None;
        }
        sections.push(section);
    }
    // Of a single section Go reads the base from moduledata.text instead.
    if count == 1 {
        sections.clear();
    }
    Some(sections)
}
