//! Where a probe can sit in a function: the one instruction of its prologue that the
//! kernel emulates, decoded from the first byte on. Refuses what it does not
//! recognise; attaches nothing.

use iced_x86::{Code, Instruction, MemorySize, Mnemonic, OpKind, Register};
use thiserror::Error;

use super::bytes::read_u32;
use super::{FuncKind, GoBinary, GoFunction, Machine, x86};

/// Instructions of a prologue looked at. The longest that Go makes, of frames
/// too large for one subtraction, has nine.
const MAX_INSTRUCTIONS: usize = 12;

/// The place of a probe. When the program comes there, all arguments are still
/// in their registers, `g` is in its own (amd64 `r14`, arm64 `x28`), the stack
/// pointer is what it was at the function's first instruction, and the return
/// address is at the top of the stack on amd64 and in the link register on arm64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbePlace {
    /// Link-time address of the instruction.
    pub vaddr: u64,
    /// Where it is in the file.
    pub file_offset: u64,
    /// What it is.
    pub instruction: PlaceInstruction,
}

/// An instruction that the kernel emulates, so that a probe on it costs one trap.
/// Any other is executed out of line, with a second trap right after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceInstruction {
    /// `push %rbp` (amd64, since Go 1.21): `push_setup_xol_ops` in
    /// arch/x86/kernel/uprobes.c. Passed once a call. It may be the function's
    /// first instruction, where there is no check of the stack before it.
    PushFramePointer,
    /// The branch to `runtime.morestack` where the stack is too small: `jbe` on
    /// amd64 (`branch_setup_xol_ops`), `b.ls` on arm64 (`simulate_b_cond` in
    /// arch/arm64/kernel/probes/simulate-insn.c). A call whose stack has to grow
    /// comes by twice, and the first time the flags say that the branch is taken:
    /// whoever counts calls leaves that one out.
    StackCheckBranch,
}

/// Why there is no place for a probe in a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoProbePlace {
    /// Nothing was compiled under that name: it was inlined or left out.
    #[error("the program has no such function")]
    NoFunction,
    /// More than one function was compiled under that name.
    #[error("the program has several functions of that name")]
    Ambiguous,
    /// The function's code is not in the file, or not in its code.
    #[error("its code is not in the file")]
    NoCode,
    /// It has no frame and checks no stack.
    #[error("it begins with no instruction that the kernel emulates")]
    NotEmulated,
}

impl GoBinary {
    /// Where probes can sit in the functions compiled under these names, in the
    /// order of the names. Reads all function names once: not for hot paths.
    pub fn probe_places(&self, names: &[&str]) -> Vec<Result<ProbePlace, NoProbePlace>> {
        let mut found = vec![Err(NoProbePlace::NoFunction); names.len()];
        let view = self.view();
        for func in (0..view.functions).filter_map(|index| view.func(index)) {
            for (name, place) in names.iter().zip(&mut found) {
                if !view.func_name_is(&func, name.as_bytes()) {
                    continue;
                }
                // What only adapts the calling convention goes by the same name.
                let function = self.describe(&func);
                let Some(function) = function.filter(|f| f.kind != FuncKind::Wrapper) else {
                    continue;
                };
                *place = match place {
                    Err(NoProbePlace::NoFunction) => self.place_in(function),
                    _ => Err(NoProbePlace::Ambiguous),
                };
            }
        }
        found
    }

    fn place_in(&self, function: GoFunction) -> Result<ProbePlace, NoProbePlace> {
        let (code, vaddr) = self.code(function).ok_or(NoProbePlace::NoCode)?;
        let (distance, instruction) = match self.machine() {
            Machine::X86_64 => amd64_place(code, vaddr),
            Machine::Aarch64 => arm64_place(code),
        }
        .ok_or(NoProbePlace::NotEmulated)?;
        let vaddr = vaddr.checked_add(distance).ok_or(NoProbePlace::NoCode)?;
        let file_offset = self.code_offset(vaddr).ok_or(NoProbePlace::NoCode)?;
        Ok(ProbePlace {
            vaddr,
            file_offset,
            instruction,
        })
    }

