//! Which fields of the runtime's structs goprof uses, and how their offsets are
//! read from DWARF and judged. Knows no version's offsets.

use std::collections::HashMap;
use std::fmt::{Display, Formatter};

use super::dwarf::{Field, Sections, Struct, read_structs};

/// Byte offsets of fields in the runtime's structs `g`, `m`, `gobuf` and `sudog`
/// (`runtime/runtime2.go`), `mcache` and `mspan`, and how labels are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StructOffsets {
    /// In a goroutine.
    pub g: GOffsets,
    /// In a thread.
    pub m: MOffsets,
    /// What lists of goroutines and their waits need besides; samples do without.
    pub lists: Result<ListOffsets, Unlike>,
    /// What tells how much of a span was used; nothing else needs it.
    pub spans: Result<SpanOffsets, Unlike>,
    /// What `g.labels` points to; None where that is not known.
    pub labels: Option<LabelFormat>,
}

/// A field that the runtime does not have, or not as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unlike {
    /// The struct.
    pub owner: &'static str,
    /// The field.
    pub field: &'static str,
}

impl Display for Unlike {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { owner, field } = self;
        write!(f, "its DWARF has no field {field} in {owner} as it was")
    }
}

/// Byte offsets of what tells of a goroutine why it is where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListOffsets {
    /// `g.waitsince int64`: when a collection first saw it wait, on the monotonic
    /// clock; 0 before.
    pub wait_since: u32,
    /// `g.waitreason uint8`.
    pub wait_reason: u32,
    /// `g.gopc uintptr`: where the statement returns to that started it.
    pub go_pc: u32,
    /// `g.waiting *sudog`: what stands for it at the channels it waits for.
    pub waiting: u32,
    /// `g.parentGoid uint64` (1.21 and later): the goroutine that started it.
    pub parent_goid: Option<u32>,
    /// In what stands for a goroutine in a queue.
    pub sudog: SudogOffsets,
}

/// Byte offsets in `runtime.g`, a goroutine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GOffsets {
    /// `stack stack`: the bounds of its stack.
    pub stack: StackBounds,
    /// `m *m`: the thread that runs it, 0 where none does.
    pub m: u32,
    /// `sched gobuf`: its registers while it does not run.
    pub sched: SavedRegisters,
    /// Its registers while it is in a system call or in C.
    pub syscall: SyscallRegisters,
    /// `atomicstatus uint32`.
    pub atomic_status: u32,
    /// `goid uint64`.
    pub goid: u32,
    /// `startpc uintptr`: the function it was started with.
    pub start_pc: u32,
    /// `labels unsafe.Pointer`: its pprof labels, 0 where it has none.
    pub labels: u32,
}

/// Byte offsets in `runtime.g` of the words of `g.stack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackBounds {
    /// `lo uintptr`: the lowest address.
    pub lo: u32,
    /// `hi uintptr`: the address past the highest.
    pub hi: u32,
}

/// Byte offsets in `runtime.g` of the words of `g.sched`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedRegisters {
    /// `sp uintptr`.
    pub sp: u32,
    /// `pc uintptr`.
    pub pc: u32,
    /// `bp uintptr`: the frame pointer. Up to 1.22 a system call leaves in it
    /// what was there before; a call of C does not.
    pub bp: u32,
}

/// Byte offsets in `runtime.g` of what `runtime.reentersyscall` saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyscallRegisters {
    /// `syscallsp uintptr`: 0 outside of system calls.
    pub sp: u32,
    /// `syscallpc uintptr`.
    pub pc: u32,
    /// `syscallbp uintptr` (1.23 and later): the frame pointer.
    pub bp: Option<u32>,
}

/// Byte offsets in `runtime.m`, a thread. Only fields up to `id` are here:
/// later ones moved in patch releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MOffsets {
    /// `g0 *g`: owns the thread's system stack.
    pub g0: u32,
    /// `procid uint64`: the thread id.
    pub procid: u32,
    /// `gsignal *g`: owns the thread's signal stack.
    pub gsignal: u32,
    /// `curg *g`: the goroutine that runs on it, 0 where none does.
    pub curg: u32,
    /// `p puintptr`: the processor it holds, 0 where none.
    pub p: u32,
    /// `id int64`: the runtime's own number of the thread.
    pub id: u32,
}

/// Byte offsets in `runtime.sudog`, which stands for a goroutine in the queue of a
/// channel or of a semaphore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SudogOffsets {
    /// `g *g`: the goroutine.
    pub g: u32,
    /// `next *sudog`: of a semaphore's, a branch of the tree.
    pub next: u32,
    /// `prev *sudog`: likewise, the other branch.
    pub prev: u32,
    /// The address in `elem`: of a semaphore's, the semaphore.
    pub elem: u32,
    /// `waitlink *sudog`: the next of the same goroutine, or of the same semaphore.
    pub wait_link: u32,
    /// The address in `c`: the channel.
    pub c: u32,
}

