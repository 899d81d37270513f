//! Call frame information (`.eh_frame`): how to step from an instruction of C
//! code to its caller. Reads a mapped file in place; knows no process, and of
//! DWARF's rules only those that compilers write for ordinary functions.

use std::{ops::Range, sync::OnceLock};

use gimli::{
    AArch64, BaseAddresses, CfaRule, EhFrame, FrameDescriptionEntry, LittleEndian, Register,
    RegisterRule, UnwindContext, UnwindSection, X86_64,
};
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

/// Bytes of a description whose instructions are run; real ones have tens, the
/// largest some thousands.
const MAX_ENTRY_BYTES: usize = 8 << 10;
/// Bytes of a table without an index that are read through.
const MAX_UNINDEXED_BYTES: usize = 16 << 20;
/// Descriptions taken of a table without an index.
const MAX_UNINDEXED: usize = 1 << 18;
/// How an `.eh_frame_hdr` begins, as all linkers write it: version 1; the table's
/// address, from here, in 4 bytes; the number of rows in 4; and rows of two
/// numbers of 4 bytes, from the index's start.
const INDEX_HEAD: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
/// Program headers looked at.
const MAX_SEGMENTS: usize = 1024;

/// How the caller's frame is found from a frame. All offsets in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The register that the caller's stack pointer is reckoned from.
    pub base: Base,
    /// What to add to it: gives the caller's stack pointer (the CFA).
    pub offset: i64,
    /// The caller's frame pointer.
    pub fp: SavedFp,
    /// Where the frame returns to.
    pub return_address: ReturnAddress,
}

/// What a caller's stack pointer is reckoned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The stack pointer.
    Sp,
    /// The frame pointer.
    Fp,
}

/// Where a caller's frame pointer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedFp {
    /// In its register.
    Same,
    /// In the stack, this far from the caller's stack pointer.
    At(i64),
    /// Not to be had.
    Lost,
}

/// Where a return address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReturnAddress {
    /// In the stack, this far from the caller's stack pointer.
    At(i64),
    /// In the link register (arm64).
    Register,
    /// Nowhere: the outermost frame of its thread.
    Outermost,
}

/// What is known of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Native {
    /// How to step from it.
    Rule(Rule),
    /// It returns from a signal handler: the registers of the interrupted
    /// instruction lie above the stack pointer.
    SignalReturn,
}

/// Where a file keeps its call frame information.
#[derive(Debug)]
pub(super) struct CallFrames {
    arm64: bool,
    segments: Vec<Loaded>,
    /// `.eh_frame`, and its address.
    table: (Range<usize>, u64),
    /// `.eh_frame_hdr`, its index by address, and its address.
    index: Option<(Range<usize>, u64)>,
    /// Stands in for an index: addresses, and offsets in the table.
    found: OnceLock<Vec<(u64, usize)>>,
}

/// A loaded piece of the file.
#[derive(Debug)]
struct Loaded {
    offset: u64,
    vaddr: u64,
    len: u64,
}

type Header = elf::FileHeader64<object::LittleEndian>;
type Slice<'a> = gimli::EndianSlice<'a, LittleEndian>;

impl CallFrames {
    /// Finds the tables of an ELF file; `None` where it has none.
    pub(super) fn find(data: &[u8]) -> Option<CallFrames> {
        let endian = object::LittleEndian;
        let header = Header::parse(data).ok()?;
        let headers = header.program_headers(endian, data).ok()?;
        let headers = headers.get(..headers.len().min(MAX_SEGMENTS))?;
        let segments: Vec<Loaded> = headers
            .iter()
            .filter(|header| header.p_type(endian) == elf::PT_LOAD)
            .map(|header| Loaded {
                offset: header.p_offset(endian),
                vaddr: header.p_vaddr(endian),
                len: header.p_filesz(endian),
            })
            .collect();
        let mut frames = CallFrames {
            arm64: header.e_machine(endian) == elf::EM_AARCH64,
            segments,
            table: (0..0, 0),
            index: None,
            found: OnceLock::new(),
        };
        let indexed = headers
            .iter()
            .find(|header| header.p_type(endian) == elf::PT_GNU_EH_FRAME)
            .and_then(|header| {
                let vaddr = header.p_vaddr(endian);
                let start = usize::try_from(header.p_offset(endian)).ok()?;
                let len = usize::try_from(header.p_filesz(endian)).ok()?;
                let range = start..start.checked_add(len)?;
                frames.follow_index(data, range, vaddr)
            });
        match indexed {
            Some((table, index)) => (frames.table, frames.index) = (table, Some(index)),
            None => {
                let sections = header.section_headers(endian, data).ok()?;
                let names = header.section_strings_index(endian, data).ok()?;
                let names = sections.get(names.0)?.strings(endian, data).ok()??;
                let section = sections
                    .iter()
                    .find(|section| section.name(endian, names) == Ok(b".eh_frame"))?;
                let bytes = section.data(endian, data).ok()?;
                let start = usize::try_from(section.sh_offset(endian)).ok()?;
                frames.table = (
                    start..start.checked_add(bytes.len())?,
                    section.sh_addr(endian),
                );
            }
        }
        Some(frames)
    }

