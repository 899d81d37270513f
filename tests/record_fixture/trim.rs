//! Zeroes of a file what the replay of some records does not need. Finds that
//! out by trying, so that it knows nothing of Go's tables.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use goprof::gobinary::{GoFrame, GoFunction};
use goprof::process::code::Native;
use goprof::process::{Object, Process};

/// The smallest piece that is zeroed, in bytes.
const PIECE: usize = 1024;
/// Bytes at the start that are kept: the ELF header and program headers.
const HEADERS: usize = 4096;
/// The same of the vdso, which is small.
const VDSO_PIECE: usize = 64;
/// An ELF header and a few program headers.
const VDSO_HEADERS: usize = 320;

/// The link-time address of every word of the records that may be an address
/// in Go's code, and of the byte before it, whichever of them the present way
/// of unwinding uses.
pub fn code_words(records: &[Vec<u64>], process: &Process) -> BTreeSet<u64> {
    let words = records.iter().flatten();
    words
        .flat_map(|word| [*word, word.wrapping_sub(1)])
        .filter_map(|address| process.locate(address)?.go_address(address))
        .collect()
}

/// What the tables say of an address.
#[derive(PartialEq)]
struct Facts {
    function: Option<GoFunction>,
    stack_delta: Option<i32>,
    frames: Option<Vec<GoFrame>>,
    /// How C there is left.
    native: Option<Native>,
    /// How assembly begins: by that, code that returns from a signal handler
    /// is known.
    begins: Option<[u8; 8]>,
}

/// What a replay makes of a file.
pub type Replayed<'a> = &'a dyn Fn(&Path) -> Vec<u8>;

/// What is to stay as it is.
pub struct Needs<'a> {
    /// What Go's tables say of these link-time addresses.
    pub addresses: BTreeSet<u64>,
    /// What a replay makes of a file.
    pub replayed: Replayed<'a>,
}

/// The binary with zeros in place of what neither recognising it nor `needs`
/// ask for.
pub fn trim(binary: &Path, needs: &Needs<'_>) -> Vec<u8> {
    let whole = std::fs::read(binary).expect("read the program");
    let original = open(binary).expect("the program is Go's");
    // Of the tables of the copy the original's facts are read no more.
    let facts: Vec<(u64, Facts)> = needs
        .addresses
        .iter()
        .map(|address| (*address, facts(&original, *address)))
        .collect();
    let same_tables = |path: &Path| {
        let object = open(path);
        object.is_some_and(|object| says_the_same(&object, &original, &facts))
    };
    trim_by(whole, PIECE, HEADERS, needs.replayed, &same_tables)
}

/// The vdso with zeros in place of what a replay does not need: its code, most
/// of all.
pub fn trim_vdso(vdso: &[u8], replayed: Replayed<'_>) -> Vec<u8> {
    trim_by(vdso.to_vec(), VDSO_PIECE, VDSO_HEADERS, replayed, &|_| true)
}

/// Zeroes what lies behind the headers, in pieces, as long as the replay comes
/// to the same and `is_sound` says so.
fn trim_by(
    whole: Vec<u8>,
    piece: usize,
    headers: usize,
    replayed: Replayed<'_>,
    is_sound: &dyn Fn(&Path) -> bool,
) -> Vec<u8> {
    let copy = tempfile::NamedTempFile::new().expect("make a file");
    std::fs::write(copy.path(), &whole).expect("copy the file");
    let expected = replayed(copy.path());
    let mut trimmer = Trimmer {
        is_unchanged: &|path| is_sound(path) && replayed(path) == expected,
        path: copy.path(),
        file: File::options()
            .write(true)
            .open(copy.path())
            .expect("open the copy"),
        keep: kept_sections(&whole),
        piece,
        bytes: whole,
    };
    trimmer.zero(headers..trimmer.bytes.len());
    trimmer.bytes
}

