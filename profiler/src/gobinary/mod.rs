//! Everything goprof knows of Go binaries: which program it is, which function,
//! file and line an address belongs to, inlined calls included. Works from the
//! runtime's own tables, stripped or not; knows nothing of processes.

mod allgs;
mod allocation_sites;
mod allocators;
mod arm64;
mod buildinfo;
mod bytes;
mod dwarf;
mod elf;
mod func_kind;
mod idle;
mod inline;
mod label_type;
mod labels;
mod mem_profile;
mod moduledata;
mod offsets;
mod offsets_table;
mod pclntab;
mod probe_places;
mod references;
mod runtime;
mod runtime_fields;
mod semaphores;
mod status;
mod structs;
mod tls;
mod variables;
mod version;
mod wait_reasons;
mod x86;

use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;

pub use allgs::AllGoroutines;
pub use allocation_sites::{AllocatedType, AllocationSites};
pub use allocators::{AllocatorPlace, Block};
pub use buildinfo::BuildInfo;
pub use elf::{Machine, Segment};
pub use func_kind::FuncKind;
pub use idle::is_idle_thread;
pub use inline::GoFrame;
pub use labels::{Labels, MAX_LABEL_BYTES, MAX_LABELS, read_labels};
pub use mem_profile::{
    BUCKET_BYTES, Blocks, BucketCounts, BucketHead, CountsLayout, MAX_BUCKET_FRAMES, bucket_kind,
    is_hidden_allocator, unsample,
};
pub use offsets::RuntimeOffsets;
pub use probe_places::{NoProbePlace, PlaceInstruction, ProbePlace};
pub use runtime_fields::{GcControllerFields, GcFields, SchedFields, TimeHistogram};
pub use semaphores::{SemaphoreTable, is_for_semaphore, owner_of_semaphore};
pub use status::GoroutineStatus;
pub use structs::{
    GOffsets, LabelFormat, ListOffsets, MOffsets, SavedRegisters, SpanOffsets, StackBounds,
    StructOffsets, SudogOffsets, SyscallRegisters,
};
pub use tls::{GLocation, ThreadWord};
pub use variables::Variables;
pub use version::GoVersion;

use crate::image::Image;
use crate::symbolize::Reason;
use elf::Elf;
use inline::Expander;
use moduledata::Module;
use pclntab::{Func, MAX_STEPS, Table, View};