    /// Where a function goes on if its stack is too small: code at its end that has the
    /// stack grown, or lets another goroutine run where that was asked for, and begins
    /// the function anew. None where it checks no stack.
    pub fn stack_grows_at(&self, function: GoFunction) -> Option<u64> {
        let (code, vaddr) = self.code(function)?;
        let target = match self.machine() {
            Machine::X86_64 => amd64_grows_at(code, vaddr),
            Machine::Aarch64 => arm64_grows_at(code, vaddr),
        }?;
        (function.entry < target && target < function.end).then_some(target)
    }

    /// The file offset of an address, where the kernel maps it as code from there.
    fn code_offset(&self, vaddr: u64) -> Option<u64> {
        let mut holders = self.segments().iter().filter(|segment| {
            let distance = vaddr.checked_sub(segment.vaddr);
            distance.is_some_and(|distance| distance < segment.file_size)
        });
        let segment = holders.next().filter(|segment| segment.executable)?;
        segment.offset.checked_add(vaddr - segment.vaddr)
    }
}

/// The place in an amd64 function, in bytes from its start
/// (`cmd/internal/obj/x86/obj6.go`, `stacksplit` and `preprocess`).
fn amd64_place(code: &[u8], vaddr: u64) -> Option<(u64, PlaceInstruction)> {
    let mut compared = false;
    let mut branch = None;
    for instruction in x86::instructions(code, vaddr).take(MAX_INSTRUCTIONS) {
        let distance = instruction.ip().wrapping_sub(vaddr);
        if is_push_rbp(&instruction) {
            return Some((distance, PlaceInstruction::PushFramePointer));
        }
        if branch.is_some() {
            break;
        }
        match instruction.mnemonic() {
            Mnemonic::Cmp if compares_stack_guard(&instruction) => compared = true,
            Mnemonic::Jbe if compared && is_plain_branch(&instruction) => {
                branch = Some((distance, PlaceInstruction::StackCheckBranch));
            }
            // Of a frame so large that the subtraction may pass below 0.
            Mnemonic::Jb if !compared => {}
            // Only these compute how far down the frame would come.
            Mnemonic::Lea | Mnemonic::Mov | Mnemonic::Sub if sets_scratch(&instruction) => {}
            _ => break,
        }
    }
    branch
}

/// Where the branch of the check of the stack leads, in an amd64 function.
fn amd64_grows_at(code: &[u8], vaddr: u64) -> Option<u64> {
    let mut compared = false;
    for instruction in x86::instructions(code, vaddr).take(MAX_INSTRUCTIONS) {
        compared |= instruction.mnemonic() == Mnemonic::Cmp && compares_stack_guard(&instruction);
        if compared && instruction.mnemonic() == Mnemonic::Jbe {
            return is_plain_branch(&instruction).then(|| instruction.near_branch_target());
        }
    }
    None
}

/// The one-byte form: with a prefix it may be executed out of line.
fn is_push_rbp(instruction: &Instruction) -> bool {
    instruction.code() == Code::Push_r64
        && instruction.op0_register() == Register::RBP
        && instruction.len() == 1
}

/// `cmp` of the stack pointer, or what it would be, with `g.stackguard0` or
/// `g.stackguard1` (16 and 24 in all versions).
fn compares_stack_guard(instruction: &Instruction) -> bool {
    matches!(instruction.op0_register(), Register::RSP | Register::R12)
        && instruction.op1_kind() == OpKind::Memory
        && instruction.memory_base() == Register::R14
        && instruction.memory_index() == Register::None
        && instruction.memory_size() == MemorySize::UInt64
        && matches!(instruction.memory_displacement64(), 16 | 24)
}

/// Without prefixes, as the kernel refuses some of them: two bytes or six.
fn is_plain_branch(instruction: &Instruction) -> bool {
    match instruction.code() {
        Code::Jbe_rel8_64 => instruction.len() == 2,
        Code::Jbe_rel32_64 => instruction.len() == 6,
        _ => false,
    }
}

