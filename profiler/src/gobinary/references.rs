//! Addresses that a function's machine code refers to, whatever the machine: what
//! both decoders give.

use super::elf::Machine;
use super::{arm64, x86};

/// What an instruction does with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Takes it.
    Address,
    /// Loads 64 bits from it into a register.
    Load64,
    /// Loads 32 bits from it into a register.
    Load32,
    /// Loads a byte from it and widens it.
    Load8,
    /// Anything else.
    Other,
}

/// An address that code refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reference {
    /// What is done with it.
    pub access: Access,
    /// The address.
    pub target: u64,
}

/// The addresses that the code of a function, which begins at `vaddr`, refers to, in
/// its order.
pub(super) fn references(machine: Machine, code: &[u8], vaddr: u64) -> Vec<Reference> {
    match machine {
        Machine::X86_64 => x86::references(code, vaddr).collect(),
        Machine::Aarch64 => arm64::references(code, vaddr),
    }
}
