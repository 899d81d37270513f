//! amd64 machine code, as far as the addresses in it matter. Decodes a function
//! from its first byte on, so that nothing else is taken for an instruction;
//! knows no function and no variable.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic};

use super::references::{Access, Reference};

/// Bytes of a function looked at. Go's largest take less.
pub(super) const MAX_CODE_BYTES: usize = 1 << 20;

/// The instructions of a function whose code begins at `vaddr`, up to the first
/// that makes no sense.
pub(super) fn instructions(code: &[u8], vaddr: u64) -> impl Iterator<Item = Instruction> + '_ {
    let code = &code[..code.len().min(MAX_CODE_BYTES)];
    let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    std::iter::from_fn(move || {
        let instruction = decoder.can_decode().then(|| decoder.decode())?;
        (!instruction.is_invalid()).then_some(instruction)
    })
}

/// The addresses that a function's code refers to relative to itself, in its
/// order.
pub(super) fn references(code: &[u8], vaddr: u64) -> impl Iterator<Item = Reference> + '_ {
    instructions(code, vaddr)
        .filter(Instruction::is_ip_rel_memory_operand)
        .map(|instruction| Reference {
            access: access(&instruction),
            target: instruction.ip_rel_memory_address(),
        })
}

fn access(instruction: &Instruction) -> Access {
    match (instruction.mnemonic(), instruction.code()) {
        (Mnemonic::Lea, _) => Access::Address,
        (_, Code::Mov_r64_rm64) => Access::Load64,
        (_, Code::Mov_r32_rm32) => Access::Load32,
        (Mnemonic::Movzx, Code::Movzx_r32_rm8 | Code::Movzx_r64_rm8) => Access::Load8,
        _ => Access::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_refers_to_the_code_itself_is_found() {
        // lea rax, [rip+0x10]; mov rcx, [rip+0x20]; mov ecx, [rip+0x30];
        // movzx eax, byte [rip+0x40]; cmp dword [rip+0x50], 0; mov rax, [rbx]
        let code = b"\x48\x8d\x05\x10\0\0\0\x48\x8b\x0d\x20\0\0\0\x8b\x0d\x30\0\0\0\
                     \x0f\xb6\x05\x40\0\0\0\x83\x3d\x50\0\0\0\0\x48\x8b\x03";
        let found: Vec<_> = references(code, 0x1000).collect();
        let expected = [
            (Access::Address, 0x1007 + 0x10),
            (Access::Load64, 0x100e + 0x20),
            (Access::Load32, 0x1014 + 0x30),
            (Access::Load8, 0x101b + 0x40),
            (Access::Other, 0x1022 + 0x50),
        ];
        let expected = expected.map(|(access, target)| Reference { access, target });
        assert_eq!(found, expected);
    }

    #[test]
    fn code_that_makes_no_sense_ends() {
        assert_eq!(instructions(&[0x06; 64], 0).count(), 0);
        assert_eq!(instructions(&[], u64::MAX).count(), 0);
        assert_eq!(references(b"\x48\x8d\x05\x10", 0).count(), 0);
        assert!(instructions(&vec![0x90; 2 << 20], 0).count() <= MAX_CODE_BYTES);
    }
}
