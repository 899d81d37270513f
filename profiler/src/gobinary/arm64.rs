//! arm64 machine code, as far as the addresses in it matter. An address takes two
//! instructions there: the page, then the rest, added or as part of a load; this
//! follows registers from the one to the other, and not past a call or jump.

use super::bytes::read_u32;
use super::references::{Access, Reference};
use super::x86::MAX_CODE_BYTES;

/// Go's assembler makes addresses in this register that the code only reads or
/// writes at (`REGTMP`, cmd/internal/obj/arm64/a.out.go).
const SCRATCH: usize = 27;
/// In the place of a register: zero, or the stack pointer.
const NONE: usize = 31;

/// What is known of a register.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// The page of an address.
    Page(u64),
    /// All of one.
    Address(u64),
}

/// The addresses that a function's code refers to, in its order.
pub(super) fn references(code: &[u8], vaddr: u64) -> Vec<Reference> {
    let code = &code[..code.len().min(MAX_CODE_BYTES)];
    let mut found = Vec::new();
    let mut registers: [Option<Known>; 32] = [None; 32];
    for index in 0..code.len() / 4 {
        let Some(word) = read_u32(code, index * 4) else {
            break;
        };
        let here = vaddr.wrapping_add(index as u64 * 4);
        if leaves(word) {
            registers = [None; 32];
            continue;
        }
        let (to, base) = (register(word), register(word >> 5));
        let written = match word {
            _ if word & 0x9f00_0000 == 0x9000_0000 => Some(Known::Page(page(word, here))),
            _ if word & 0xff80_0000 == 0x9100_0000 => {
                let shift = if word & 0x0040_0000 == 0 { 0 } else { 12 };
                let rest = u64::from(word >> 10 & 0xfff) << shift;
                let sum = registers[base].map(|known| known.plus(rest));
                if let (Some(Known::Page(_)), Some(target)) = (registers[base], sum)
                    && to != SCRATCH
                {
                    let access = Access::Address;
                    found.push(Reference { access, target });
                }
                sum.map(Known::Address)
            }
            _ => {
                if let Some(((access, offset), known)) = access(word).zip(registers[base]) {
                    let target = known.plus(offset);
                    // An atomic load has its address in a register, for nothing else.
                    let taken = Reference {
                        access: Access::Address,
                        target,
                    };
                    found.pop_if(|last| is_atomic_load(word) && *last == taken);
                    found.push(Reference { access, target });
                }
                None
            }
        };
        // A store has there what it stores, which is forgotten needlessly.
        registers[to] = written;
        if is_pair(word) {
            registers[register(word >> 10)] = None;
        }
        registers[NONE] = None;
    }
    found
}

impl Known {
    fn plus(self, offset: u64) -> u64 {
        let (Known::Page(address) | Known::Address(address)) = self;
        address.wrapping_add(offset)
    }
}

fn register(word: u32) -> usize {
    (word & 31) as usize
}

/// The page of `adrp`.
fn page(word: u32, here: u64) -> u64 {
    let pages = (word >> 5 & 0x7_ffff) << 2 | word >> 29 & 3;
    let distance = i64::from((pages << 11) as i32 >> 11) << 12;
    (here & !0xfff).wrapping_add_signed(distance)
}

/// Whether other code may run before the next instruction does: `b`, `bl`, `br`,
/// `blr`, `ret`.
fn leaves(word: u32) -> bool {
    word & 0x7c00_0000 == 0x1400_0000 || word & 0xfe00_0000 == 0xd600_0000
}

/// `ldar`, of any size.
fn is_atomic_load(word: u32) -> bool {
    word & 0x3fff_fc00 == 0x08df_fc00
}

/// What is done at the base register and what is added to it.
fn access(word: u32) -> Option<(Access, u64)> {
    let scaled = |size: u64| u64::from(word >> 10 & 0xfff) * size;
    // The atomic loads, `ldar`, have nothing to add.
    Some(match (word & 0xffc0_0000, word & 0xffff_fc00) {
        (0xf940_0000, _) => (Access::Load64, scaled(8)),
        // `ldr` and `ldrsw`.
        (0xb940_0000 | 0xb980_0000, _) => (Access::Load32, scaled(4)),
        (0x3940_0000, _) => (Access::Load8, scaled(1)),
        (_, 0xc8df_fc00) => (Access::Load64, 0),
        (_, 0x88df_fc00) => (Access::Load32, 0),
        (_, 0x08df_fc00) => (Access::Load8, 0),
        (0xf900_0000, _) => (Access::Other, scaled(8)),
        (0xb900_0000, _) => (Access::Other, scaled(4)),
        (0x3900_0000, _) => (Access::Other, scaled(1)),
        _ => return None,
    })
}

/// `ldp` and `stp`.
fn is_pair(word: u32) -> bool {
    word & 0x3a00_0000 == 0x2800_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: u64 = 0x1_0000;

    fn adrp(register: u32, pages: u32) -> u32 {
        0x9000_0000 | (pages & 3) << 29 | (pages >> 2) << 5 | register
    }

    fn add(to: u32, base: u32, rest: u32) -> u32 {
        0x9100_0000 | rest << 10 | base << 5 | to
    }

    fn load(form: u32, scaled: u32, base: u32, to: u32) -> u32 {
        form | scaled << 10 | base << 5 | to
    }

    fn check(words: &[u32], expected: &[(Access, u64)]) {
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let found = references(&code, HERE + 8);
        let found: Vec<_> = found.iter().map(|r| (r.access, r.target)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn pages_and_rests_make_addresses() {
        check(
            &[adrp(1, 5), add(1, 1, 0x10)],
            &[(Access::Address, HERE + 0x5010)],
        );
        // Backwards: a page that is less than the code's own.
        check(
            &[adrp(1, 0x1f_ffff), add(2, 1, 8)],
            &[(Access::Address, HERE - 0x1000 + 8)],
        );
    }

    #[test]
    fn loads_have_the_rest_in_them() {
        let words = [
            adrp(27, 1),
            load(0xf940_0000, 2, 27, 0),
            adrp(27, 1),
            load(0xb940_0000, 2, 27, 0),
            adrp(27, 1),
            load(0x3940_0000, 2, 27, 0),
            // Where the assembler does not know how it is aligned.
            adrp(27, 1),
            add(27, 27, 0x20),
            load(0xf940_0000, 0, 27, 0),
            // ldarw
            adrp(3, 1),
            add(3, 3, 4),
            0x88df_fc00 | 3 << 5,
        ];
        let at = HERE + 0x1000;
        let expected = [
            (Access::Load64, at + 16),
            (Access::Load32, at + 8),
            (Access::Load8, at + 2),
            (Access::Load64, at + 0x20),
            (Access::Load32, at + 4),
        ];
        check(&words, &expected);
    }

    #[test]
    fn what_a_register_holds_is_forgotten() {
        const BL: u32 = 0x9400_0010;
        const MOV: u32 = 0xaa02_03e1;
        check(&[adrp(1, 5), BL, add(1, 1, 0x10)], &[]);
        check(&[adrp(1, 5), MOV, add(1, 1, 0x10)], &[]);
        check(
            &[adrp(1, 5), load(0xf940_0000, 0, 2, 1), add(1, 1, 16)],
            &[],
        );
        check(&[add(31, 31, 16), load(0xf940_0000, 1, 31, 0)], &[]);
        check(&[0xffff_ffff, 0], &[]);
    }
}
