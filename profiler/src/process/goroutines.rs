//! What the kernel side needs to know of a process's Go runtime to find its
//! goroutines. Asks the binary, and holds what it says against the process's
//! memory; stops nothing.

use std::{io::ErrorKind, sync::Arc};

use profiler_ebpf::wire::{Code, GoLayout, labels};

use super::{
    Object, Process,
    code::returns_from_signal,
    proof::{self, Proof},
};
use crate::{
    gobinary::{
        AllGoroutines, FuncKind, GLocation, GoBinary, GoFunction, LabelFormat, Machine,
        RuntimeOffsets, StructOffsets,
    },
    gomemory::{Live, Memory, Program, Statistics},
};

/// More than the code between the runtime's first signal handler and what it
/// returns to.
const MAX_HANDLERS_BYTES: u64 = 4096;

/// A layout of a process's runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Where the runtime keeps what.
    pub go: GoLayout,
    /// Whether the process was seen to have it. Else it has no goroutine yet,
    /// and the binary's version is taken at its word until it is asked again.
    pub is_proven: bool,
}

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
    /// It is not known, or not yet; or the process has another one than its
    /// binary's version says.
    pub fn go_layout(&self) -> Result<Layout, NoLayout> {
        let unknown = |why: &str| NoLayout::Unknown(why.to_owned());
        let (object, bias) = self
            .go_mapping()
            .ok_or_else(|| unknown("its Go code is not mapped"))?;
        let (Some(binary), Some(runtime)) = (object.go(), object.runtime()) else {
            return Err(unknown("it is not Go"));
        };
        let fields = self.claimed_offsets()?;
        let memory = self.memory()?;
        let tls_offset = match runtime.g {
            GLocation::FsOffset(offset) => offset,
            GLocation::GotSlot(address) => read_offset(&memory, address.wrapping_add(bias))?,
            GLocation::Register { .. } => 0,
            GLocation::Unknown { why } => return Err(unknown(why)),
        };
        let go =
            layout(&fields, tls_offset).ok_or_else(|| unknown("its offsets are out of range"))?;
        let go = with_code(go, binary, bias);
        let is_proven = self.prove(&memory, &fields)?;
        Ok(Layout { go, is_proven })
    }

    /// Where the fields of the runtime's structs are, held against `memory`, which
    /// is the process's own or what a core has of it; and whether it was seen to be
    /// so, or has no goroutine to tell yet.
    ///
    /// # Errors
    /// As for [`Process::go_layout`].
    pub fn struct_offsets(&self, memory: &dyn Memory) -> Result<(StructOffsets, bool), NoLayout> {
        let fields = self.claimed_offsets()?;
        let is_proven = self.prove(memory, &fields)?;
        Ok((fields, is_proven))
    }

    /// The offsets by the binary's version or DWARF.
    fn claimed_offsets(&self) -> Result<StructOffsets, NoLayout> {
        let unknown = |why: &str| NoLayout::Unknown(why.to_owned());
        let runtime = self.go_object().and_then(|object| object.runtime());
        let runtime = runtime.ok_or_else(|| unknown("it is not Go"))?;
        let mut fields = match &runtime.offsets {
            RuntimeOffsets::Known(fields) => **fields,
            RuntimeOffsets::FromDwarf(fields) => *fields,
            RuntimeOffsets::Unknown { why } => return Err(unknown(why)),
        };
        match (fields.labels, self.label_format()) {
            (Some(said), Some(has)) if said != has => {
                return Err(unlike_its_version("its labels have another form"));
            }
            (said, has) => fields.labels = has.or(said),
        }
        Ok(fields)
    }

    /// Holds offsets against memory. Says whether they were seen to be right; else
    /// there is no goroutine yet.
    fn prove(&self, memory: &dyn Memory, fields: &StructOffsets) -> Result<bool, NoLayout> {
        let unknown = |why: &str| NoLayout::Unknown(why.to_owned());
        // Where the program's own type says the form, what its memory holds is
        // right or damaged, and no matter of the version.
        let proven = StructOffsets {
            labels: fields.labels.filter(|_| self.label_format().is_none()),
            ..*fields
        };
        let (object, bias) = self
            .go_mapping()
            .ok_or_else(|| unknown("its Go code is not mapped"))?;
        let all = object
            .runtime()
            .and_then(|runtime| runtime.all)
            .ok_or_else(|| unknown("its runtime.allgadd does not say where its goroutines are"))?;
        let program = proof::Program {
            memory,
            kind: |address| self.function_kind(address),
            offsets: &proven,
        };
        let proof = program.prove(AllGoroutines {
            array: all.array.wrapping_add(bias),
            count: all.count.wrapping_add(bias),
        });
        match proof {
            Proof::Holds => Ok(true),
            Proof::TooEarly => Ok(false),
            // What cannot be read of a process that exits proves nothing.
            Proof::Fails(_) if !memory.is_there() => Err(NoLayout::NotYet),
            Proof::Fails(why) => Err(unlike_its_version(why)),
        }
    }

    /// The form of labels by the type that the program, or else a plugin of
    /// it, has for them. Without one nothing sets labels.
    fn label_format(&self) -> Option<LabelFormat> {
        let own = self.go_object().and_then(|object| object.runtime());
        own.and_then(|runtime| runtime.labels).or_else(|| {
            let objects = self.mappings.iter().filter_map(|m| m.object.as_ref());
            objects
                .filter(|object| object.go().is_some_and(GoBinary::is_plugin))
                .find_map(|object| object.runtime()?.labels)
        })
    }

    fn memory(&self) -> Result<Live, NoLayout> {
        Live::open(self.pid).map_err(unreadable)
    }

    /// The process's Go program in `memory`, which is its own, or what a core has
    /// of it. None where it has no Go code mapped.
    pub fn go_program<'p>(&'p self, memory: &'p dyn Memory) -> Option<Program<'p>> {
        let (object, bias) = self.go_mapping()?;
        Some(Program {
            memory,
            binary: object.go()?,
            variables: object.variables()?,
            bias,
        })
    }

    /// What the process's runtime counts at this moment, out of `memory`; `reasons`
    /// are what goroutines wait for, which are not counted where more than `most` are
    /// listed. None where it has no Go code mapped.
    pub fn statistics(
        &self,
        memory: &dyn Memory,
        reasons: &[String],
        most: u64,
    ) -> Option<Statistics> {
        let program = self.go_program(memory)?;
        let offsets = match self.struct_offsets(memory) {
            Ok((offsets, true)) => Ok(offsets),
            Ok((_, false)) | Err(NoLayout::NotYet) => Err("it has only begun".to_owned()),
            Err(NoLayout::Unknown(why)) => Err(why),
        };
        Some(program.statistics(offsets.as_ref().map_err(String::clone), reasons, most))
    }

    /// What the function at an address is: the program's, or a plugin's.
    fn function_kind(&self, address: u64) -> Option<FuncKind> {
        let mapped = self.locate(address)?;
        let binary = mapped.object.as_ref()?.go()?;
        let function = binary.function(mapped.go_address(address)?)?;
        Some(function.kind)
    }

    /// The Go object, and what to add to its link-time addresses.
    pub(super) fn go_mapping(&self) -> Option<(&Arc<Object>, u64)> {
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
}

