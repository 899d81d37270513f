//! pclntab, the table Go's runtime itself names addresses with: header, function
//! table, pc-value tables, names and files. Reads the mapped table in place at
//! every lookup; no pass over it, no copy of it.

use std::ops::Range;

use super::bytes::{read_i32, read_text, read_u8, read_u32, read_u64, read_varint};
use super::version::{self, HEADER_SIZE, Layout};

/// Bytes of one `runtime.functab` entry: two 32-bit offsets.
const FTAB_ENTRY: usize = 8;
/// A name or path longer than this is cut. Real generic names reach hundreds.
const MAX_TEXT: usize = 4096;
/// More functions than any linker could place in 4 GiB of text.
const MAX_FUNCTIONS: u64 = 1 << 28;
/// Steps through pc-value tables one lookup may take. The largest generated
/// functions have some hundred thousand entries per table.
pub(super) const MAX_STEPS: u32 = 1 << 23;

/// The table is damaged where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damaged;

/// Where the parts of a pclntab are in the file. Ranges are checked against the
/// file's length once; what is in them is checked whenever it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pclntab {
    /// Link-time address of the header.
    pub vaddr: u64,
    /// Function count.
    pub functions: usize,
    /// Unit of pc distances in bytes.
    min_instruction: u8,
    /// Offsets of the parts from the header, in file order:
    /// names, cutab, filetab, pctab, function table.
    pub part_offsets: [u64; 5],
    names: Range<usize>,
    cutab: Range<usize>,
    filetab: Range<usize>,
    pctab: Range<usize>,
    functab: Range<usize>,
}

impl Pclntab {
    /// Reads the header at the start of `range`. None where there is none: each
    /// field is held against what the linker can write.
    pub(super) fn parse(
        data: &[u8],
        range: Range<usize>,
        vaddr: u64,
        min_instruction: u8,
    ) -> Option<Pclntab> {
        let table = data.get(range.clone())?;
        let magic = read_u32(table, 0)?;
        let known = magic == version::MAGIC_118 || magic == version::MAGIC_120;
        // Two bytes of padding, the instruction unit, the pointer size.
        if !known || table.get(4..8)? != [0, 0, min_instruction, 8] {
            return None;
        }
        let functions = read_u64(table, 8)?;
        if functions == 0 || functions > MAX_FUNCTIONS {
            return None;
        }
        // Word 3 is the text start, which is 0 since Go 1.26: not used.
        let mut part_offsets = [0; 5];
        for (index, offset) in part_offsets.iter_mut().enumerate() {
            *offset = read_u64(table, 32 + 8 * index)?;
        }
        let mut previous = HEADER_SIZE as u64;
        for offset in part_offsets {
            if offset < previous || offset >= table.len() as u64 {
                return None;
            }
            previous = offset;
        }
        let part = |index: usize| {
            let end = part_offsets.get(index + 1);
            let end = end.map_or(range.end, |end| range.start + *end as usize);
            range.start + part_offsets[index] as usize..end
        };
        let pclntab = Pclntab {
            vaddr,
            functions: usize::try_from(functions).ok()?,
            min_instruction,
            part_offsets,
            names: part(0),
            cutab: part(1),
            filetab: part(2),
            pctab: part(3),
            functab: part(4),
        };
        // The entry past the last function holds only its end address.
        (pclntab.functions * FTAB_ENTRY + 4 <= pclntab.functab.len()).then_some(pclntab)
    }

    /// The magic number that stands at the table's start.
    pub(super) fn magic(&self, data: &[u8]) -> Option<u32> {
        read_u32(data, self.names.start - self.part_offsets[0] as usize)
    }

    /// The table's parts in the mapped file.
    pub(super) fn view<'a>(&self, data: &'a [u8], layout: &'a Layout) -> View<'a> {
        // The ranges were checked against the same mapping, so that none of
        // these is ever cut short.
        let part = |range: &Range<usize>| data.get(range.clone()).unwrap_or_default();
        View {
            layout,
            functions: self.functions,
            min_instruction: u32::from(self.min_instruction),
            names: part(&self.names),
            cutab: part(&self.cutab),
            filetab: part(&self.filetab),
            pctab: part(&self.pctab),
            functab: part(&self.functab),
        }
    }
}

/// A pclntab being read.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    layout: &'a Layout,
    pub functions: usize,
    min_instruction: u32,
    names: &'a [u8],
    cutab: &'a [u8],
    filetab: &'a [u8],
    pctab: &'a [u8],
    functab: &'a [u8],
}

/// One function's record, `runtime._func`. Offsets are from the start of text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Func {
    /// Where its code begins.
    pub entry: u32,
    /// Where the next function begins.
    pub end: u32,
    /// Byte offset of the record in the function table.
    at: usize,
    /// `funcID`.
    pub id: u8,
    /// `flag`.
    pub flags: u8,
    pcdata_count: u32,
    funcdata_count: u8,
}

/// A table of values by pc, as `_func` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// Distance between the stack pointer and the return address.
    StackDelta,
    /// File number within the compilation unit.
    File,
    /// Line number.
    Line,
    /// Index in the inline tree.
    InlineTree,
}

