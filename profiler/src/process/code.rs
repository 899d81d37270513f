//! What the code at an address is to somebody who unwinds stacks: a Go function
//! with its frame, C with its rule, or neither. Answers from the mapped files,
//! and remembers, as hot code is asked about over and over.

use std::sync::{MutexGuard, PoisonError};

use profiler_ebpf::wire::signal_frame;

use super::{Mapped, Process};
use crate::gobinary::{FuncKind, GoBinary, GoFunction, Machine};

pub use super::call_frames::{Base, Native, ReturnAddress, Rule, SavedFp};

/// Addresses remembered of one process; a program's hot code has some
/// thousands.
const MAX_REMEMBERED: usize = 32 * 1024;
/// x86-64 code that returns from a signal handler; see
/// [`signal_frame::RETURN_CODE`].
const SIGNAL_RETURN: [u8; 8] = signal_frame::RETURN_CODE.to_le_bytes();
/// Where in it an instruction begins or execution can stand, and the byte
/// before it, where a return address less one lies.
const SIGNAL_RETURN_STOPS: [i64; 4] = [-1, 0, 7, 9];

/// What the code at an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// A Go function.
    Go(GoSite),
    /// Code with call frame information.
    Native(Native),
    /// Code without.
    Unknown,
}

/// What matters of a Go function at one instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoSite {
    /// What the function is to the runtime.
    pub kind: FuncKind,
    /// See [`GoFunction::top_frame`].
    pub top_frame: bool,
    /// See [`GoFunction::signal_handler`].
    pub signal_handler: bool,
    /// See [`GoFunction::sp_write`].
    pub sp_write: bool,
    /// See [`GoFunction::asm`].
    pub asm: bool,
    /// Whether this is the function's first instruction.
    pub at_entry: bool,
    /// Whether it returns from a signal handler.
    pub signal_return: bool,
    /// Its frame, where the function's table says it.
    pub frame: Option<GoFrameShape>,
}

/// A Go function's frame at one instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoFrameShape {
    /// Nothing of it is on the stack: the return address is in the link
    /// register (arm64).
    InRegister,
    /// The return address is on the stack, and the caller's frame pointer, once
    /// saved, in the word below. In bytes from the stack pointer.
    OnStack {
        /// Where the return address is.
        slot: u32,
        /// The caller's stack pointer.
        caller: u32,
    },
}

impl GoFrameShape {
    /// Whether calls leave the return address in a register (arm64). There the frame
    /// pointer of a function that has a frame is the word below it.
    pub fn has_link_register(self) -> bool {
        match self {
            Self::InRegister => true,
            Self::OnStack { slot, caller } => slot == 0 && caller != 8,
        }
    }
}

/// What was asked about a process's code.
pub(super) type Remembered = foldhash::HashMap<u64, Site>;

/// A process's code, to ask about.
pub struct CodeOf<'a> {
    process: &'a Process,
    remembered: MutexGuard<'a, Remembered>,
}