/// Writes `r12`, which holds nothing between functions.
fn sets_scratch(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::R12
}

/// The place in an arm64 function, in bytes from its start
/// (`cmd/internal/obj/arm64/obj7.go`, `stacksplit`).
fn arm64_place(code: &[u8]) -> Option<(u64, PlaceInstruction)> {
    let mut compared = false;
    for index in 0..MAX_INSTRUCTIONS {
        let word = read_u32(code, index * 4)?;
        if word & 0xff00_0010 == 0x5400_0000 {
            // b.condition
            match (word & 15, compared) {
                (ARM64_LS, true) => {
                    return Some((index as u64 * 4, PlaceInstruction::StackCheckBranch));
                }
                // Of a frame so large that the subtraction may pass below 0.
                (ARM64_LO, false) => {}
                _ => return None,
            }
        } else if is_arm64_compare(word) {
            compared = true;
        } else if sets_arm64_scratch(word) {
            compared = false;
        } else {
            return None;
        }
    }
    None
}

/// Where the branch of the check of the stack leads, in an arm64 function.
fn arm64_grows_at(code: &[u8], vaddr: u64) -> Option<u64> {
    let (distance, _) = arm64_place(code)?;
    let word = read_u32(code, usize::try_from(distance).ok()?)?;
    // 19 bits of words, with a sign.
    let words = i64::from((word << 8) as i32 >> 13);
    Some(vaddr.wrapping_add(distance).wrapping_add_signed(words << 2))
}

/// Conditions of branches: unsigned lower or same, and lower.
const ARM64_LS: u32 = 9;
const ARM64_LO: u32 = 3;

/// `cmp sp, x16` or `cmp x17, x16`, where the guard is in `x16`.
fn is_arm64_compare(word: u32) -> bool {
    let (target, base, other) = (word & 31, word >> 5 & 31, word >> 16 & 31);
    // Of a shifted register by nothing, and of an extended one by nothing.
    let shifted = word & 0xffe0_fc00 == 0xeb00_0000 && base == 17;
    let extended = word & 0xffe0_fc00 == 0xeb20_6000 && (base == 31 || base == 17);
    target == 31 && other == 16 && (shifted || extended)
}

/// Loads the guard into `x16` from `g`, or computes how far down the frame would
/// come, in registers that hold nothing between functions: `x16`, `x17`, `x27`.
fn sets_arm64_scratch(word: u32) -> bool {
    let (target, base) = (word & 31, word >> 5 & 31);
    let scratch = matches!(target, 16 | 17 | 27);
    // ldr x16, [x28, #16] or #24
    let guard = [0xf940_0800, 0xf940_0c00].contains(&(word & 0xffff_fc00));
    let loads = target == 16 && base == 28 && guard;
    // add, sub and subs of a number, which is how `mov x17, sp` is written too.
    let number = matches!(word & 0xff80_0000, 0x9100_0000 | 0xd100_0000 | 0xf100_0000);
    // sub and subs of a register, shifted or extended.
    let register = matches!(word & 0xff20_0000, 0xcb00_0000 | 0xeb00_0000)
        || matches!(word & 0xffe0_0000, 0xcb20_0000 | 0xeb20_0000);
    // movn, movz, movk and orr with a mask.
    let constant = matches!(
        word & 0xff80_0000,
        0x9280_0000 | 0xd280_0000 | 0xf280_0000 | 0xb200_0000
    );
    loads || scratch && (number || register || constant)
}

#[cfg(test)]
mod tests {
    use super::PlaceInstruction::{PushFramePointer, StackCheckBranch};
    use super::*;

    fn amd64(code: &[u8]) -> Option<(u64, PlaceInstruction)> {
        amd64_place(code, 0x43_8940)
    }

    fn arm64(words: &[u32]) -> Option<(u64, PlaceInstruction)> {
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        arm64_place(&code)
    }