struct Trimmer<'a> {
    is_unchanged: &'a dyn Fn(&Path) -> bool,
    path: &'a Path,
    file: File,
    keep: Vec<Range<usize>>,
    piece: usize,
    bytes: Vec<u8>,
}

impl Trimmer<'_> {
    /// Zeroes all of the range if that changes nothing, else as much of its
    /// halves as can be.
    fn zero(&mut self, range: Range<usize>) {
        let part = &self.bytes[range.clone()];
        if part.iter().all(|byte| *byte == 0) {
            return;
        }
        let kept = self
            .keep
            .iter()
            .any(|keep| keep.start < range.end && range.start < keep.end);
        if !kept {
            self.write(range.start, &vec![0; range.len()]);
            if (self.is_unchanged)(self.path) {
                self.bytes[range].fill(0);
                return;
            }
            self.write(range.start, &self.bytes[range.clone()]);
        }
        if range.len() > self.piece {
            let middle = range.start + (range.len() / 2).next_multiple_of(self.piece);
            self.zero(range.start..middle);
            self.zero(middle..range.end);
        }
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        self.file
            .write_all_at(bytes, offset as u64)
            .expect("write the copy");
    }
}

/// Whether the trimmed program is known for the same, and its tables say the
/// same of each address.
fn says_the_same(object: &Object, original: &Object, known: &[(u64, Facts)]) -> bool {
    let (Some(binary), Some(original)) = (object.go(), original.go()) else {
        return false;
    };
    binary.version() == original.version()
        && binary.build_info() == original.build_info()
        && binary.build_id() == original.build_id()
        && binary.text() == original.text()
        && known
            .iter()
            .all(|(address, known)| facts(object, *address) == *known)
}

fn open(path: &Path) -> Option<Object> {
    let file = File::open(path).ok()?;
    let object = Object::open(file, String::new()).ok()?;
    object.go().is_some().then_some(object)
}

fn facts(object: &Object, address: u64) -> Facts {
    let binary = object.go().expect("a Go program");
    let mut frames = Vec::new();
    let found = binary.frames(address, &mut frames);
    let function = binary.function(address);
    let offset = |address| binary.vaddr_to_file_offset(address);
    let assembly = function.filter(|function| function.asm);
    Facts {
        function,
        stack_delta: binary.stack_delta(address),
        frames: found.ok().map(|()| frames),
        native: offset(address)
            .filter(|_| function.is_none())
            .and_then(|offset| object.native_at(offset)),
        begins: assembly
            .and_then(|function| object.bytes_at(offset(function.entry)?, 8))
            .and_then(|bytes| bytes.try_into().ok()),
    }
}

/// The section headers and their names, kept so that the tables are found in
/// the replay by the same way as in the program; and the call frame information
/// of C code, whichever of it the present way of unwinding uses.
fn kept_sections(elf: &[u8]) -> Vec<Range<usize>> {
    let word = |at: usize| {
        let bytes = elf[at..at + 8].first_chunk().expect("eight bytes");
        usize::try_from(u64::from_le_bytes(*bytes)).expect("an offset")
    };
    // Elf64_Ehdr: e_shoff at 40, e_shnum at 60, e_shstrndx at 62; Elf64_Shdr:
    // 64 bytes, sh_name at 0 (half a word), sh_offset at 24, sh_size at 32.
    let half = |at: usize| usize::from(u16::from_le_bytes([elf[at], elf[at + 1]]));
    let (table, count, names) = (word(40), half(60), half(62));
    let section = |index: usize| {
        let header = table + 64 * index;
        let (offset, size) = (word(header + 24), word(header + 32));
        offset..offset + size
    };
    let names = section(names);
    let mut kept = vec![table..table + 64 * count, names.clone()];
    for index in 0..count {
        let name = names.start + (word(table + 64 * index) & 0xffff_ffff);
        let is = |wanted: &[u8]| elf[name..].starts_with(wanted);
        if is(b".eh_frame\0") || is(b".eh_frame_hdr\0") {
            kept.push(section(index));
        }
    }
    kept
}
