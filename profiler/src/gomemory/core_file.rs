//! The memory of a process as an ELF core file has it. What the kernel does not
//! dump, as it is in other files (code, mostly), comes from those files, which
//! whoever opens the core has to find.

use std::{fmt::Write as _, fs::File, ops::Range, path::Path, sync::Arc};

use object::{
    LittleEndian, elf,
    read::elf::{FileHeader, ProgramHeader},
};
use thiserror::Error;

use super::{Memory, Request, notes};
use crate::{
    gobinary::Machine,
    image::{Image, ImageError},
};

pub use notes::{CoreFile, CoreThread};

type Header = elf::FileHeader64<LittleEndian>;

/// Most segments of a core: a process can have no more mappings unless the
/// system is set so.
const MAX_SEGMENTS: usize = 1 << 20;

/// Why a file is not a core that goprof can read.
#[derive(Debug, Error)]
pub enum CoreError {
    /// The file cannot be read at all.
    #[error(transparent)]
    File(#[from] ImageError),
    /// It is something else.
    #[error("not an ELF core file")]
    NotCore,
    /// It is of another kind of machine.
    #[error("a core of neither amd64 nor arm64")]
    WrongArch,
    /// It contradicts itself, or is cut off before its tables.
    #[error("a damaged core: {0}")]
    Damaged(&'static str),
}

/// A core file.
#[derive(Debug)]
pub struct Core {
    image: Arc<Image>,
    machine: Machine,
    segments: Vec<Segment>,
    notes: notes::Notes,
    /// Of each file whether, and as what, it was found.
    backing: Vec<Option<Arc<Image>>>,
}

/// Memory that a core describes.
#[derive(Debug, Clone)]
struct Segment {
    addresses: Range<u64>,
    /// Byte offset in the core.
    offset: u64,
    /// Bytes in the core.
    file_size: u64,
    permissions: [u8; 4],
}

impl Core {
    /// Opens a core.
    ///
    /// # Errors
    /// It is none, or none that can be read.
    pub fn open(file: File) -> Result<Self, CoreError> {
        let image = Arc::new(Image::open(file)?);
        let data = image.bytes();
        if !data.starts_with(&elf::ELFMAG) || data.get(4) != Some(&2) || data.get(5) != Some(&1) {
            return Err(CoreError::NotCore);
        }
        let header = Header::parse(data).map_err(|_| CoreError::NotCore)?;
        if header.e_type(LittleEndian) != elf::ET_CORE {
            return Err(CoreError::NotCore);
        }
        let machine = match header.e_machine(LittleEndian) {
            elf::EM_X86_64 => Machine::X86_64,
            elf::EM_AARCH64 => Machine::Aarch64,
            _ => return Err(CoreError::WrongArch),
        };
        let headers = header
            .program_headers(LittleEndian, data)
            .map_err(|_| CoreError::Damaged("its table of segments is cut off"))?;
        if headers.len() > MAX_SEGMENTS {
            return Err(CoreError::Damaged("it has too many segments"));
        }
        let mut segments: Vec<Segment> = headers
            .iter()
            .filter(|header| header.p_type(LittleEndian) == elf::PT_LOAD)
            .filter_map(segment)
            .collect();
        segments.sort_by_key(|segment| segment.addresses.start);
        let texts = headers
            .iter()
            .filter(|header| header.p_type(LittleEndian) == elf::PT_NOTE)
            .filter_map(|header| Some((header.data(LittleEndian, data).ok()?, header)));
        let mut notes = notes::Notes::default();
        for (text, header) in texts {
            notes.read(text, header.p_align(LittleEndian), machine);
        }
        Ok(Self {
            backing: vec![None; notes.files.len()],
            machine,
            segments,
            notes,
            image: Arc::clone(&image),
        })
    }

    /// Gives it the files that are behind what was not dumped: `find` opens each
    /// once, or does not find it.
    pub fn back(&mut self, mut find: impl FnMut(&str) -> Option<Arc<Image>>) {
        let mut known: Vec<(&str, Option<Arc<Image>>)> = Vec::new();
        for (file, backing) in self.notes.files.iter().zip(&mut self.backing) {
            let found = match known.iter().find(|(path, _)| *path == file.path) {
                Some((_, found)) => found.clone(),
                None => {
                    let found = find(&file.path);
                    known.push((&file.path, found.clone()));
                    found
                }
            };
            *backing = found;
        }
    }

    /// The processor it is of.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// The pid that the process had; 0 where the core does not say it.
    pub fn pid(&self) -> u32 {
        self.notes.pid
    }

    /// The name that it had.
    pub fn comm(&self) -> &str {
        &self.notes.comm
    }

    /// The files that it had mapped.
    pub fn files(&self) -> &[CoreFile] {
        &self.notes.files
    }

    /// Its threads, the one that ended it first.
    pub fn threads(&self) -> &[CoreThread] {
        &self.notes.threads
    }

    /// Whether the core ends before what it describes does: a limit, or a full
    /// disk.
    pub fn is_cut(&self) -> bool {
        let len = self.image.bytes().len() as u64;
        self.segments.iter().any(|segment| {
            let end = segment.offset.checked_add(segment.file_size);
            end.is_none_or(|end| end > len)
        })
    }

    /// Whether the core itself has so many bytes from an address on.
    pub fn is_dumped(&self, address: u64, len: usize) -> bool {
        self.segments.iter().any(|segment| {
            let distance = address.checked_sub(segment.addresses.start);
            let end = distance.and_then(|distance| distance.checked_add(len as u64));
            end.is_some_and(|end| end <= segment.file_size)
        })
    }

    /// What `/proc/PID/maps` would have shown of the process, as far as the core
    /// tells: devices are missing, inodes are made up and are one for each path.
    pub fn maps(&self) -> String {
        let mut text = String::new();
        let mut paths: Vec<&str> = Vec::new();
        for segment in &self.segments {
            let Range { start, end } = segment.addresses;
            let permissions = String::from_utf8_lossy(&segment.permissions);
            let file = self.file_at(start).map(|index| &self.notes.files[index]);
            let (offset, inode, path) = match file {
                Some(file) => {
                    let known = paths.iter().position(|path| *path == file.path);
                    let inode = known.unwrap_or_else(|| {
                        paths.push(&file.path);
                        paths.len() - 1
                    });
                    let offset = (start - file.addresses.start).wrapping_add(file.offset);
                    (offset, inode + 1, file.path.as_str())
                }
                None => (0, 0, ""),
            };
            let path = path.replace(char::is_control, "?");
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{start:x}-{end:x} {permissions} {offset:08x} 00:00 {inode} {path}"
            );
        }
        text
    }

    /// The executable's path, as the core has it: that of the first file that has
    /// code mapped.
    pub fn exe(&self) -> &str {
        let is_code = |segment: &&Segment| segment.permissions[2] == b'x';
        let mut code = self.segments.iter().filter(is_code);
        let file = code.find_map(|segment| self.file_at(segment.addresses.start));
        file.map_or("", |index| &self.notes.files[index].path)
    }

    fn file_at(&self, address: u64) -> Option<usize> {
        let files = &self.notes.files;
        let after = files.partition_point(|file| file.addresses.start <= address);
        let index = after.checked_sub(1)?;
        files[index].addresses.contains(&address).then_some(index)
    }

    /// The bytes from an address to the end of what holds them.
    fn from(&self, address: u64) -> Option<&[u8]> {
        let after = self
            .segments
            .partition_point(|segment| segment.addresses.start <= address);
        let segment = &self.segments[after.checked_sub(1)?];
        if !segment.addresses.contains(&address) {
            return None;
        }
        let distance = address - segment.addresses.start;
        if distance < segment.file_size {
            let start = usize::try_from(segment.offset.checked_add(distance)?).ok()?;
            let len = usize::try_from(segment.file_size - distance).ok()?;
            let rest = self.image.bytes().get(start..)?;
            return Some(&rest[..len.min(rest.len())]);
        }
        // What was not dumped is as in its file, unless it could be written.
        let index = self
            .file_at(address)
            .filter(|_| segment.permissions[1] != b'w')?;
        let (file, image) = (&self.notes.files[index], self.backing[index].as_ref()?);
        let end = file.addresses.end.min(segment.addresses.end);
        let start = (address - file.addresses.start).checked_add(file.offset)?;
        let rest = image.bytes().get(usize::try_from(start).ok()?..)?;
        let len = usize::try_from(end - address).ok()?;
        Some(&rest[..len.min(rest.len())])
    }

    fn fill(&self, address: u64, bytes: &mut [u8]) -> Option<()> {
        let (mut address, mut rest) = (address, bytes);
        while !rest.is_empty() {
            let from = self.from(address).filter(|from| !from.is_empty())?;
            let len = from.len().min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&from[..len]);
            rest = later;
            address = address.checked_add(len as u64)?;
        }
        Some(())
    }
}