impl Process {
    /// The process's code, to ask about. Locks what was remembered of it.
    pub fn code(&self) -> CodeOf<'_> {
        CodeOf {
            process: self,
            remembered: self.code.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl CodeOf<'_> {
    /// What the code at `address` is; `None` where nothing is mapped.
    pub fn at(&mut self, address: u64) -> Option<Site> {
        if let Some(code) = self.remembered.get(&address) {
            return Some(*code);
        }
        let mapped = self.process.locate(address)?;
        let code = look(mapped, address);
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.insert(address, code);
        Some(code)
    }

    /// Whether an instruction that calls ends right before `address`; `None`
    /// where the code is not there to be read.
    pub fn follows_call(&self, address: u64) -> Option<bool> {
        let mapped = self.process.locate(address.wrapping_sub(1))?;
        let start = address.checked_sub(8)?;
        if start < mapped.start {
            return None;
        }
        let object = mapped.object.as_ref()?;
        let bytes = object.bytes_at(mapped.file_offset(start), 8)?;
        let bytes: [u8; 8] = bytes.try_into().ok()?;
        // What is cut off a file reads as zeros.
        (bytes != [0; 8]).then(|| ends_in_call(&bytes, object.go().map(GoBinary::machine)))
    }
}

/// Whether the last bytes are a call. x86-64: `e8` with a 32-bit distance, or
/// `ff /2` with a register or memory operand of any length. arm64: `bl`, `blr`.
fn ends_in_call(bytes: &[u8; 8], machine: Option<Machine>) -> bool {
    if machine == Some(Machine::Aarch64) {
        let word = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        return word >> 26 == 0x25 || word & 0xffff_fc1f == 0xd63f_0000;
    }
    let by_operand = |start: usize| match &bytes[start..] {
        [0xff, operand @ ..] => call_operand_len(operand) == Some(operand.len()),
        _ => false,
    };
    bytes[3] == 0xe8 || (1..7).any(by_operand)
}

/// Bytes of a ModRM operand whose middle field says that `ff` is a call.
fn call_operand_len(operand: &[u8]) -> Option<usize> {
    let modrm = *operand.first()?;
    if (modrm >> 3) & 7 != 2 {
        return None;
    }
    let (mode, base) = (modrm >> 6, modrm & 7);
    // A SIB byte follows where the base is 4; its own base 5 means a
    // displacement where the mode has none.
    let (sib, base) = match (mode, base) {
        (3, _) | (_, 0..=3 | 5..) => (0, base),
        _ => (1, *operand.get(1)? & 7),
    };
    let displacement = match (mode, base) {
        (0, 5) | (2, _) => 4,
        (1, _) => 1,
        _ => 0,
    };
    Some(1 + sib + displacement)
}

fn look(mapped: &Mapped, address: u64) -> Site {
    let Some(object) = &mapped.object else {
        return Site::Unknown;
    };
    let offset = mapped.file_offset(address);
    if let Some((binary, vaddr)) = object.go().zip(mapped.go_address(address))
        && let Some(function) = binary.function(vaddr)
    {
        let returns = function.asm && returns_from_signal(binary, function.entry);
        return Site::Go(go_site(binary, &function, vaddr, returns));
    }
    let returns = SIGNAL_RETURN_STOPS.iter().any(|stop| {
        let start = offset.checked_sub_signed(*stop);
        start.and_then(|start| object.bytes_at(start, SIGNAL_RETURN.len())) == Some(&SIGNAL_RETURN)
    });
    match object.native_at(offset) {
        _ if returns => Site::Native(Native::SignalReturn),
        Some(native) => Site::Native(native),
        None => Site::Unknown,
    }
}

/// Whether the code at a link-time address returns from a signal handler.
pub(super) fn returns_from_signal(binary: &GoBinary, vaddr: u64) -> bool {
    let start = binary.vaddr_to_file_offset(vaddr);
    let start = start.and_then(|start| usize::try_from(start).ok());
    start
        .and_then(|start| binary.image().bytes().get(start..))
        .is_some_and(|code| code.starts_with(&SIGNAL_RETURN))
}

fn go_site(binary: &GoBinary, function: &GoFunction, vaddr: u64, signal_return: bool) -> GoSite {
    let delta = binary
        .stack_delta(vaddr)
        .and_then(|delta| u32::try_from(delta).ok());
    let frame = delta.map(|delta| match (binary.machine(), delta) {
        (Machine::X86_64, _) => GoFrameShape::OnStack {
            slot: delta,
            caller: delta.saturating_add(8),
        },
        (Machine::Aarch64, 0) => GoFrameShape::InRegister,
        (Machine::Aarch64, _) => GoFrameShape::OnStack {
            slot: 0,
            caller: delta,
        },
    });
    GoSite {
        kind: function.kind,
        top_frame: function.top_frame,
        signal_handler: function.signal_handler,
        sp_write: function.sp_write,
        asm: function.asm,
        at_entry: vaddr == function.entry,
        signal_return,
        frame,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_from_other_code() {
        let check = |code: &[u8]| {
            let mut bytes = [0x90; 8];
            bytes[8 - code.len()..].copy_from_slice(code);
            ends_in_call(&bytes, Some(Machine::X86_64))
        };
        assert!(check(&[0xe8, 1, 2, 3, 4]), "call to a distance");
        assert!(check(&[0xff, 0xd1]), "call *%rcx");
        assert!(check(&[0x41, 0xff, 0xd4]), "call *%r12");
        assert!(check(&[0xff, 0x11]), "call *(%rcx)");
        assert!(check(&[0xff, 0x50, 0x18]), "call *0x18(%rax)");
        assert!(check(&[0xff, 0x14, 0x24]), "call *(%rsp)");
        assert!(check(&[0xff, 0x54, 0x24, 8]), "call *8(%rsp)");
        assert!(check(&[0xff, 0x15, 1, 2, 3, 4]), "call *d(%rip)");
        assert!(check(&[0xff, 0x94, 0x24, 1, 2, 3, 4]), "call *d(%rsp)");
        assert!(!check(&[0xe9, 1, 2, 3, 4]), "jmp");
        assert!(!check(&[0xff, 0xe0]), "jmp *%rax");
        assert!(!check(&[0xff, 0xc0]), "inc %eax");
        assert!(!check(&[0xff, 0x50]), "cut off");
        assert!(!check(&[]), "nops");
        let arm64 = |word: u32| {
            let mut bytes = [0; 8];
            bytes[4..].copy_from_slice(&word.to_le_bytes());
            ends_in_call(&bytes, Some(Machine::Aarch64))
        };
        assert!(arm64(0x9400_0010), "bl");
        assert!(arm64(0xd63f_0140), "blr x10");
        assert!(!arm64(0x1400_0010), "b");
        assert!(!arm64(0xd61f_0140), "br x10");
    }
}