    #[test]
    fn the_frame_pointer_is_pushed_behind_the_check() {
        // Go 1.21: cmp 0x10(%r14),%rsp; jbe; push %rbp; mov %rsp,%rbp
        let near = b"\x49\x3b\x66\x10\x0f\x86\xdc\0\0\0\x55\x48\x89\xe5";
        assert_eq!(amd64(near), Some((10, PushFramePointer)));
        let short = b"\x49\x3b\x66\x10\x76\x79\x55\x48\x89\xe5";
        assert_eq!(amd64(short), Some((6, PushFramePointer)));
        // A large frame: lea -0x100(%rsp),%r12; cmp 0x10(%r14),%r12; jbe; push
        let large = b"\x4c\x8d\xa4\x24\x00\xff\xff\xff\x4d\x3b\x66\x10\x76\x20\x55";
        assert_eq!(amd64(large), Some((14, PushFramePointer)));
        // A huge one: mov %rsp,%r12; sub $0x20000,%r12; jb; cmp; jbe; push
        let huge =
            b"\x49\x89\xe4\x49\x81\xec\0\0\x02\0\x72\x20\x4d\x3b\x66\x10\x0f\x86\0\x01\0\0\x55";
        assert_eq!(amd64(huge), Some((22, PushFramePointer)));
        // Without a check of the stack it is the first instruction.
        assert_eq!(amd64(b"\x55\x48\x89\xe5"), Some((0, PushFramePointer)));
    }

    #[test]
    fn without_a_push_it_is_the_branch_of_the_check() {
        // Go 1.19: cmp 0x10(%r14),%rsp; jbe; sub $0x18,%rsp
        let near = b"\x49\x3b\x66\x10\x0f\x86\xe9\0\0\0\x48\x83\xec\x18";
        assert_eq!(amd64(near), Some((4, StackCheckBranch)));
        let short = b"\x49\x3b\x66\x10\x76\x58\x48\x83\xec\x20";
        assert_eq!(amd64(short), Some((4, StackCheckBranch)));
        let large = b"\x4c\x8d\xa4\x24\x00\xff\xff\xff\x4d\x3b\x66\x10\x76\x20\x48\x81\xec\x80";
        assert_eq!(amd64(large), Some((12, StackCheckBranch)));
    }

    #[test]
    fn what_is_not_a_prologue_has_no_place() {
        let refused: [(&str, &[u8]); 9] = [
            ("nothing", b""),
            ("a leaf: mov %rax,%rbx; ret", b"\x48\x89\xc3\xc3"),
            ("no frame pointer: sub $0x18,%rsp", b"\x48\x83\xec\x18\x55"),
            ("another register: push %rbx", b"\x53\x55"),
            ("a prefix: rex push %rbp", b"\x40\x55"),
            ("no check: jbe; push", b"\x76\x20\x55"),
            (
                "another check: cmp %rax,%rsp; jbe; push",
                b"\x48\x39\xc4\x76\x20\x55",
            ),
            (
                "not g: cmp 0x10(%r13),%rsp; jbe; push",
                b"\x49\x3b\x65\x10\x76\x20\x55",
            ),
            (
                "the wrong branch: cmp 0x10(%r14),%rsp; ja; push",
                b"\x49\x3b\x66\x10\x77\x20\x55",
            ),
        ];
        for (what, code) in refused {
            assert_eq!(amd64(code), None, "{what}");
        }
        // An argument is written before: what is pushed then is of no use.
        assert_eq!(amd64(b"\x48\x89\xc8\x49\x3b\x66\x10\x76\x20\x55"), None);
        // Cut off behind the branch.
        assert_eq!(
            amd64(b"\x49\x3b\x66\x10\x76\x20"),
            Some((4, StackCheckBranch))
        );
    }