fn segment(header: &elf::ProgramHeader64<LittleEndian>) -> Option<Segment> {
    let start = header.p_vaddr(LittleEndian);
    let size = header.p_memsz(LittleEndian);
    let flags = header.p_flags(LittleEndian);
    let flag = |has: bool, letter: u8| if has { letter } else { b'-' };
    Some(Segment {
        addresses: start..start.checked_add(size).filter(|end| *end > start)?,
        offset: header.p_offset(LittleEndian),
        file_size: header.p_filesz(LittleEndian).min(size),
        permissions: [
            flag(flags.contains(elf::PF_R), b'r'),
            flag(flags.contains(elf::PF_W), b'w'),
            flag(flags.contains(elf::PF_X), b'x'),
            b'p',
        ],
    })
}

/// Opens the file at a path for [`Core::back`]; the vdso and the like have none.
pub fn open_backing(path: &Path) -> Option<Arc<Image>> {
    let image = Image::open(File::open(path).ok()?).ok()?;
    Some(Arc::new(image))
}

impl Memory for Core {
    fn read_many(&self, requests: &mut [Request<'_>]) {
        for request in requests {
            request.is_filled = self.fill(request.address, request.bytes).is_some();
        }
    }

    fn is_there(&self) -> bool {
        !self.image.changed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    /// A core of three segments: one dumped, one that a file is behind, one that
    /// nothing is.
    fn core() -> Vec<u8> {
        let mut notes = Vec::new();
        let path = b"/bin/app\0";
        let mut files = Vec::new();
        for word in [1_u64, 4096, 0x40_0000, 0x40_1000, 2] {
            files.extend(word.to_le_bytes());
        }
        files.extend(path);
        let mut status = vec![0; 336];
        status[12] = 11;
        status[32..36].copy_from_slice(&77_u32.to_le_bytes());
        status[112 + 16 * 8..][..8].copy_from_slice(&0x40_0010_u64.to_le_bytes());
        let mut about = vec![0; 136];
        about[24..28].copy_from_slice(&76_u32.to_le_bytes());
        about[40..43].copy_from_slice(b"app");
        for (kind, desc) in [(3_u32, &about), (1, &status), (0x4649_4c45, &files)] {
            notes.extend(5_u32.to_le_bytes());
            notes.extend((desc.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(b"CORE\0\0\0\0");
            notes.extend(desc.as_slice());
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        let headers = 64 + 4 * 56;
        let dumped = headers + notes.len();
        let mut out = Vec::from(*b"\x7fELF\x02\x01\x01");
        out.resize(16, 0);
        out.extend([4_u16, 62].iter().flat_map(|half| half.to_le_bytes()));
        out.extend(1_u32.to_le_bytes());
        out.extend([0_u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
        out.extend(0_u32.to_le_bytes());
        out.extend(
            [64_u16, 56, 4, 0, 0, 0]
                .iter()
                .flat_map(|half| half.to_le_bytes()),
        );
        let mut segment = |kind: u32, flags: u32, offset, vaddr, file_size, size| {
            out.extend(kind.to_le_bytes());
            out.extend(flags.to_le_bytes());
            for word in [offset as u64, vaddr, vaddr, file_size, size, 1] {
                out.extend(word.to_le_bytes());
            }
        };
        segment(4, 0, headers, 0, notes.len() as u64, 0);
        segment(1, 5, dumped, 0x40_0000, 16, 0x1000);
        segment(1, 6, dumped + 16, 0xc0_0000, 16, 16);
        segment(1, 6, 0, 0xd0_0000, 0, 0x1000);
        out.extend(&notes);
        out.extend((0..32_u8).collect::<Vec<_>>());
        out
    }

    fn open(bytes: &[u8]) -> Result<Core, CoreError> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Core::open(file)
    }

    #[test]
    fn a_core_tells_who_it_was_and_what_was_mapped() {
        let core = open(&core()).unwrap();
        assert_eq!(
            (core.pid(), core.comm(), core.exe()),
            (76, "app", "/bin/app")
        );
        let thread = core.threads()[0];
        assert_eq!((thread.tid, thread.signal, thread.pc), (77, 11, 0x40_0010));
        let text = "400000-401000 r-xp 00002000 00:00 1 /bin/app\n\
                    c00000-c00010 rw-p 00000000 00:00 0 \n\
                    d00000-d01000 rw-p 00000000 00:00 0 \n";
        assert_eq!(core.maps(), text);
        assert!(!core.is_cut());
    }

    #[test]
    fn what_was_not_dumped_comes_from_its_file_or_not_at_all() {
        let mut core = open(&core()).unwrap();
        assert_eq!(core.word(0x40_0000), Some(0x0706_0504_0302_0100));
        assert_eq!(core.word(0xc0_0000), Some(0x1716_1514_1312_1110));
        assert_eq!(core.word(0xc0_000c), None, "past the end");
        assert_eq!(core.word(0xd0_0000), None, "not dumped");
        assert_eq!(core.word(0x40_000c), None, "in part not dumped");
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 0x2020], 0).unwrap();
        let image = Arc::new(Image::open(file).unwrap());
        core.back(|path| (path == "/bin/app").then(|| Arc::clone(&image)));
        assert_eq!(core.word(0x40_000c), Some(0x0909_0909_0f0e_0d0c));
        assert_eq!(core.word(0x40_0018), Some(0x0909_0909_0909_0909));
        assert_eq!(core.word(0x40_001c), None, "past the file");
    }

    #[test]
    fn what_is_no_core_is_refused_and_what_is_cut_off_is_told() {
        let whole = core();
        assert!(matches!(open(b"x"), Err(CoreError::NotCore)));
        let mut program = whole.clone();
        program[16] = 2;
        assert!(matches!(open(&program), Err(CoreError::NotCore)));
        let mut other = whole.clone();
        other[18] = 3;
        assert!(matches!(open(&other), Err(CoreError::WrongArch)));
        for end in 1..whole.len() {
            if let Ok(core) = open(&whole[..end]) {
                assert!(core.is_cut(), "{end}");
                core.maps();
                core.word(0xc0_0000);
            }
        }
    }

    #[test]
    fn damaged_words_are_survived() {
        let whole = core();
        for at in (16..whole.len() - 8).step_by(4) {
            for word in [u64::MAX, 1 << 60, 0x7fff_ffff_ffff_fff8] {
                let mut damaged = whole.clone();
                damaged[at..at + 8].copy_from_slice(&word.to_le_bytes());
                if let Ok(core) = open(&damaged) {
                    core.maps();
                    core.word(0x40_0000);
                    core.word(u64::MAX - 3);
                }
            }
        }
    }
}
