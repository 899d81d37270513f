//! Where a thread keeps its current goroutine, decoded from the runtime's own
//! code that reads it. Understands only the instructions that occur there; what
//! it does not understand is unknown, never guessed.

use super::bytes::{read_i32, read_u8, read_u32};

/// Where the address of the current `runtime.g` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GLocation {
    /// amd64: in the word this many bytes from the FS base of the thread.
    FsOffset(i64),
    /// amd64: that offset stands, as a signed word, at this link-time address of
    /// the loaded binary: read it there once its relocations are applied. It is
    /// negative then.
    GotSlot(u64),
    /// arm64: in a general register while Go code runs.
    Register {
        /// The register's number.
        number: u8,
        /// Where else it is in a program with cgo, C code included. None where
        /// that is unknown. In a program without cgo that word does not exist.
        in_c: Option<ThreadWord>,
    },
    /// It is not known.
    Unknown {
        /// One clause that says why, for people.
        why: &'static str,
    },
}

/// A word of thread-local storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadWord {
    /// This many bytes from the thread pointer (`TPIDR_EL0`).
    Offset(i64),
    /// That offset stands at this link-time address, as for
    /// [`GLocation::GotSlot`]; it is positive.
    GotSlot(u64),
}

/// Go's g register on arm64, all versions.
pub(super) const ARM64_G: u8 = 28;

/// The function decoded on amd64. It reads g as one of the first things, and as
/// assembly it does so alike in all versions.
pub(super) const ANCHOR_AMD64: &str = "runtime.asmcgocall";
/// The function decoded on arm64.
pub(super) const ANCHOR_ARM64: &str = "runtime.load_g";

/// Instructions looked at: the access is the 8th at the latest (Go 1.23 amd64).
const MAX_INSTRUCTIONS: usize = 16;
/// Thread-local storage of a program is smaller.
const MAX_TLS_BYTES: i64 = 1 << 30;

/// What a register is known to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Unknown,
    Number(i64),
    /// The word at this address.
    Slot(u64),
}

/// Decodes `runtime.asmcgocall` of amd64, whose code begins at `vaddr`. By
/// linker and build mode it reads g as `fs:[offset]`, as `mov rcx, offset;
/// fs:[rcx]` or as `mov rcx, [rip+slot]; fs:[rcx]` (`runtime/go_tls.h`,
/// `cmd/internal/obj/x86/obj6.go`).
pub(super) fn decode_amd64(code: &[u8], vaddr: u64) -> GLocation {
    let mut registers = [Value::Unknown; 16];
    let mut at = 0;
    for _ in 0..MAX_INSTRUCTIONS {
        let Some(instruction) = Amd64::decode(code.get(at..).unwrap_or_default()) else {
            break;
        };
        at += instruction.len;
        let next = vaddr.wrapping_add(at as u64);
        match instruction.does {
            Does::Nothing => {}
            Does::Clobber(register) => registers[register] = Value::Unknown,
            Does::Set(register, number) => registers[register] = Value::Number(number),
            Does::LoadRelative(register, distance) => {
                let slot = next.wrapping_add_signed(distance);
                registers[register] = Value::Slot(slot);
            }
            Does::ReadFs(offset) => return fs_offset(offset),
            Does::ReadFsAt(register) => {
                return match registers[register] {
                    Value::Number(offset) => fs_offset(offset),
                    Value::Slot(slot) => GLocation::GotSlot(slot),
                    Value::Unknown => break,
                };
            }
        }
    }
    GLocation::Unknown {
        why: "runtime.asmcgocall reads it in a way goprof does not know",
    }
}

/// Thread-local storage lies below the FS base (x86-64 psABI).
fn fs_offset(offset: i64) -> GLocation {
    if (-MAX_TLS_BYTES..0).contains(&offset) && offset % 8 == 0 {
        GLocation::FsOffset(offset)
    } else {
        GLocation::Unknown {
            why: "runtime.asmcgocall reads it at an offset that cannot be",
        }
    }
}

/// What an amd64 instruction does, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Nothing,
    /// Changes a register to something unknown.
    Clobber(usize),
    Set(usize, i64),
    /// Loads a register from a distance past the instruction.
    LoadRelative(usize, i64),
    /// Reads `fs:[offset]`.
    ReadFs(i64),
    /// Reads `fs:[register]`.
    ReadFsAt(usize),
}

struct Amd64 {
    len: usize,
    does: Does,
}