/// Byte offsets of what the runtime counts by when a span is used up
/// (`(*mcache).refill`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanOffsets {
    /// In `runtime.mcache` (`runtime/mcache.go`): `alloc [numSpanClasses]*mspan`.
    pub cache_alloc: u32,
    /// In `runtime.mspan` (`runtime/mheap.go`), as the others: `allocCount uint16`.
    pub used: u32,
    /// `allocCountBeforeCache uint16`.
    pub used_before: u32,
    /// `elemsize uintptr`.
    pub block_bytes: u32,
}

/// What `g.labels` points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelFormat {
    /// A `map[string]string` (up to Go 1.23).
    Map,
    /// A slice of pairs of strings (since Go 1.24).
    Slice,
}

const G: &str = "runtime.g";
const M: &str = "runtime.m";
const GOBUF: &str = "runtime.gobuf";
const STACK: &str = "runtime.stack";
const SUDOG: &str = "runtime.sudog";
const MCACHE: &str = "runtime.mcache";
const MSPAN: &str = "runtime.mspan";
/// `numSpanClasses`: two for each size, with pointers and without.
const SPAN_CLASSES: u64 = 136;
/// What holds an address in a sudog since 1.26: one for the collector, and `vu`,
/// which counts. For a channel it is in a struct that has nothing else.
const TRACEABLE: &str = "runtime.maybeTraceablePtr";
const LABEL_MAP: &str = "runtime/pprof.labelMap";
const LABEL_SET: &str = "runtime/pprof.LabelSet";
/// What a map was until 1.23.
const HMAP: &str = "runtime.hmap";
/// A pair of strings, by its name up to 1.25 and since.
const LABELS: [&str; 2] = ["runtime/pprof.label", "internal/runtime/pprof/label.Label"];

/// Larger structs are not the runtime's: they have less than 1 KiB (`g`) and
/// 4 KiB (`m`).
const MAX_STRUCT_BYTES: u64 = 64 << 10;
const MAX_G_BYTES: u64 = 4 << 10;

impl StructOffsets {
    /// Reads the offsets from DWARF. Fails, saying why, where something is
    /// missing or does not look like the struct it was.
    pub(super) fn read(sections: Sections<'_>) -> Result<StructOffsets, String> {
        let wanted = [
            G, M, GOBUF, STACK, SUDOG, MCACHE, MSPAN, TRACEABLE, HMAP, LABEL_MAP, LABEL_SET,
            LABELS[0], LABELS[1],
        ];
        let structs = Structs(read_structs(sections, &wanted)?);
        for name in [G, M, GOBUF, STACK] {
            if !structs.get(name)?.is_consistent() {
                return Err(format!("{name} of its DWARF contradicts itself"));
            }
        }
        // Every goroutine's is read at once with a thousand others.
        if structs.get(G)?.size > MAX_G_BYTES {
            return Err(format!("{G} of its DWARF is too large"));
        }
        let stack = structs.field(G, "stack", 16)?;
        let gobuf_size = structs.get(GOBUF)?.size;
        let sched = structs.field(G, "sched", gobuf_size)?;
        let offsets = StructOffsets {
            g: GOffsets {
                stack: StackBounds {
                    lo: stack + structs.field(STACK, "lo", 8)?,
                    hi: stack + structs.field(STACK, "hi", 8)?,
                },
                m: structs.field(G, "m", 8)?,
                sched: SavedRegisters {
                    sp: sched + structs.field(GOBUF, "sp", 8)?,
                    pc: sched + structs.field(GOBUF, "pc", 8)?,
                    bp: sched + structs.field(GOBUF, "bp", 8)?,
                },
                syscall: SyscallRegisters {
                    sp: structs.field(G, "syscallsp", 8)?,
                    pc: structs.field(G, "syscallpc", 8)?,
                    bp: structs.optional_field(G, "syscallbp", 8)?,
                },
                atomic_status: structs.field(G, "atomicstatus", 4)?,
                goid: structs.field(G, "goid", 8)?,
                start_pc: structs.field(G, "startpc", 8)?,
                labels: structs.field(G, "labels", 8)?,
            },
            m: MOffsets {
                g0: structs.field(M, "g0", 8)?,
                procid: structs.field(M, "procid", 8)?,
                gsignal: structs.field(M, "gsignal", 8)?,
                curg: structs.field(M, "curg", 8)?,
                p: structs.field(M, "p", 8)?,
                id: structs.field(M, "id", 8)?,
            },
            lists: structs.lists(),
            spans: structs.spans(),
            labels: structs.label_format(),
        };
        // C code reads both from there (`runtime/cgo/libcgo.h`, all versions).
        if (offsets.g.stack.lo, offsets.g.stack.hi) != (0, 8) {
            return Err("runtime.g does not begin with the bounds of its stack".to_owned());
        }
        Ok(offsets)
    }
}

