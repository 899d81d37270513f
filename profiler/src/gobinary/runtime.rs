//! What a binary says of its runtime's memory and of what its code allocates:
//! the questions, answered by the parts that know how.

use super::allocation_sites::{self, AllocatedType, AllocationSites};
use super::bytes::read_u64;
use super::references::references;
use super::variables::{Contents, Variables, anchors};
use super::{BuildInfo, FuncKind, GoBinary, GoFunction, wait_reasons};

impl GoBinary {
    /// Where the runtime's variables are. Reads all function names: not for hot
    /// paths.
    pub fn variables(&self) -> Variables {
        let mut variables = Variables {
            all_goroutines: self.all_goroutines(),
            ..Variables::default()
        };
        let anchors = anchors(self.version());
        let view = self.view();
        let funcs = (0..view.functions).filter_map(|index| view.func(index));
        for func in funcs.filter(|func| view.func_name_begins(func, b"runtime.")) {
            let is = |(name, _): &&(&str, _)| view.func_name_is(&func, name.as_bytes());
            let Some((_, anchor)) = anchors.iter().find(is) else {
                continue;
            };
            let code = self
                .describe(&func)
                .and_then(|function| self.code(function));
            let (code, vaddr) = code.unwrap_or_default();
            let references = references(self.machine(), code, vaddr);
            variables.note(*anchor, &references, self.version(), self);
        }
        variables
    }

    /// The modules that the program is made of beside its own: path and version of
    /// each. Reads the build information again.
    pub fn dependencies(&self) -> Vec<(String, String)> {
        BuildInfo::dependencies(&self.elf, self.image.bytes())
    }

    /// Whether goroutines that begin at an address are the runtime's own, which Go
    /// itself does not count (`runtime.isSystemGoroutine`).
    pub fn begins_system_goroutines(&self, vaddr: u64) -> bool {
        let Ok((_, func)) = self.find(vaddr) else {
            return false;
        };
        let kind = self.describe(&func).map(|function| function.kind);
        let is_counted = matches!(
            kind,
            Some(FuncKind::RuntimeMain | FuncKind::Corostart | FuncKind::HandleAsyncEvent)
        );
        !is_counted && self.view().func_name_begins(&func, b"runtime.")
    }

    /// What goroutines wait for, in words, by `g.waitreason`. None where the file
    /// does not say it.
    pub fn wait_reasons(&self) -> Option<Vec<String>> {
        wait_reasons::find(&self.elf, self.image.bytes())
    }

    /// The places that allocate, to ask for types.
    pub fn allocation_sites(&self) -> AllocationSites {
        AllocationSites::new(self)
    }

    /// The name of the type whose descriptor lies at an address, as Go's
    /// `reflect.Type.String` has it.
    pub fn type_name(&self, vaddr: u64) -> Option<String> {
        let types = self.image.bytes().get(self.module.types.clone())?;
        allocation_sites::type_name(types, vaddr.checked_sub(self.module.types_vaddr)?)
    }

    /// The type whose descriptor lies at an address.
    pub fn allocated_type(&self, vaddr: u64) -> Option<AllocatedType> {
        let types = self.image.bytes().get(self.module.types.clone())?;
        allocation_sites::allocated_type(types, vaddr.checked_sub(self.module.types_vaddr)?)
    }

    /// The addresses by which Go lists the frames at an address, leaf first: the
    /// address itself, then where each inlined call is made from
    /// (`runtime.tracebackPCs`). Go adds one to each. None outside Go's code.
    pub fn inlined_calls(&self, vaddr: u64) -> Option<Vec<u64>> {
        let (offset, func) = self.find(vaddr).ok()?;
        let chain = self.expander().chain(&func, offset);
        let vaddrs = chain.into_iter();
        vaddrs.map(|at| self.module.offset_to_vaddr(at)).collect()
    }

    /// The name of the innermost function at an address, inlined or not.
    pub fn innermost_name(&self, vaddr: u64) -> Option<String> {
        let mut frames = Vec::new();
        self.frames(vaddr, &mut frames).ok()?;
        frames.into_iter().next().map(|frame| frame.name)
    }

    /// Calls `each` with the functions whose names begin with `prefix`.
    pub(super) fn for_each_name(&self, prefix: &str, mut each: impl FnMut(&str, GoFunction)) {
        let view = self.view();
        let funcs = (0..view.functions).filter_map(|index| view.func(index));
        for func in funcs.filter(|func| view.func_name_begins(func, prefix.as_bytes())) {
            if let (Some(name), Some(function)) = (view.func_name(&func), self.describe(&func)) {
                each(&name, function);
            }
        }
    }

    /// Whether an address is of memory that the file does not hold.
    pub(super) fn is_zeroed(&self, vaddr: u64) -> bool {
        self.segments().iter().any(|segment| {
            let distance = vaddr.checked_sub(segment.vaddr);
            distance.is_some_and(|d| (segment.file_size..segment.mem_size).contains(&d))
        })
    }
}

impl Contents for GoBinary {
    fn is_zeroed(&self, address: u64) -> bool {
        GoBinary::is_zeroed(self, address)
    }

    fn word(&self, address: u64) -> Option<u64> {
        let range = self.elf.range_from(self.image.bytes(), address)?;
        read_u64(self.image.bytes().get(range)?, 0)
    }
}