    #[test]
    fn arm64_has_the_branch_alone() {
        // ldr x16,[x28,#16]; cmp sp,x16; b.ls; str x30,[sp,#-64]!
        let small = [0xf940_0b90, 0xeb30_63ff, 0x5400_0649, 0xf81c_0ffe];
        assert_eq!(arm64(&small), Some((8, StackCheckBranch)));
        // ldr x16,[x28,#16]; sub x17,sp,#0x100; cmp x17,x16; b.ls
        let large = [0xf940_0b90, 0xd104_03f1, 0xeb10_023f, 0x5400_0649];
        assert_eq!(arm64(&large), Some((12, StackCheckBranch)));
        // mov x27,#..; sub x17,sp,x27; cmp x17,x16; b.ls
        let huge = [
            0xf940_0b90,
            0xd282_001b,
            0xeb3b_63f1,
            0x5400_0083,
            0xeb10_023f,
            0x5400_0649,
        ];
        assert_eq!(arm64(&huge), Some((20, StackCheckBranch)));
        // Without a check of the stack nothing is emulated.
        assert_eq!(arm64(&[0xf81f_0ffe, 0xf81f_83fd]), None);
        // The branch alone, another condition, an argument written before.
        assert_eq!(arm64(&small[2..]), None);
        assert_eq!(arm64(&[0xf940_0b90, 0xeb30_63ff, 0x5400_0648]), None);
        assert_eq!(
            arm64(&[0xaa01_03e0, 0xf940_0b90, 0xeb30_63ff, 0x5400_0649]),
            None
        );
        assert_eq!(arm64(&small[..2]), None);
    }

    #[test]
    fn the_check_says_where_the_stack_is_grown() {
        // jbe over 0xdc bytes, from behind its six.
        let near = b"\x49\x3b\x66\x10\x0f\x86\xdc\0\0\0\x55\x48\x89\xe5";
        assert_eq!(amd64_grows_at(near, 0x1000), Some(0x1000 + 10 + 0xdc));
        let short = b"\x49\x3b\x66\x10\x76\x79\x55\x48\x89\xe5";
        assert_eq!(amd64_grows_at(short, 0x1000), Some(0x1000 + 6 + 0x79));
        assert_eq!(amd64_grows_at(b"\x55\x48\x89\xe5", 0x1000), None);
        assert_eq!(amd64_grows_at(b"\x76\x79\x55", 0x1000), None);
        // b.ls over 50 words, from itself.
        let words = [0xf940_0b90, 0xeb30_63ff, 0x5400_0649, 0xf81c_0ffe];
        let code: Vec<u8> = words
            .iter()
            .flat_map(|word: &u32| word.to_le_bytes())
            .collect();
        assert_eq!(arm64_grows_at(&code, 0x1000), Some(0x1000 + 8 + 50 * 4));
        assert_eq!(arm64_grows_at(&code[8..], 0x1000), None);
    }

    /// Whatever the bytes: an answer, and where there is one, a place at which the
    /// kernel finds what was said.
    #[test]
    fn whatever_the_bytes_the_place_is_what_it_says() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut roll = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> 16
        };
        // Pieces of prologues between noise, so that places are found at all.
        let pieces: [&[u8]; 7] = [
            b"\x49\x3b\x66\x10",
            b"\x76\x20",
            b"\x0f\x86\xdc\0\0\0",
            b"\x55",
            b"\x4c\x8d\xa4\x24\0\xff\xff\xff",
            b"\x66",
            b"\x49\x89\xe4",
        ];
        let mut places = 0;
        for _ in 0..200_000 {
            let mut code = Vec::new();
            for _ in 0..roll() % 6 {
                match roll() % 4 {
                    0 => code.push(roll() as u8),
                    _ => code.extend(pieces[roll() as usize % pieces.len()]),
                }
            }
            if let Some((at, instruction)) = amd64(&code) {
                let rest = &code[at as usize..];
                let holds = match instruction {
                    PushFramePointer => rest[0] == 0x55,
                    StackCheckBranch => rest[0] == 0x76 || rest[..2] == [0x0f, 0x86],
                };
                assert!(holds, "{code:x?}: {at} {instruction:?}");
                places += 1;
            }
            let words: Vec<u32> = (0..8).map(|_| roll() as u32).collect();
            assert_eq!(arm64(&words), None, "{words:x?}");
        }
        assert!(places > 1_000, "{places}");
    }
}