struct Structs(HashMap<String, Struct>);

impl Structs {
    fn get(&self, name: &str) -> Result<&Struct, String> {
        self.0
            .get(name)
            .filter(|found| (1..=MAX_STRUCT_BYTES).contains(&found.size))
            .ok_or_else(|| format!("no {name} in its DWARF"))
    }

    /// The offset of a field, proven to have that size, to lie inside of its
    /// struct and to be aligned. Size and alignment are one for what is used.
    fn field(&self, owner: &str, name: &str, size: u64) -> Result<u32, String> {
        let field = self.optional_field(owner, name, size)?;
        field.ok_or_else(|| format!("no field {name} in {owner} of its DWARF"))
    }

    /// The same for a field that some versions lack.
    fn optional_field(&self, owner: &str, name: &str, size: u64) -> Result<Option<u32>, String> {
        let owner_struct = self.get(owner)?;
        let Some(Field {
            offset,
            size: found,
        }) = owner_struct.field(name)
        else {
            return Ok(None);
        };
        let inside = offset
            .checked_add(size)
            .is_some_and(|end| end <= owner_struct.size);
        let odd = || format!("field {name} of {owner} is not what it was");
        if found != Some(size) || !inside || offset % size.min(8) != 0 {
            return Err(odd());
        }
        u32::try_from(offset).map(Some).map_err(|_| odd())
    }

    /// What tells how much of a span was used.
    fn spans(&self) -> Result<SpanOffsets, Unlike> {
        let of = |owner, field, size| {
            let found = self.field(owner, field, size);
            found.map_err(|_| Unlike { owner, field })
        };
        Ok(SpanOffsets {
            cache_alloc: of(MCACHE, "alloc", 8 * SPAN_CLASSES)?,
            used: of(MSPAN, "allocCount", 2)?,
            used_before: of(MSPAN, "allocCountBeforeCache", 2)?,
            block_bytes: of(MSPAN, "elemsize", 8)?,
        })
    }

    /// What lists of goroutines need.
    fn lists(&self) -> Result<ListOffsets, Unlike> {
        let of = |owner, field, size| {
            let found = self.field(owner, field, size);
            found.map_err(|_| Unlike { owner, field })
        };
        let address = |field| {
            let found = self.traceable_field(SUDOG, field);
            found.map_err(|_| Unlike {
                owner: SUDOG,
                field,
            })
        };
        let parent = "parentGoid";
        let parent_goid = self.optional_field(G, parent, 8);
        let sudog = SudogOffsets {
            g: of(SUDOG, "g", 8)?,
            next: of(SUDOG, "next", 8)?,
            prev: of(SUDOG, "prev", 8)?,
            elem: address("elem")?,
            wait_link: of(SUDOG, "waitlink", 8)?,
            c: address("c")?,
        };
        if !self.get(SUDOG).is_ok_and(Struct::is_consistent) {
            return Err(Unlike {
                owner: SUDOG,
                field: "g",
            });
        }
        Ok(ListOffsets {
            wait_since: of(G, "waitsince", 8)?,
            wait_reason: of(G, "waitreason", 1)?,
            go_pc: of(G, "gopc", 8)?,
            waiting: of(G, "waiting", 8)?,
            parent_goid: parent_goid.map_err(|_| Unlike {
                owner: G,
                field: parent,
            })?,
            sudog,
        })
    }

    /// The offset of the address in a field that is one, or since 1.26 a struct
    /// with one.
    fn traceable_field(&self, owner: &str, name: &str) -> Result<u32, String> {
        let Ok(size) = self.get(TRACEABLE).map(|kind| kind.size) else {
            return self.field(owner, name, 8);
        };
        Ok(self.field(owner, name, size)? + self.field(TRACEABLE, "vu", 8)?)
    }

    /// The format of labels by the types that the program has. A program
    /// without labels has none of them.
    fn label_format(&self) -> Option<LabelFormat> {
        let pair = LABELS.iter().any(|name| {
            self.get(name).is_ok_and(|label| {
                let at = |field| label.field(field).map(|field| field.offset);
                label.size == 32
                    && at("key").or(at("Key")) == Some(0)
                    && at("value").or(at("Value")) == Some(16)
            })
        });
        let is_slice = |name| self.get(name).is_ok_and(|found| found.size == 24);
        let is_named = self.0.contains_key(LABEL_MAP);
        if pair && is_slice(LABEL_MAP) && is_slice(LABEL_SET) {
            Some(LabelFormat::Slice)
        } else if is_named && self.get(LABEL_MAP).is_err() && self.get(HMAP).is_ok() {
            Some(LabelFormat::Map)
        } else {
            None
        }
    }
}