impl<'a> View<'a> {
    /// Start of the `index`th function; one past the last gives the end of text.
    pub(super) fn entry(&self, index: usize) -> Option<u32> {
        read_u32(self.functab, index.checked_mul(FTAB_ENTRY)?)
    }

    /// The last function that begins at or before `offset`. The caller has
    /// checked that `offset` is within the text the table covers.
    pub(super) fn find(&self, offset: u32) -> Option<Func> {
        let (mut low, mut high) = (0, self.functions);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)? <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let func = self.func(low.checked_sub(1)?)?;
        (offset < func.end).then_some(func)
    }

    /// The record of the `index`th function.
    pub(super) fn func(&self, index: usize) -> Option<Func> {
        let entry = self.entry(index)?;
        let at = read_u32(self.functab, index * FTAB_ENTRY + 4)? as usize;
        let id = at.checked_add(self.layout.func_id)?;
        // The record repeats the entry: a cheap proof that this is one.
        (read_u32(self.functab, at)? == entry).then_some(())?;
        Some(Func {
            entry,
            end: self.entry(index + 1)?,
            at,
            id: read_u8(self.functab, id)?,
            flags: read_u8(self.functab, id + 1)?,
            pcdata_count: read_u32(self.functab, at + 28)?,
            funcdata_count: read_u8(self.functab, id + 3)?,
        })
    }

    /// The function's name.
    pub(super) fn func_name(&self, func: &Func) -> Option<String> {
        self.name(read_i32(self.functab, func.at + 4)?)
    }

    /// Whether the function has this name.
    pub(super) fn func_name_is(&self, func: &Func, name: &[u8]) -> bool {
        let rest = self.func_name_on(func);
        rest.is_some_and(|rest| rest.starts_with(name) && rest.get(name.len()) == Some(&0))
    }

    /// Whether the function's name begins like this.
    pub(super) fn func_name_begins(&self, func: &Func, prefix: &[u8]) -> bool {
        self.func_name_on(func)
            .is_some_and(|rest| rest.starts_with(prefix))
    }

    /// The bytes of the function's name and all that follows it.
    fn func_name_on(&self, func: &Func) -> Option<&'a [u8]> {
        let offset = read_i32(self.functab, func.at + 4)?;
        self.names.get(usize::try_from(offset).ok()?..)
    }

    /// The name at an offset in the name table.
    pub(super) fn name(&self, offset: i32) -> Option<String> {
        read_text(self.names, usize::try_from(offset).ok()?, MAX_TEXT)
    }

    /// The line of the `func` keyword, where this version tells it.
    pub(super) fn start_line(&self, func: &Func) -> Option<u32> {
        let line = read_i32(self.functab, func.at + self.layout.func_start_line?)?;
        Some(u32::try_from(line).unwrap_or(0))
    }

    /// The `index`th function data: an offset from `gofunc`.
    pub(super) fn funcdata(&self, func: &Func, index: u32) -> Option<u32> {
        if index >= u32::from(func.funcdata_count) {
            return None;
        }
        let entry = self
            .tables(func)
            .checked_add((func.pcdata_count as usize).checked_add(index as usize)? * 4)?;
        read_u32(self.functab, entry).filter(|offset| *offset != u32::MAX)
    }

    /// Offset of the pcdata array, which ends the fixed part of the record.
    fn tables(&self, func: &Func) -> usize {
        func.at + self.layout.func_id + 4
    }

    /// The file of a number from [`Table::File`], empty where it has none.
    pub(super) fn file(&self, func: &Func, number: i32) -> Result<String, Damaged> {
        let unit = read_u32(self.functab, func.at + 32).ok_or(Damaged)?;
        let number = u32::try_from(number).map_err(|_| Damaged)?;
        let index = unit.checked_add(number).ok_or(Damaged)? as usize;
        match read_u32(self.cutab, index * 4).ok_or(Damaged)? {
            u32::MAX => Ok(String::new()),
            offset => read_text(self.filetab, offset as usize, MAX_TEXT).ok_or(Damaged),
        }
    }

    /// The value a table has at `offset`, or -1 where it has none, which is what
    /// Go's runtime answers too (`runtime.pcvalue` in its lenient form).
    /// Damaged where the table does not end, or `steps` ran out.
    pub(super) fn value(
        &self,
        func: &Func,
        table: Table,
        offset: u32,
        steps: &mut u32,
    ) -> Result<i32, Damaged> {
        let field = match table {
            Table::StackDelta => func.at + 16,
            Table::File => func.at + 20,
            Table::Line => func.at + 24,
            Table::InlineTree if func.pcdata_count <= version::PCDATA_INL_TREE_INDEX => {
                return Ok(-1);
            }
            Table::InlineTree => self.tables(func) + 4 * version::PCDATA_INL_TREE_INDEX as usize,
        };
        let start = read_u32(self.functab, field).ok_or(Damaged)?;
        if start == 0 {
            return Ok(-1);
        }
        let target = offset.checked_sub(func.entry).ok_or(Damaged)?;
        let table = self.pctab.get(start as usize..).ok_or(Damaged)?;
        step_to(table, u64::from(target), self.min_instruction, steps)
    }
}

