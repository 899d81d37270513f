//! Where members of the kernel's structs lie, from the kernel's own type
//! information (BTF). Reads just enough of the format to answer that: one pass
//! over the types, in a few milliseconds.
//!
//! Format: Documentation/bpf/btf.rst in the Linux sources.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, ensure};

/// The kernel's types, as it gives them to everyone.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// `kind` of types whose size of trailing data matters here.
mod kind {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const ENUM64: u32 = 19;
}

/// Structs of the kernel by name.
pub struct KernelTypes {
    structs: HashMap<&'static str, HashMap<String, u32>>,
}

impl KernelTypes {
    /// Reads the members of the structs named.
    ///
    /// # Errors
    /// The kernel has no BTF, or it is not as documented.
    pub fn read(names: &[&'static str]) -> Result<Self> {
        let bytes = std::fs::read(VMLINUX)
            .with_context(|| format!("cannot read the kernel's types from {VMLINUX}"))?;
        Self::parse(&bytes, names)
    }

    fn parse(bytes: &[u8], names: &[&'static str]) -> Result<Self> {
        let u32_at = |offset: usize| -> Result<u32> {
            let word = bytes
                .get(offset..offset + 4)
                .and_then(|w| w.try_into().ok());
            word.map(u32::from_ne_bytes)
                .ok_or_else(|| anyhow!("the kernel's types are cut short"))
        };
        ensure!(
            bytes.get(..2) == Some(&MAGIC.to_ne_bytes()),
            "the kernel's types have an unknown format"
        );
        let header = u32_at(4)? as usize;
        let types = header + u32_at(8)? as usize;
        let types_end = types + u32_at(12)? as usize;
        let strings = header + u32_at(16)? as usize;
        let name_at = |offset: u32| -> &[u8] {
            let rest = bytes.get(strings + offset as usize..).unwrap_or_default();
            rest.split(|byte| *byte == 0).next().unwrap_or_default()
        };

        let mut structs = HashMap::new();
        let mut at = types;
        while at < types_end {
            let (name, info) = (u32_at(at)?, u32_at(at + 4)?);
            let (count, kind) = ((info & 0xffff) as usize, (info >> 24) & 0x1f);
            let members = at + 12;
            if kind == kind::STRUCT
                && let Some(name) = names.iter().find(|n| n.as_bytes() == name_at(name))
            {
                // With the flag set the upper eight bits are a bit field's size.
                let mask = if info >> 31 == 1 {
                    0x00ff_ffff
                } else {
                    u32::MAX
                };
                let mut offsets = HashMap::new();
                for member in 0..count {
                    let member_at = members + member * 12;
                    let member_name = name_at(u32_at(member_at)?);
                    let bits = u32_at(member_at + 8)? & mask;
                    offsets.insert(String::from_utf8_lossy(member_name).into_owned(), bits / 8);
                }
                structs.entry(*name).or_insert(offsets);
                if structs.len() == names.len() {
                    break;
                }
            }
            at = members + trailing_bytes(kind, count);
        }
        Ok(Self { structs })
    }

    /// The offset of a member, in bytes.
    pub fn offset(&self, name: &str, member: &str) -> Option<u32> {
        self.structs.get(name)?.get(member).copied()
    }
}

/// What follows the twelve bytes that every type begins with.
fn trailing_bytes(kind: u32, count: usize) -> usize {
    match kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count * 12,
        kind::ENUM | kind::FUNC_PROTO => count * 8,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_members_of_this_kernels_task() {
        let types = KernelTypes::read(&["task_struct", "thread_struct"]).unwrap();
        assert!(types.offset("task_struct", "tgid").is_some());
        assert!(types.offset("task_struct", "thread").unwrap() > 0);
        assert_eq!(types.offset("task_struct", "no such member"), None);
        #[cfg(target_arch = "x86_64")]
        assert!(types.offset("thread_struct", "fsbase").is_some());
    }

    #[test]
    fn refuses_what_is_not_btf() {
        assert!(KernelTypes::parse(b"", &["task_struct"]).is_err());
        assert!(KernelTypes::parse(&[0x9f, 0xeb, 1, 0], &["task_struct"]).is_err());
        let mut cut = std::fs::read(VMLINUX).unwrap();
        cut.truncate(cut.len() / 100);
        assert!(KernelTypes::parse(&cut, &["no such struct"]).is_err());
    }
}
