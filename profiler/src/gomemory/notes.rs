//! The notes of a core file: who the process was, its threads and the files it
//! had mapped. Reads bytes of anybody's making; looks at no more than there are.

use std::ops::Range;

use object::{LittleEndian, elf, read::elf::NoteIterator};

use crate::gobinary::Machine;

type Header = elf::FileHeader64<LittleEndian>;

/// `NT_PRSTATUS`, `NT_PRPSINFO` and `NT_FILE` (`include/uapi/linux/elf.h`).
const STATUS: u32 = 1;
const ABOUT: u32 = 3;
const FILES: u32 = 0x4649_4c45;
/// Most threads and files that are kept.
const MAX_THREADS: usize = 1 << 17;
const MAX_FILES: usize = 1 << 17;
/// Bytes of a path that are kept (`PATH_MAX`).
const MAX_PATH_BYTES: usize = 4096;

/// A file that was mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreFile {
    /// Where.
    pub addresses: Range<u64>,
    /// The offset in the file of the first address, in bytes.
    pub offset: u64,
    /// Its path, as the process saw it.
    pub path: String,
}

/// A thread, as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreThread {
    /// Its id.
    pub tid: u32,
    /// The signal that it got, 0 for none.
    pub signal: u16,
    /// Its instruction.
    pub pc: u64,
    /// Its stack pointer.
    pub sp: u64,
    /// Its frame pointer.
    pub fp: u64,
    /// Its link register (arm64), else 0.
    pub lr: u64,
    /// On amd64 the FS base, from which thread-local storage is found, else 0.
    pub fs_base: u64,
    /// The register in which Go has its goroutine while it runs Go code.
    pub g: u64,
}

/// What a core says of its process.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub pid: u32,
    pub comm: String,
    pub threads: Vec<CoreThread>,
    /// By address.
    pub files: Vec<CoreFile>,
}

/// Where things are in the structures that the kernel writes.
mod at {
    /// In `elf_prpsinfo` of both machines.
    pub const PID: usize = 24;
    pub const COMM: usize = 40;
    pub const COMM_BYTES: usize = 16;
    /// In `elf_prstatus` of both machines.
    pub const SIGNAL: usize = 12;
    pub const TID: usize = 32;
    pub const REGISTERS: usize = 112;
}

impl Notes {
    /// Adds what the notes of a segment say.
    pub(super) fn read(&mut self, notes: &[u8], align: u64, machine: Machine) {
        // The kernel writes 0 or 4, and aligns by 4.
        let align = if align == 8 { 8 } else { 4 };
        let Ok(notes) = NoteIterator::<Header>::new(LittleEndian, align, notes) else {
            return;
        };
        for note in notes.map_while(Result::ok) {
            if note.name() != b"CORE" {
                continue;
            }
            match note.n_type(LittleEndian).0 {
                STATUS if self.threads.len() < MAX_THREADS => {
                    self.threads.extend(thread(note.desc(), machine));
                }
                ABOUT => self.about(note.desc()),
                FILES => {
                    // As many as can be read.
                    let _ = self.add_files(note.desc());
                }
                _ => {}
            }
        }
        self.files.sort_by_key(|file| file.addresses.start);
    }

    fn about(&mut self, desc: &[u8]) {
        self.pid = half(desc, at::PID).unwrap_or(0);
        let comm = desc.get(at::COMM..at::COMM + at::COMM_BYTES);
        let comm = comm.unwrap_or_default().split(|byte| *byte == 0).next();
        self.comm = String::from_utf8_lossy(comm.unwrap_or_default()).into_owned();
    }

    fn add_files(&mut self, desc: &[u8]) -> Option<()> {
        let (count, page_bytes) = (word(desc, 0)?, word(desc, 8)?);
        let count = usize::try_from(count).ok()?.min(MAX_FILES);
        let names = desc.get(count.checked_mul(24)?.checked_add(16)?..)?;
        for (index, path) in names.split(|byte| *byte == 0).take(count).enumerate() {
            let field = |number: usize| word(desc, 16 + index * 24 + number * 8);
            let addresses = field(0)?..field(1)?;
            let path = &path[..path.len().min(MAX_PATH_BYTES)];
            if addresses.start < addresses.end {
                self.files.push(CoreFile {
                    addresses,
                    offset: field(2)?.wrapping_mul(page_bytes),
                    path: String::from_utf8_lossy(path).into_owned(),
                });
            }
        }
        Some(())
    }
}

fn thread(desc: &[u8], machine: Machine) -> Option<CoreThread> {
    let register = |number: usize| word(desc, at::REGISTERS + number * 8);
    // `user_regs_struct` of amd64, `user_pt_regs` of arm64.
    let (pc, sp, fp, lr, fs_base, g) = match machine {
        Machine::X86_64 => (16, 19, 4, None, Some(21), 1),
        Machine::Aarch64 => (32, 31, 29, Some(30), None, 28),
    };
    let optional = |number: Option<usize>| number.map_or(Some(0), register);
    Some(CoreThread {
        tid: half(desc, at::TID)?,
        signal: half(desc, at::SIGNAL)? as u16,
        pc: register(pc)?,
        sp: register(sp)?,
        fp: register(fp)?,
        lr: optional(lr)?,
        fs_base: optional(fs_base)?,
        g: register(g)?,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}