impl Amd64 {
    /// Decodes `push rbp`, `nop`, and 64-bit `mov` in the forms that stand
    /// before the access. None for anything else.
    fn decode(code: &[u8]) -> Option<Amd64> {
        let one = |len, does| Some(Amd64 { len, does });
        match read_u8(code, 0)? {
            0x55 | 0x90 => return one(1, Does::Nothing),
            _ => {}
        }
        let fs = read_u8(code, 0)? == 0x64;
        let at = usize::from(fs);
        // REX with 64-bit operands and no index register of the upper half.
        let rex = read_u8(code, at)?;
        if rex & 0xfa != 0x48 {
            return None;
        }
        let modrm = read_u8(code, at + 2)?;
        let (mode, low) = (modrm >> 6, modrm & 7);
        let register = usize::from(modrm >> 3 & 7 | (rex & 4) << 1);
        let other = usize::from(low | (rex & 1) << 3);
        let after = at + 3;
        match (fs, read_u8(code, at + 1)?, mode, low) {
            // mov register, fs:[offset]; the SIB byte says: neither base nor index.
            (true, 0x8b, 0, 4) if rex & 1 == 0 && read_u8(code, after)? == 0x25 => {
                one(after + 5, Does::ReadFs(read_i32(code, after + 1)?.into()))
            }
            // mov register, fs:[other]
            (true, 0x8b, 0, low) if low != 4 && low != 5 => one(after, Does::ReadFsAt(other)),
            // mov register, [rip+distance]
            (false, 0x8b, 0, 5) => one(
                after + 4,
                Does::LoadRelative(register, read_i32(code, after)?.into()),
            ),
            // mov register, [rsp+offset]: an argument.
            (false, 0x8b, 1, 4) if read_u8(code, after)? == 0x24 => {
                one(after + 2, Does::Clobber(register))
            }
            // mov other, number
            (false, 0xc7, 3, _) if modrm & 0x38 == 0 => {
                one(after + 4, Does::Set(other, read_i32(code, after)?.into()))
            }
            // mov other, register
            (false, 0x89, 3, _) => one(after, Does::Clobber(other)),
            _ => None,
        }
    }
}

/// Decodes `runtime.load_g` of arm64, whose code begins at `vaddr`: it adds to
/// the thread pointer what the linker knows, or what stands in a GOT slot
/// (`runtime/tls_arm64.s`, `cmd/internal/obj/arm64/asm7.go`).
pub(super) fn decode_arm64(code: &[u8], vaddr: u64) -> GLocation {
    GLocation::Register {
        number: ARM64_G,
        in_c: decode_load_g(code, vaddr),
    }
}

