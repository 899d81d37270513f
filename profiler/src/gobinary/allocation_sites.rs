//! Which type a call of an allocator allocates, decoded from the code before the
//! call: the type's descriptor is an argument, and mostly a constant. What does
//! not say it for sure is unknown, never guessed.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use iced_x86::{
    FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use super::bytes::{read_i32, read_u8, read_u64, read_varint, to_text};
use super::elf::Machine;
use super::version::GoVersion;
use super::x86::instructions;
use super::{GoBinary, allocators};

/// Functions whose calls are remembered before all are forgotten.
const MAX_FUNCTIONS: usize = 4096;
/// Bytes of a type's name that are kept.
const MAX_NAME_BYTES: usize = 512;

/// Byte offsets in `internal/abi.Type`, all versions (up to 1.20
/// `runtime._type`).
mod at {
    /// `TFlag`.
    pub const FLAGS: usize = 20;
    /// `Kind_`, whose upper bits are flags up to 1.26.
    pub const KIND: usize = 23;
    /// `Str`: the name's offset from where types begin.
    pub const NAME: usize = 40;
    /// Bytes read of a descriptor.
    pub const SIZE: usize = 48;
}

/// `abi.TFlagExtraStar`: the name begins with a star that is not the type's.
const EXTRA_STAR: u8 = 2;
const KIND_MASK: u8 = 31;
/// The last of Go's kinds (`abi.UnsafePointer`).
const LAST_KIND: u8 = 26;

/// What an allocator's argument is the type of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allocates {
    /// What is allocated.
    Itself,
    /// Elements of it.
    Slice,
}

/// An allocator: what its type argument means, and the register it comes in.
#[derive(Debug, Clone, Copy)]
struct Allocator {
    allocates: Allocates,
    register: Register,
}

/// The allocator of that name in a version (`runtime`, ABIInternal of amd64).
fn allocator(name: &str, version: &GoVersion) -> Option<Allocator> {
    let of = |allocates, register| {
        Some(Allocator {
            allocates,
            register,
        })
    };
    let is_120 = version.major_minor() >= (1, 20);
    match name.strip_prefix("runtime.")? {
        "newobject" | "makechan" | "makechan64" | "makemap" | "makemap64" | "convT"
        | "convTnoptr" => of(Allocates::Itself, Register::RAX),
        "makeslice" | "makeslice64" | "makeslicecopy" | "newarray" => {
            of(Allocates::Slice, Register::RAX)
        }
        "growslice" if is_120 => of(Allocates::Slice, Register::RSI),
        "growslice" => of(Allocates::Slice, Register::RAX),
        // What the compiler calls for small blocks since 1.27.
        _ => {
            allocators::class_of(name)?;
            of(Allocates::Itself, Register::RBX)
        }
    }
}

/// The places of a binary that allocate. Made of one pass over its functions'
/// names; decodes a function when it is first asked about.
pub struct AllocationSites {
    allocators: HashMap<u64, Allocator>,
    /// By function, by return address: the type's descriptor.
    calls: RefCell<HashMap<u64, Calls>>,
}

type Calls = HashMap<u64, (u64, Allocates)>;

impl AllocationSites {
    /// Finds the allocators of a binary; none on other machines than amd64.
    pub(super) fn new(binary: &GoBinary) -> Self {
        let mut allocators = HashMap::new();
        if binary.machine() == Machine::X86_64 {
            binary.for_each_name("runtime.", |name, function| {
                if let Some(allocator) = allocator(name, binary.version()) {
                    allocators.insert(function.entry, allocator);
                }
            });
        }
        Self {
            allocators,
            calls: RefCell::default(),
        }
    }

