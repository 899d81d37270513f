//! Where a program's allocations pass, each once, and what block the runtime makes of
//! one (`runtime/malloc.go`, `runtime/sizeclasses.go`). Reads the file alone.

use super::probe_places::{NoProbePlace, ProbePlace};
use super::version::GoVersion;
use super::{AllocatedType, GoBinary};

/// Sizes of blocks in bytes, by their class: the same in all versions from 1.19 to 1.27.
const CLASS_BYTES: [u64; 68] = [
    0, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 288, 320,
    352, 384, 416, 448, 480, 512, 576, 640, 704, 768, 896, 1024, 1152, 1280, 1408, 1536, 1792,
    2048, 2304, 2688, 3072, 3200, 3456, 4096, 4864, 5376, 6144, 6528, 6784, 6912, 8192, 9472, 9728,
    10240, 10880, 12288, 13568, 14336, 16384, 18432, 19072, 20480, 21760, 24576, 27264, 28672,
    32768,
];
/// What is larger is made of pages of the runtime (`_PageSize`).
const MAX_SMALL_BYTES: u64 = 32_768;
const PAGE_BYTES: u64 = 8192;
/// Blocks without pointers that are smaller share one of this size (`maxTinySize`).
const TINY_BLOCK_BYTES: u64 = 16;
/// Larger blocks with pointers begin with a word that says where those are, since 1.22
/// (`minSizeForMallocHeader`, `mallocHeaderSize`).
const MAX_WITHOUT_HEADER_BYTES: u64 = 512;
const HEADER_BYTES: u64 = 8;

/// Most bytes of a span of blocks: the runtime has none of more than ten pages.
const MAX_SPAN_BYTES: u64 = 10 * PAGE_BYTES;
/// More than a program can have in all.
const MAX_LARGE_BYTES: u64 = 1 << 47;

/// Where all allocations pass.
const ALLOCATOR: &str = "runtime.mallocgc";
/// Where the runtime takes one as a sample of its heap profile.
const SAMPLER: &str = "runtime.profilealloc";

/// Where a cache of spans takes another, as one is used up (`runtime/mcache.go`).
const REFILL: &str = "runtime.(*mcache).refill";
/// Where blocks that are too large for spans of several are made, each alone.
const LARGE: &str = "runtime.(*mcache).allocLarge";

/// A place that allocations pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocatorPlace {
    /// Where it is.
    pub place: ProbePlace,
    /// Allocations of no more bytes pass another place as well, and count there.
    pub passed_on_bytes: u64,
}

/// What an allocation comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// The size of the block, as Go's own profiles have it.
    pub bytes: u64,
    /// How much of it the allocation takes: all, but where several share it.
    pub taken_bytes: u64,
}

impl Block {
    /// The block for so many bytes, by a program's version.
    pub fn of(size_bytes: u64, has_pointers: bool, version: &GoVersion) -> Self {
        if size_bytes < TINY_BLOCK_BYTES && !has_pointers {
            let align = match size_bytes {
                size if size % 8 == 0 => 8,
                size if size % 4 == 0 => 4,
                size if size % 2 == 0 => 2,
                _ => 1,
            };
            return Block {
                bytes: TINY_BLOCK_BYTES,
                taken_bytes: size_bytes.next_multiple_of(align),
            };
        }
        let has_header = has_pointers
            && size_bytes > MAX_WITHOUT_HEADER_BYTES
            && version.major_minor() >= (1, 22);
        let small = match size_bytes.checked_add(if has_header { HEADER_BYTES } else { 0 }) {
            Some(size) if size <= MAX_SMALL_BYTES => {
                CLASS_BYTES.iter().copied().find(|class| *class >= size)
            }
            _ => None,
        };
        let pages = || size_bytes.checked_next_multiple_of(PAGE_BYTES);
        let bytes = small.or_else(pages).unwrap_or(size_bytes);
        Block {
            bytes,
            taken_bytes: bytes,
        }
    }

    /// The blocks of a span, of which so many were used. None where the runtime has no
    /// such.
    pub fn of_span(used: u32, bytes: u64) -> Option<Self> {
        let is_block = (1..=MAX_SMALL_BYTES).contains(&bytes) && bytes.is_multiple_of(8);
        let is_span = used > 0 && u64::from(used).checked_mul(bytes)? <= MAX_SPAN_BYTES;
        (is_block && is_span).then_some(Block {
            bytes,
            taken_bytes: bytes,
        })
    }

    /// The block for an allocation that has pages of its own. None where no program has
    /// so many.
    pub fn large(size_bytes: u64) -> Option<Self> {
        let is_large = (1..=MAX_LARGE_BYTES).contains(&size_bytes);
        let bytes = size_bytes.checked_next_multiple_of(PAGE_BYTES)?;
        is_large.then_some(Block {
            bytes,
            taken_bytes: bytes,
        })
    }
}

impl AllocatedType {
    /// What an allocation of so many bytes of it is called: a slice where it is more
    /// than one, as the runtime is told of elements alone.
    pub fn name_of(self, size_bytes: u64) -> String {
        match self.size_bytes == size_bytes {
            true => self.name,
            false => format!("[]{}", self.name),
        }
    }
}