fn decode_load_g(code: &[u8], vaddr: u64) -> Option<ThreadWord> {
    let mut registers = [Value::Unknown; 32];
    let mut pages = [None; 32];
    let mut pointer = None;
    for index in 0..MAX_INSTRUCTIONS {
        let word = read_u32(code, index * 4)?;
        let field = |shift: u32| (word >> shift & 31) as usize;
        let (target, base, added) = (field(0), field(5), field(16));
        if word & 0xffff_ffe0 == 0xd53b_d040 {
            // mrs target, tpidr_el0
            pointer = Some(target);
        } else if word & 0xff80_0000 == 0xd280_0000 {
            // movz target, number, lsl shift
            let number = u64::from(word >> 5 & 0xffff) << (16 * (word >> 21 & 3));
            registers[target] = Value::Number(number as i64);
        } else if word & 0xff80_0000 == 0xf280_0000 {
            // movk target, number, lsl shift
            let shift = 16 * (word >> 21 & 3);
            let Value::Number(old) = registers[target] else {
                return None;
            };
            let kept = old as u64 & !(0xffff << shift);
            let number = kept | u64::from(word >> 5 & 0xffff) << shift;
            registers[target] = Value::Number(number as i64);
        } else if word & 0x9f00_0000 == 0x9000_0000 {
            // adrp target, pages
            let distance = (word >> 5 & 0x7_ffff) << 2 | word >> 29 & 3;
            let distance = i64::from((distance << 11) as i32 >> 11) << 12;
            let here = vaddr.wrapping_add(index as u64 * 4) & !0xfff;
            pages[target] = Some(here.wrapping_add_signed(distance));
            registers[target] = Value::Unknown;
        } else if word & 0xffc0_0000 == 0xf940_0000 {
            // ldr target, [base, offset]
            let offset = u64::from(word >> 10 & 0xfff) * 8;
            registers[target] = match pages[base] {
                Some(page) => Value::Slot(page.wrapping_add(offset)),
                None => Value::Unknown,
            };
            pages[target] = None;
        } else if word & 0xffe0_fc00 == 0xf860_6800 {
            // ldr target, [base, added]: of the thread pointer and the offset.
            let named = target == usize::from(ARM64_G) && Some(base) == pointer;
            return match registers[added] {
                // Thread-local storage lies past a header of 16 bytes (AArch64
                // ABI, variant 1).
                Value::Number(offset @ 16..MAX_TLS_BYTES) if named => {
                    Some(ThreadWord::Offset(offset))
                }
                Value::Slot(slot) if named => Some(ThreadWord::GotSlot(slot)),
                _ => None,
            };
        }
        // Anything else only decides whether the program has cgo: add, ldrsb, cbz.
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNKNOWN: GLocation = GLocation::Unknown {
        why: "runtime.asmcgocall reads it in a way goprof does not know",
    };

    #[test]
    fn static_programs_have_a_constant() {
        // Go 1.19: two arguments, the stack pointer, then g.
        let code = b"\x48\x8b\x44\x24\x08\x48\x8b\x5c\x24\x10\x48\x89\xe2\
                     \x64\x48\x8b\x3c\x25\xf8\xff\xff\xff\x48\x83\xff\x00";
        assert_eq!(decode_amd64(code, 0x45d620), GLocation::FsOffset(-8));
        // Go 1.26, with 4 KiB of thread-local storage in C.
        let code = b"\x55\x48\x89\xe5\x64\x48\x8b\x3c\x25\xf8\xef\xff\xff";
        assert_eq!(decode_amd64(code, 0x481b20), GLocation::FsOffset(-4104));
    }

    #[test]
    fn position_independent_programs_go_through_a_register() {
        let code = b"\x55\x48\x89\xe5\x48\xc7\xc1\xf8\xff\xff\xff\x64\x48\x8b\x39";
        assert_eq!(decode_amd64(code, 0xafec0), GLocation::FsOffset(-8));
    }

    #[test]
    fn libraries_have_a_slot() {
        let code = b"\x55\x48\x89\xe5\x48\x8b\x0d\x15\xaf\x12\x00\x64\x48\x8b\x39";
        assert_eq!(decode_amd64(code, 0xb0080), GLocation::GotSlot(0x1dafa0));
    }

    #[test]
    fn other_code_is_unknown() {
        let check = |code: &[u8]| assert_eq!(decode_amd64(code, 0x1000), UNKNOWN, "{code:x?}");
        check(b"");
        check(b"\x64");
        check(b"\x64\x48\x8b\x3c\x25\xf8");
        // Through a register of which nothing is known, or no longer.
        check(b"\x64\x48\x8b\x39");
        check(b"\x48\xc7\xc1\xf8\xff\xff\xff\x48\x89\xc1\x64\x48\x8b\x39");
        // An access that is not the first thing of a function.
        check(&[&[0x90; 64][..], b"\x64\x48\x8b\x3c\x25\xf8\xff\xff\xff"].concat());
        // A call of __tls_get_addr.
        check(b"\x66\x48\x8d\x3d\x00\x00\x00\x00\x66\x66\x48\xe8\x00\x00\x00\x00");
        // An offset above the FS base.
        assert_ne!(
            decode_amd64(b"\x64\x48\x8b\x3c\x25\x08\x00\x00\x00", 0),
            GLocation::FsOffset(8)
        );
    }

    fn arm64(words: &[u32]) -> Option<ThreadWord> {
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        decode_load_g(&code, 0xa7d40)
    }

    #[test]
    fn load_g_is_decoded() {
        // Go 1.27: iscgo, thread pointer, offset, g.
        let linked = [
            0xd000_0a3b,
            0x39aa_ff60,
            0xb400_0080,
            0xd53b_d040,
            0xd280_021b,
            0xf87b_681c,
        ];
        assert_eq!(arm64(&linked), Some(ThreadWord::Offset(16)));
        // The same in a library.
        let slot = [
            0xd000_08fb,
            0x399b_1360,
            0xb400_00a0,
            0xd53b_d040,
            0x9000_08db,
            0xf947_c37b,
            0xf87b_681c,
        ];
        assert_eq!(arm64(&slot), Some(ThreadWord::GotSlot(0x1bff80)));
        // In a PIE, as the linkers relax it.
        let small = [0xd53b_d040, 0xd2a0_001b, 0xf280_021b, 0xf87b_681c];
        assert_eq!(arm64(&small), Some(ThreadWord::Offset(16)));
        let large = [0xd53b_d040, 0xd2a0_003b, 0xf280_041b, 0xf87b_681c];
        assert_eq!(arm64(&large), Some(ThreadWord::Offset(0x10020)));
    }

    #[test]
    fn other_load_g_is_unknown() {
        assert_eq!(arm64(&[]), None);
        assert_eq!(arm64(&[0xd65f_03c0; 32]), None, "never reads g");
        // No thread pointer; another target; another base.
        assert_eq!(arm64(&[0xd280_021b, 0xf87b_681c]), None);
        assert_eq!(arm64(&[0xd53b_d040, 0xd280_021b, 0xf87b_681b]), None);
        assert_eq!(arm64(&[0xd53b_d041, 0xd280_021b, 0xf87b_681c]), None);
    }
}