    /// The table that the index at `range` is of, and the index.
    #[expect(clippy::type_complexity, reason = "two places and their addresses")]
    fn follow_index(
        &self,
        data: &[u8],
        range: Range<usize>,
        vaddr: u64,
    ) -> Option<((Range<usize>, u64), (Range<usize>, u64))> {
        let index = data.get(range.clone())?;
        if !index.starts_with(&INDEX_HEAD) {
            return None;
        }
        let distance = signed(index, 4)?;
        let table_vaddr = vaddr.checked_add(4)?.checked_add_signed(distance)?;
        let segment = self.segments.iter().find(|s| s.holds_vaddr(table_vaddr))?;
        let start = segment
            .offset
            .checked_add(table_vaddr.wrapping_sub(segment.vaddr))?;
        let end = segment.offset.checked_add(segment.len)?;
        let start = usize::try_from(start).ok()?;
        let end = usize::try_from(end).ok()?.min(data.len());
        (start < end).then_some(((start..end, table_vaddr), (range, vaddr)))
    }

    /// The offset in the table of the entry for an address, by the index.
    fn search(&self, index: &[u8], index_vaddr: u64, vaddr: u64) -> Option<usize> {
        let wanted = i64::try_from(i128::from(vaddr) - i128::from(index_vaddr)).ok()?;
        let count = u32::from_le_bytes(*index.get(8..)?.first_chunk()?) as usize;
        let rows = index.get(12..)?;
        let (mut low, mut high) = (0, count.min(rows.len() / 8));
        while low < high {
            let middle = low + (high - low) / 2;
            if signed(rows, middle * 8)? <= wanted {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let distance = signed(rows, low.checked_sub(1)? * 8 + 4)?;
        let entry = index_vaddr.checked_add_signed(distance)?;
        usize::try_from(entry.checked_sub(self.table.1)?).ok()
    }

    /// What is known of the instruction at a file offset; `None` where nothing
    /// is, or only what is not understood here.
    pub(super) fn at(&self, data: &[u8], file_offset: u64) -> Option<Native> {
        let segment = self.segments.iter().find(|s| s.holds_offset(file_offset))?;
        let vaddr = segment
            .vaddr
            .checked_add(file_offset.wrapping_sub(segment.offset))?;
        let table = EhFrame::new(data.get(self.table.0.clone())?, LittleEndian);
        let bases = BaseAddresses::default().set_eh_frame(self.table.1);
        let offset = match &self.index {
            Some((range, index_vaddr)) => {
                self.search(data.get(range.clone())?, *index_vaddr, vaddr)?
            }
            None => self.look_up(&table, &bases, vaddr)?,
        };
        let entry = table
            .fde_from_offset(
                &bases,
                gimli::EhFrameOffset(offset),
                EhFrame::cie_from_offset,
            )
            .ok()?;
        let small =
            entry.entry_len() <= MAX_ENTRY_BYTES && entry.cie().entry_len() <= MAX_ENTRY_BYTES;
        if !small || !entry.contains(vaddr) {
            return None;
        }
        if entry.is_signal_trampoline() {
            return Some(Native::SignalReturn);
        }
        self.rule(&table, &bases, &entry, vaddr).map(Native::Rule)
    }

    /// The entry for an address, from a table without an index: made once.
    fn look_up(
        &self,
        table: &EhFrame<Slice<'_>>,
        bases: &BaseAddresses,
        vaddr: u64,
    ) -> Option<usize> {
        let found = self.found.get_or_init(|| {
            let mut found = Vec::new();
            if self.table.0.len() > MAX_UNINDEXED_BYTES {
                return found;
            }
            let mut entries = table.entries(bases);
            while let Ok(Some(entry)) = entries.next()
                && found.len() < MAX_UNINDEXED
            {
                if let gimli::CieOrFde::Fde(partial) = entry
                    && let Ok(entry) = partial.parse(EhFrame::cie_from_offset)
                {
                    found.push((entry.initial_address(), entry.offset()));
                }
            }
            found.sort_unstable();
            found
        });
        let after = found.partition_point(|(start, _)| *start <= vaddr);
        found.get(after.checked_sub(1)?).map(|(_, offset)| *offset)
    }

    /// The rule at an address, where it is of the kinds known here.
    fn rule(
        &self,
        table: &EhFrame<Slice<'_>>,
        bases: &BaseAddresses,
        entry: &FrameDescriptionEntry<Slice<'_>>,
        vaddr: u64,
    ) -> Option<Rule> {
        let (sp, fp) = match self.arm64 {
            true => (AArch64::SP, AArch64::X29),
            false => (X86_64::RSP, X86_64::RBP),
        };
        let mut context = UnwindContext::new();
        let row = entry
            .unwind_info_for_address(table, bases, &mut context, vaddr)
            .ok()?;
        let (base, offset) = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } if *register == sp => {
                (Base::Sp, *offset)
            }
            CfaRule::RegisterAndOffset { register, offset } if *register == fp => {
                (Base::Fp, *offset)
            }
            _ => return None,
        };
        let register: Register = entry.cie().return_address_register();
        let return_address = match row.register(register) {
            Some(RegisterRule::Offset(offset)) => ReturnAddress::At(offset),
            Some(RegisterRule::Undefined) => ReturnAddress::Outermost,
            Some(RegisterRule::SameValue) | None if self.arm64 => ReturnAddress::Register,
            _ => return None,
        };
        let fp = match row.register(fp) {
            Some(RegisterRule::SameValue) | None => SavedFp::Same,
            Some(RegisterRule::Offset(offset)) => SavedFp::At(offset),
            _ => SavedFp::Lost,
        };
        Some(Rule {
            base,
            offset,
            fp,
            return_address,
        })
    }
}