    /// The name of the type that the call before a return address allocates, in the
    /// binary that they were found in. None where the code does not say it.
    pub fn type_at(&self, binary: &GoBinary, return_address: u64) -> Option<String> {
        let function = binary.function(return_address.checked_sub(1)?)?;
        let mut calls = self.calls.borrow_mut();
        if calls.len() >= MAX_FUNCTIONS {
            calls.clear();
        }
        let calls = calls.entry(function.entry).or_insert_with(|| {
            let code = binary.code(function);
            code.map_or_else(Calls::new, |(code, vaddr)| self.decode(code, vaddr))
        });
        let (descriptor, allocates) = calls.get(&return_address)?;
        let name = binary.type_name(*descriptor)?;
        Some(match allocates {
            Allocates::Itself => name,
            Allocates::Slice => format!("[]{name}"),
        })
    }

    /// The calls of allocators in a function, with the types they are given.
    fn decode(&self, code: &[u8], vaddr: u64) -> Calls {
        // Where code is jumped to, nothing is known of registers.
        let targets: HashSet<u64> = instructions(code, vaddr)
            .filter(is_jump)
            .map(|i| i.near_branch_target())
            .collect();
        let mut factory = InstructionInfoFactory::new();
        let mut known: HashMap<Register, u64> = HashMap::new();
        let mut calls = Calls::new();
        for instruction in instructions(code, vaddr) {
            if targets.contains(&instruction.ip()) {
                known.clear();
            }
            if instruction.flow_control() != FlowControl::Next {
                if instruction.mnemonic() == Mnemonic::Call
                    && instruction.op0_kind() == OpKind::NearBranch64
                    && let Some(allocator) = self.allocators.get(&instruction.near_branch_target())
                    && let Some(descriptor) = known.get(&allocator.register)
                {
                    let call = (*descriptor, allocator.allocates);
                    calls.insert(instruction.next_ip(), call);
                }
                if instruction.flow_control() != FlowControl::ConditionalBranch {
                    known.clear();
                }
                continue;
            }
            for used in factory.info(&instruction).used_registers() {
                if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead) {
                    known.remove(&used.register().full_register());
                }
            }
            if instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand() {
                let register = instruction.op0_register().full_register();
                known.insert(register, instruction.ip_rel_memory_address());
            }
        }
        calls
    }
}

fn is_jump(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
    ) && instruction.op0_kind() == OpKind::NearBranch64
}

/// What the runtime must know of a type to allocate it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllocatedType {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether there are pointers in it.
    pub has_pointers: bool,
}

/// The type whose descriptor lies `at` bytes into `types`.
pub(super) fn allocated_type(types: &[u8], at: u64) -> Option<AllocatedType> {
    let name = type_name(types, at)?;
    let descriptor = types.get(usize::try_from(at).ok()?..)?;
    Some(AllocatedType {
        name,
        size_bytes: read_u64(descriptor, 0)?,
        // `PtrBytes`, up to 1.19 `ptrdata`: as far as there are any.
        has_pointers: read_u64(descriptor, 8)? > 0,
    })
}

/// The name of the type whose descriptor lies `at` bytes into `types`: all
/// descriptors and names. None where that makes no sense.
pub(super) fn type_name(types: &[u8], at: u64) -> Option<String> {
    let at = usize::try_from(at).ok().filter(|at| at.is_multiple_of(8))?;
    let descriptor = types.get(at..at.checked_add(at::SIZE)?)?;
    let kind = read_u8(descriptor, at::KIND)? & KIND_MASK;
    (1..=LAST_KIND).contains(&kind).then_some(())?;
    // The greatest type is no larger than memory.
    (read_u64(descriptor, 0)? < 1 << 47).then_some(())?;
    let name = usize::try_from(read_i32(descriptor, at::NAME)?).ok()?;
    // `internal/abi.Name`: a byte of flags, the length, the text.
    let (len, taken) = read_varint(types, name.checked_add(1)?)?;
    let text = name.checked_add(1 + taken)?;
    let len = usize::try_from(len).ok().filter(|len| *len > 0)?;
    let text = types.get(text..text.checked_add(len)?)?;
    let star = read_u8(descriptor, at::FLAGS)? & EXTRA_STAR != 0;
    let text = text.strip_prefix(b"*").filter(|_| star).unwrap_or(text);
    let text = to_text(&text[..text.len().min(MAX_NAME_BYTES)]);
    (!text.chars().any(char::is_control)).then_some(text)
}
