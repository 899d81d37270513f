//! What the kernel side needs to know of a process's Go runtime to find its
//! goroutines. Asks the binary; of the process itself it reads at most one
//! word, and stops nothing.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use profiler_ebpf::wire::{GoLayout, labels};

use super::{Object, Process};
use crate::gobinary::{GLocation, LabelFormat, RuntimeOffsets, StructOffsets};

/// Why a layout is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoLayout {
    /// Not yet: the loader has not filled in a word that says where `g` is.
    NotYet,
    /// Never: the reason, for people.
    Unknown(String),
}

impl Process {
    /// The layout of the process's Go runtime.
    ///
    /// # Errors
    /// It is not known, or not yet.
    pub fn go_layout(&self) -> Result<GoLayout, NoLayout> {
        let unknown = |why: &str| NoLayout::Unknown(why.to_owned());
        let (object, bias) = self
            .go_mapping()
            .ok_or_else(|| unknown("its Go code is not mapped"))?;
        let binary = object.go().ok_or_else(|| unknown("it is not Go"))?;
        let offsets = binary.runtime_offsets();
        let fields = match &offsets {
            RuntimeOffsets::Known(fields) => *fields,
            RuntimeOffsets::FromDwarf(fields) => fields,
            RuntimeOffsets::Unknown { why } => return Err(unknown(why)),
        };
        let tls_offset = match binary.g_location() {
            GLocation::FsOffset(offset) => offset,
            GLocation::GotSlot(address) => self.read_offset(address.wrapping_add(bias))?,
            GLocation::Register { .. } => 0,
            GLocation::Unknown { why } => return Err(unknown(why)),
        };
        layout(fields, tls_offset).ok_or_else(|| unknown("its offsets are out of range"))
    }

    /// The Go object, and what to add to its link-time addresses.
    fn go_mapping(&self) -> Option<(&Arc<Object>, u64)> {
        let object = self.go_object()?;
        self.mappings
            .iter()
            .find(|mapped| {
                mapped
                    .object
                    .as_ref()
                    .is_some_and(|o| Arc::ptr_eq(o, object))
            })
            .and_then(|mapped| Some((object, mapped.bias?)))
    }

    /// Reads where `g` lies from the thread pointer: always below it.
    fn read_offset(&self, address: u64) -> Result<i64, NoLayout> {
        let mut word = [0; 8];
        File::open(format!("/proc/{}/mem", self.pid))
            .and_then(|memory| memory.read_exact_at(&mut word, address))
            .map_err(|error| NoLayout::Unknown(format!("its memory cannot be read: {error}")))?;
        match i64::from_ne_bytes(word) {
            offset if offset < 0 => Ok(offset),
            _ => Err(NoLayout::NotYet),
        }
    }
}

/// `None` where a figure does not fit what the kernel side takes.
fn layout(fields: &StructOffsets, tls_offset: i64) -> Option<GoLayout> {
    let small = |offset: u32| u16::try_from(offset).ok();
    Some(GoLayout {
        known: 1,
        labels: match fields.labels {
            Some(LabelFormat::Map) => labels::MAP,
            Some(LabelFormat::Slice) => labels::SLICE,
            None => labels::UNKNOWN,
        },
        g_m: small(fields.g.m)?,
        g_sched_sp: small(fields.g.sched.sp)?,
        g_sched_pc: small(fields.g.sched.pc)?,
        g_sched_bp: small(fields.g.sched.bp)?,
        g_goid: small(fields.g.goid)?,
        g_labels: small(fields.g.labels)?,
        m_gsignal: small(fields.m.gsignal)?,
        m_curg: small(fields.m.curg)?,
        reserved: 0,
        tls_offset: i32::try_from(tls_offset).ok()?,
    })
}