impl GoBinary {
    /// The places that every allocation passes: `runtime.mallocgc`, and since 1.27
    /// those that are made for blocks of one size, which the compiler calls itself and
    /// `mallocgc` too. Reads all function names: not for hot paths.
    ///
    /// # Errors
    /// One of them has no place for a probe; says which.
    pub fn allocator_places(&self) -> Result<Vec<AllocatorPlace>, String> {
        let mut names = Vec::new();
        let mut passed_on_bytes = 0;
        self.for_each_name(ALLOCATOR, |name, _| {
            let class = class_of(name).and_then(|class| CLASS_BYTES.get(class));
            if let Some(bytes) = class {
                passed_on_bytes = passed_on_bytes.max(*bytes);
                names.push(name.to_owned());
            }
        });
        // What only adapts the calling convention goes by the same name.
        names.sort_unstable();
        names.dedup();
        names.insert(0, ALLOCATOR.to_owned());
        let asked: Vec<&str> = names.iter().map(String::as_str).collect();
        let places = asked.iter().zip(self.probe_places(&asked));
        let places = places.map(|(name, place)| {
            let place = place.map_err(|why| format!("cannot probe {name}: {why}"))?;
            let is_first = *name == ALLOCATOR;
            Ok(AllocatorPlace {
                place,
                passed_on_bytes: if is_first { passed_on_bytes } else { 0 },
            })
        });
        places.collect()
    }

    /// Where the runtime takes another span of blocks as one is used up, and where it makes
    /// blocks that are too large for that.
    ///
    /// # Errors
    /// One of them has no place for a probe; says which.
    pub fn span_places(&self) -> Result<[ProbePlace; 2], String> {
        let names = [REFILL, LARGE];
        let mut places = names.into_iter().zip(self.probe_places(&names));
        let mut next = || match places.next() {
            Some((name, place)) => place.map_err(|why| format!("cannot probe {name}: {why}")),
            None => Err(NoProbePlace::NoFunction.to_string()),
        };
        Ok([next()?, next()?])
    }

    /// The place where the runtime takes an allocation as a sample.
    ///
    /// # Errors
    /// There is none.
    pub fn sampler_place(&self) -> Result<ProbePlace, NoProbePlace> {
        let mut places = self.probe_places(&[SAMPLER]).into_iter();
        places.next().unwrap_or(Err(NoProbePlace::NoFunction))
    }
}

/// The class of blocks that a function is made for, such as
/// `runtime.mallocgcSmallNoScanSC3`.
pub(super) fn class_of(name: &str) -> Option<usize> {
    let special = name.strip_prefix(ALLOCATOR)?;
    let is_special = special.starts_with("Small") || special.starts_with("Tiny");
    let (_, digits) = special.split_once("SC").filter(|_| is_special)?;
    let is_class = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_class.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_the_runtime() {
        let of = |size, has_pointers, go: &str| {
            let block = Block::of(size, has_pointers, &GoVersion::parse(go).unwrap());
            (block.bytes, block.taken_bytes)
        };
        assert_eq!(of(1, false, "go1.23.1"), (16, 1));
        assert_eq!(of(6, false, "go1.23.1"), (16, 6));
        assert_eq!(of(12, false, "go1.23.1"), (16, 12));
        assert_eq!(of(16, false, "go1.23.1"), (16, 16));
        assert_eq!(of(8, true, "go1.23.1"), (8, 8));
        assert_eq!(of(33, true, "go1.23.1"), (48, 48));
        assert_eq!(of(512, true, "go1.23.1"), (512, 512));
        // A header makes it the next class.
        assert_eq!(of(1024, true, "go1.22.1"), (1152, 1152));
        assert_eq!(of(1024, true, "go1.21.1"), (1024, 1024));
        assert_eq!(of(1024, false, "go1.22.1"), (1024, 1024));
        assert_eq!(of(32_768, false, "go1.22.1"), (32_768, 32_768));
        assert_eq!(of(32_768, true, "go1.22.1"), (32_768, 32_768));
        assert_eq!(of(32_769, false, "go1.22.1"), (40_960, 40_960));
        assert_eq!(of(u64::MAX, false, "go1.22.1").0, u64::MAX);
    }

    #[test]
    fn spans_that_the_runtime_cannot_have_are_none() {
        let bytes = |used, bytes| Block::of_span(used, bytes).map(|block| block.bytes);
        assert_eq!(bytes(1024, 8), Some(8));
        assert_eq!(bytes(1, 32_768), Some(32_768));
        for (used, of) in [
            (0, 8),
            (1, 0),
            (1, 12),
            (1, 40_960),
            (60_000, 16),
            (2, u64::MAX),
        ] {
            assert_eq!(bytes(used, of), None, "{used} of {of}");
        }
        let large = |size| Block::large(size).map(|block| block.bytes);
        assert_eq!((large(32_769), large(40_960)), (Some(40_960), Some(40_960)));
        assert_eq!([0, (1 << 47) + 1, u64::MAX].map(large), [None; 3]);
    }

    #[test]
    fn functions_for_one_size_are_told_by_their_names() {
        assert_eq!(class_of("runtime.mallocgcSmallScanNoHeaderSC7"), Some(7));
        assert_eq!(class_of("runtime.mallocgcTinySC2"), Some(2));
        for other in [
            "runtime.mallocgc",
            "runtime.mallocgcSmallScanNoHeader",
            "runtime.mallocgcSmallScanSlowPath",
            "runtime.mallocgcSmallNoScanSC",
            "runtime.mallocgcSmallNoScanSC2x",
            "main.mallocgcTinySC2",
        ] {
            assert_eq!(class_of(other), None, "{other}");
        }
    }

    #[test]
    fn more_than_one_is_a_slice() {
        let of = |size| {
            let kind = AllocatedType {
                name: "main.node".to_owned(),
                size_bytes: 16,
                has_pointers: true,
            };
            kind.name_of(size)
        };
        assert_eq!((of(16), of(48)), ("main.node".into(), "[]main.node".into()));
    }
}