/// The version, or what the binary's DWARF says, is not true of the process.
fn unlike_its_version(why: &str) -> NoLayout {
    NoLayout::Unknown(format!("it is not laid out as its version says: {why}"))
}

/// Reads where `g` lies from the thread pointer: always below it.
fn read_offset(memory: &Live, address: u64) -> Result<i64, NoLayout> {
    match memory.word(address).map(|word| word as i64) {
        Some(offset) if offset < 0 => Ok(offset),
        _ => Err(NoLayout::NotYet),
    }
}

/// Why memory cannot be read: one that exits has none any more.
fn unreadable(error: std::io::Error) -> NoLayout {
    match (error.raw_os_error(), error.kind()) {
        (Some(libc::ESRCH), _) | (_, ErrorKind::UnexpectedEof | ErrorKind::NotFound) => {
            NoLayout::NotYet
        }
        _ => NoLayout::Unknown(format!("its memory cannot be read: {error}")),
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
        tls_offset: i32::try_from(tls_offset).ok()?,
        ..GoLayout::default()
    })
}

/// Adds where Go's code is, and the function through which C calls Go.
fn with_code(layout: GoLayout, binary: &GoBinary, bias: u64) -> GoLayout {
    let code = |start: u64, end: u64| Code {
        start: start.wrapping_add(bias),
        len: end.saturating_sub(start),
    };
    let text = binary.text();
    let layout = GoLayout {
        text: code(text.start, text.end),
        ..layout
    };
    // On arm64 frames have other parts, and nothing is read by what follows.
    if binary.machine() != Machine::X86_64 {
        return layout;
    }
    let mut callback = None;
    let mut into_c = None;
    let mut handler = None;
    let mut returns = Vec::new();
    for function in binary.functions().filter(|function| function.asm) {
        if function.kind == FuncKind::Cgocallback {
            callback = Some(function);
        } else if function.kind == FuncKind::Asmcgocall {
            into_c = Some(function);
        } else if function.signal_handler {
            handler = Some(function);
        } else if returns_from_signal(binary, function.entry) {
            returns.push(function.entry);
        }
    }
    // The linker keeps the order of the source: the handler, those that jump to
    // it, and what they return to.
    let signal_handlers = handler.map(|handler| {
        let near = handler.end..handler.end.saturating_add(MAX_HANDLERS_BYTES);
        let end = returns.iter().find(|end| near.contains(*end));
        code(handler.entry, end.copied().unwrap_or(handler.end))
    });
    let layout = GoLayout {
        signal_handlers: signal_handlers.unwrap_or_default(),
        ..layout
    };
    let Some(function) = callback else {
        return layout;
    };
    // What calls C has no frame up to Go 1.20: that of its caller lies above.
    let cgocall_frame = match into_c.and_then(|into_c| largest_frame(binary, &into_c)) {
        Some(0) => binary.cgocall().and_then(|go| largest_frame(binary, &go)),
        _ => Some(0),
    };
    match (largest_frame(binary, &function), cgocall_frame) {
        (Some(callback_delta), Some(cgocall_frame)) => GoLayout {
            callback: code(function.entry, function.end),
            callback_delta,
            cgocall_frame,
            ..layout
        },
        _ => layout,
    }
}

/// Bytes between the stack pointer and the return address in a function's body,
/// where it calls others: there its frame is at its largest. A function of the
/// runtime's name that is longer is not the runtime's.
fn largest_frame(binary: &GoBinary, function: &GoFunction) -> Option<u16> {
    let body = function.entry..function.end.min(function.entry.saturating_add(4096));
    let deltas = body.filter_map(|address| binary.stack_delta(address));
    deltas.max().and_then(|delta| u16::try_from(delta).ok())
}