/// Why a file is not a Go program goprof can read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GoBinaryError {
    /// Not an ELF file at all.
    #[error("not an ELF file")]
    NotElf,
    /// Some other program; says what it is.
    #[error("not a Go program: {0}")]
    NotGo(&'static str),
    /// A program for another kind of machine; says which.
    #[error("{0}; only 64-bit amd64 and arm64 programs can be read")]
    WrongArch(&'static str),
    /// A Go program of a version whose tables goprof does not know.
    #[error("built with {0}, whose tables goprof cannot read (it knows Go 1.19 to 1.27)")]
    UnsupportedVersion(String),
    /// A Go program without the table that names its functions.
    #[error("a Go program without a pclntab")]
    NoPclntab,
    /// Says what is cut off or contradicts itself.
    #[error("damaged {0}")]
    Damaged(&'static str),
}

/// A Go program's binary. Holds the mapped file and some hundred bytes beside
/// it, whatever the file's size. All addresses are link-time addresses.
#[derive(Debug)]
pub struct GoBinary {
    image: Arc<Image>,
    elf: Elf,
    version: GoVersion,
    build_info: BuildInfo,
    module: Module,
}

/// A function as compiled, with everything inlined into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoFunction {
    /// Address of the first instruction.
    pub entry: u64,
    /// Address at which the next function begins.
    pub end: u64,
    /// What the function is to the runtime.
    pub kind: FuncKind,
    /// It is the outermost of its stack: a walk that ends here is complete
    /// (`abi.FuncFlagTopFrame`).
    pub top_frame: bool,
    /// Whether the kernel calls it for a signal (`runtime.sigtramp` and its
    /// cgo twin). Go gives them no id: they are the assembly functions without
    /// one that nothing calls.
    pub signal_handler: bool,
    /// It sets the stack pointer to arbitrary values: a walk cannot pass it
    /// (`abi.FuncFlagSPWrite`).
    pub sp_write: bool,
    /// It is written in assembly and need not keep the frame pointer
    /// (`abi.FuncFlagAsm`).
    pub asm: bool,
}

impl GoBinary {
    /// Recognises a Go program and finds its tables. Takes time for the ELF
    /// headers and, in position-independent programs, the relocations; none for
    /// the number of functions.
    pub fn parse(image: Arc<Image>) -> Result<GoBinary, GoBinaryError> {
        let data = image.bytes();
        let elf = Elf::parse(data)?;
        let build_info = BuildInfo::parse(&elf, data)?;
        let version = GoVersion::parse(&build_info.go_version)
            .ok_or_else(|| GoBinaryError::UnsupportedVersion(build_info.go_version.clone()))?;
        let module = Module::find(&elf, data, &version)?;
        Ok(GoBinary {
            image,
            elf,
            version,
            build_info,
            module,
        })
    }

    /// The mapped file.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// The Go version it was built with.
    pub fn version(&self) -> &GoVersion {
        &self.version
    }

    /// How it was built.
    pub fn build_info(&self) -> &BuildInfo {
        &self.build_info
    }

    /// Whether it is a plugin: it runs on its host's runtime, not its own.
    pub fn is_plugin(&self) -> bool {
        self.build_info.setting("-buildmode") == Some("plugin")
    }

    /// The processor it is for.
    pub fn machine(&self) -> Machine {
        self.elf.machine
    }

    /// The GNU build id in lower-case hex, empty where it has none: Go's linker
    /// writes one since 1.24, and not with `-buildid=`.
    pub fn build_id(&self) -> &str {
        &self.elf.build_id
    }

    /// Where Go's code is. C code of a cgo program lies outside.
    pub fn text(&self) -> Range<u64> {
        self.module.text.clone()
    }

    /// The loaded segments.
    pub fn segments(&self) -> &[Segment] {
        &self.elf.segments
    }

    /// The address of a byte of the file, code before data where they share a
    /// page. None for what is not loaded.
    pub fn file_offset_to_vaddr(&self, offset: u64) -> Option<u64> {
        self.elf.offset_to_vaddr(offset)
    }

    /// The file offset of an address. None for what the file does not hold.
    pub fn vaddr_to_file_offset(&self, vaddr: u64) -> Option<u64> {
        self.elf.vaddr_to_offset(vaddr)
    }

    /// Appends the source frames at an address, leaf first: inlined calls, then
    /// the function that holds the code. For a caller's frame pass the return
    /// address less one. Frames of [`FuncKind::Wrapper`] are included; who shows
    /// stacks as Go does leaves them out by
    /// [`FuncKind::elides_calling_wrapper`]. On failure nothing is appended.
    pub fn frames(&self, vaddr: u64, frames: &mut Vec<GoFrame>) -> Result<(), Reason> {
        let (offset, func) = self.find(vaddr)?;
        self.expander()
            .expand(&func, offset, frames)
            .map_err(|_| Reason::Damaged)
    }

    /// The function that holds an address, None outside Go's code.
    pub fn function(&self, vaddr: u64) -> Option<GoFunction> {
        let (_, func) = self.find(vaddr).ok()?;
        self.describe(&func)
    }

    /// Bytes between the stack pointer and the slot of the return address when
    /// the program is about to execute the instruction at `vaddr`. None outside
    /// Go's code. On arm64 it is the size of the frame set up so far, with the
    /// return address at its bottom, or in LR when 0.
    pub fn stack_delta(&self, vaddr: u64) -> Option<i32> {
        let (offset, func) = self.find(vaddr).ok()?;
        self.view()
            .value(&func, Table::StackDelta, offset, &mut MAX_STEPS.clone())
            .ok()
            .filter(|delta| *delta >= 0)
    }

    /// The entry of the first function that was compiled under this symbol name.
    /// Reads every name until found: not for hot paths.
    pub fn function_by_name(&self, name: &str) -> Option<u64> {
        self.functions_by_name(name)
            .next()
            .map(|function| function.entry)
    }

    /// Every function that was compiled under this symbol name. An assembly
    /// function called from Go has a second one, which adapts the calling
    /// convention; only the real one is [`GoFunction::asm`].
    pub fn functions_by_name(&self, name: &str) -> impl Iterator<Item = GoFunction> {
        let view = self.view();
        (0..view.functions)
            .filter_map(move |index| view.func(index))
            .filter(move |func| view.func_name_is(func, name.as_bytes()))
            .filter_map(|func| self.describe(&func))
    }

    /// Whether the program was linked with cgo, and so holds C code beside Go's.
    /// Reads every name: not for hot paths.
    pub fn has_cgo(&self) -> bool {
        // How C calls into Go (`runtime/cgo/asm_*.s`, all versions). Go's own
        // functions have a package in their names.
        self.function_by_name("crosscall2").is_some()
    }

    /// `runtime.cgocall`, the one caller of `runtime.asmcgocall` on a goroutine's
    /// stack in whose calls C calls back. Reads every name until found.
    pub fn cgocall(&self) -> Option<GoFunction> {
        self.functions_by_name("runtime.cgocall").next()
    }

    /// Every function in address order. Those whose record is damaged are left
    /// out.
    pub fn functions(&self) -> impl Iterator<Item = GoFunction> + '_ {
        let view = self.view();
        (0..view.functions)
            .filter_map(move |index| view.func(index))
            .filter_map(|func| self.describe(&func))
    }

    /// Where the fields of the runtime's structs are. Reads DWARF, which takes
    /// some milliseconds to a second, only where the version says too little.
    pub fn runtime_offsets(&self) -> RuntimeOffsets {
        RuntimeOffsets::of(&self.version, &self.elf, self.image.bytes())
    }

    /// In which form the program keeps pprof labels, by the type it has for
    /// them. None where it has none: then no code in it sets labels. Reads all
    /// type descriptors: not for hot paths.
    pub fn label_format(&self) -> Option<LabelFormat> {
        label_type::find(self.image.bytes(), self.module.types.clone())
    }

    /// Where a thread keeps its current goroutine. Reads function names until it
    /// has found the code that says so: not for hot paths.
    pub fn g_location(&self) -> GLocation {
        let code = |name| self.code(self.functions_by_name(name).find(|function| function.asm)?);
        match self.machine() {
            Machine::X86_64 => match code(tls::ANCHOR_AMD64) {
                Some((code, vaddr)) => tls::decode_amd64(code, vaddr),
                None => GLocation::Unknown {
                    why: "there is no runtime.asmcgocall that says it",
                },
            },
            Machine::Aarch64 => {
                let (code, vaddr) = code(tls::ANCHOR_ARM64).unwrap_or_default();
                tls::decode_arm64(code, vaddr)
            }
        }
    }

    /// Where the list of all goroutines is; None where the code that adds to it
    /// does not say it in a way goprof knows. Reads function names until it has
    /// found that code: not for hot paths.
    pub fn all_goroutines(&self) -> Option<AllGoroutines> {
        let (code, vaddr) = self.code(self.functions_by_name(allgs::ANCHOR).next()?)?;
        let is_zeroed = |address: u64| self.is_zeroed(address);
        match self.machine() {
            Machine::X86_64 => allgs::decode_amd64(code, vaddr, is_zeroed),
            Machine::Aarch64 => allgs::decode_arm64(code, vaddr, is_zeroed),
        }
    }

    /// The machine code of a function, and its address.
    fn code(&self, function: GoFunction) -> Option<(&[u8], u64)> {
        let range = self.elf.range_from(self.image.bytes(), function.entry)?;
        let code = self.image.bytes().get(range)?;
        let len = usize::try_from(function.end.checked_sub(function.entry)?).ok()?;
        Some((&code[..len.min(code.len())], function.entry))
    }

    fn expander(&self) -> Expander<'_> {
        Expander {
            view: self.view(),
            layout: self.module.layout,
            gofunc: self
                .image
                .bytes()
                .get(self.module.gofunc.clone())
                .unwrap_or_default(),
        }
    }

    fn view(&self) -> View<'_> {
        self.module
            .pclntab
            .view(self.image.bytes(), self.module.layout)
    }

    fn find(&self, vaddr: u64) -> Result<(u32, Func), Reason> {
        let offset = self.module.vaddr_to_offset(vaddr).ok_or(Reason::NoSymbol)?;
        let func = self.view().find(offset).ok_or(Reason::Damaged)?;
        Ok((offset, func))
    }

    fn describe(&self, func: &Func) -> Option<GoFunction> {
        let kind = self.module.layout.func_kind(func.id);
        let top_frame = func.flags & version::FLAG_TOP_FRAME != 0;
        let asm = func.flags & version::FLAG_ASM != 0;
        Some(GoFunction {
            entry: self.module.offset_to_vaddr(func.entry)?,
            end: self.module.offset_to_vaddr(func.end)?,
            kind,
            top_frame,
            signal_handler: top_frame && asm && kind == FuncKind::Normal,
            sp_write: func.flags & version::FLAG_SP_WRITE != 0,
            asm,
        })
    }
}

#[cfg(test)]
mod hostile_tests;