/// A signed 32-bit number.
fn signed(data: &[u8], at: usize) -> Option<i64> {
    let bytes = data.get(at..)?.first_chunk()?;
    Some(i64::from(i32::from_le_bytes(*bytes)))
}

impl Loaded {
    fn holds_vaddr(&self, vaddr: u64) -> bool {
        vaddr.wrapping_sub(self.vaddr) < self.len
    }

    fn holds_offset(&self, offset: u64) -> bool {
        offset.wrapping_sub(self.offset) < self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This test's own program, and offsets in it where functions begin.
    fn program() -> (Vec<u8>, Vec<u64>) {
        let data = std::fs::read("/proc/self/exe").unwrap();
        let maps = std::fs::read("/proc/self/maps").unwrap();
        let lines = super::super::maps::parse(&maps);
        let functions: [u64; 3] = [
            CallFrames::find as *const () as u64,
            program as *const () as u64,
            super::super::maps::parse as *const () as u64,
        ];
        let offset = |address: &u64| {
            let line = lines
                .iter()
                .find(|line| (line.start..line.end).contains(address));
            let line = line.unwrap();
            address - line.start + line.offset
        };
        (data, functions.iter().map(offset).collect())
    }

    /// The rule on a function's first instruction.
    fn first() -> Native {
        let (offset, return_address) = match cfg!(target_arch = "aarch64") {
            true => (0, ReturnAddress::Register),
            false => (8, ReturnAddress::At(-8)),
        };
        Native::Rule(Rule {
            base: Base::Sp,
            offset,
            fp: SavedFp::Same,
            return_address,
        })
    }

    #[test]
    fn functions_begin_with_their_callers_frame() {
        let (mut data, functions) = program();
        let frames = CallFrames::find(&data).unwrap();
        assert!(frames.index.is_some());
        let later: Vec<_> = functions
            .iter()
            .map(|offset| frames.at(&data, offset + 40))
            .collect();
        for offset in &functions {
            assert_eq!(frames.at(&data, *offset), Some(first()));
        }
        assert!(
            later
                .iter()
                .all(|native| native.is_some_and(|n| n != first()))
        );

        // The same without the index, which a program header leads to.
        let headers = &mut data[64..64 + 56 * 32];
        let (headers, _) = headers.as_chunks_mut::<56>();
        let kind = elf::PT_GNU_EH_FRAME.0.to_le_bytes();
        let header = headers.iter_mut().find(|header| header[..4] == kind);
        header.unwrap()[..4].fill(0);
        let frames = CallFrames::find(&data).unwrap();
        assert!(frames.index.is_none());
        let found = |offset: u64| frames.at(&data, offset);
        if frames.table.0.len() <= MAX_UNINDEXED_BYTES {
            let again: Vec<_> = functions.iter().map(|offset| found(offset + 40)).collect();
            assert_eq!(again, later);
        } else {
            assert!(functions.iter().all(|offset| found(*offset).is_none()));
        }
    }

    #[test]
    fn damaged_tables_say_nothing_or_something_else() {
        let (mut data, functions) = program();
        let frames = CallFrames::find(&data).unwrap();
        let (index, _) = frames.index.clone().unwrap();
        let table = frames.table.0.start..frames.table.0.start + 64 * 1024;
        let mut state = 1u64;
        let mut random = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % below
        };
        for round in 0..4_000 {
            let at = match round % 3 {
                0 => random(1024),
                1 => index.start + random(64),
                _ => table.start + random(table.len()),
            };
            let byte = data[at];
            data[at] = random(256) as u8;
            if let Some(damaged) = CallFrames::find(&data)
                && damaged.index.is_some()
            {
                for offset in &functions {
                    let _ = damaged.at(&data, *offset);
                }
            }
            data[at] = byte;
        }
        for length in [
            0,
            1,
            63,
            64,
            100,
            1000,
            index.start,
            index.end,
            table.start + 7,
        ] {
            let cut = &data[..length.min(data.len())];
            if let Some(frames) = CallFrames::find(cut) {
                assert_eq!(frames.at(cut, functions[0]), None);
            }
        }
    }
}