/// Walks pairs of a value change (zigzag) and a pc distance until the range that
/// holds `target`, both from -1 and 0 (`runtime.step`). A value change of 0 ends
/// the table, except as the first.
fn step_to(mut table: &[u8], target: u64, unit: u32, steps: &mut u32) -> Result<i32, Damaged> {
    let mut value = -1i32;
    let mut pc = 0u64;
    // Counted in a local: this loop is what a lookup spends its time in.
    let mut left = *steps;
    while left > 0 {
        left -= 1;
        // Nearly all pairs are two single bytes.
        let (change, distance) = match table {
            [change, distance, rest @ ..] if (change | distance) & 0x80 == 0 => {
                table = rest;
                (u32::from(*change), u32::from(*distance))
            }
            // The end is a single byte, that may be the last of all.
            [0, ..] if pc != 0 => (0, 0),
            _ => {
                let (change, taken) = read_varint(table, 0).ok_or(Damaged)?;
                let (distance, more) = read_varint(table, taken).ok_or(Damaged)?;
                table = &table[taken + more..];
                (change, distance)
            }
        };
        if change == 0 && pc != 0 {
            *steps = left;
            return Ok(-1);
        }
        value = value.wrapping_add(((change >> 1) as i32) ^ -((change & 1) as i32));
        pc += u64::from(distance) * u64::from(unit);
        if target < pc {
            *steps = left;
            return Ok(value);
        }
    }
    Err(Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(table: &[u8], target: u64) -> Result<i32, Damaged> {
        step_to(table, target, 1, &mut MAX_STEPS.clone())
    }

    #[test]
    fn values_by_pc() {
        // -1+8=7 over 4 bytes, 7-3=4 over 300 bytes, end.
        let table = [0x10, 4, 0x05, 0xac, 0x02, 0];
        assert_eq!(at(&table, 0), Ok(7));
        assert_eq!(at(&table, 3), Ok(7));
        assert_eq!(at(&table, 4), Ok(4));
        assert_eq!(at(&table, 303), Ok(4));
        assert_eq!(at(&table, 304), Ok(-1), "past the table");
        assert_eq!(step_to(&table, 15, 4, &mut 10), Ok(7), "arm64 counts words");
        assert_eq!(step_to(&table, 16, 4, &mut 10), Ok(4));
    }

    #[test]
    fn first_change_may_be_zero() {
        assert_eq!(at(&[0, 5, 2, 5, 0], 2), Ok(-1));
        assert_eq!(at(&[0, 5, 2, 5, 0], 7), Ok(0));
        assert_eq!(at(&[0, 0xac, 0x02, 2, 5, 0], 299), Ok(-1));
        assert_eq!(at(&[0, 0xac, 0x02, 2, 5, 0], 300), Ok(0));
        assert_eq!(
            at(&[0, 5, 2, 5, 0, 0x80], 10),
            Ok(-1),
            "the end is one byte"
        );
    }

    #[test]
    fn hostile_tables_end() {
        assert_eq!(at(&[], 0), Err(Damaged));
        assert_eq!(at(&[2], 0), Err(Damaged), "cut off in a pair");
        assert_eq!(at(&[0x80; 64], 0), Err(Damaged), "endless number");
        assert_eq!(at(&[2, 0].repeat(100), 5), Err(Damaged), "never advances");
        assert_eq!(
            step_to(&[2, 0].repeat(1 << 20), 5, 1, &mut 1000),
            Err(Damaged),
            "the budget ends it"
        );
    }

    #[test]
    fn headers_are_checked() {
        let mut table = vec![0u8; 4096];
        table[..4].copy_from_slice(&version::MAGIC_120.to_le_bytes());
        table[6] = 1;
        table[7] = 8;
        let mut put = |word: usize, value: u64| {
            table[8 * word..8 * word + 8].copy_from_slice(&value.to_le_bytes());
            Pclntab::parse(&table, 0..4096, 0x1000, 1).map(|pclntab| pclntab.functions)
        };
        for (word, offset) in [(4, 72), (5, 100), (6, 200), (7, 300), (8, 400)] {
            put(word, offset);
        }
        assert_eq!(put(1, 3), Some(3));
        assert_eq!(put(1, 1 << 60), None, "more functions than bytes");
        assert_eq!(put(1, u64::MAX), None);
        assert_eq!(put(1, 1000), None, "more functions than the table holds");
        assert_eq!(put(1, 0), None);
        assert_eq!(put(1, 3), Some(3));
        assert_eq!(put(5, 1 << 60), None, "a part past the end");
        assert_eq!(put(5, 50), None, "a part before the header's end");
        assert_eq!(put(5, 250), None, "parts out of order");
        assert_eq!(put(5, 100), Some(3));
        assert_eq!(Pclntab::parse(&table, 0..4096, 0, 4), None, "wrong machine");
        assert_eq!(Pclntab::parse(&table, 0..5000, 0, 1), None, "past the file");
        assert_eq!(Pclntab::parse(&table, 0..40, 0, 1), None, "cut header");
    }
}
