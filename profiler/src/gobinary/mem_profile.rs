//! How the runtime keeps its memory profile (`runtime/mprof.go`): the layout of
//! a bucket and of the counts behind it, and how Go makes figures of them. Reads
//! bytes it is given, never the program's memory.

use super::bytes::read_u64;
use super::version::GoVersion;

/// Bytes of `runtime.bucket`, all versions; the stack follows, then the counts.
pub const BUCKET_BYTES: usize = 48;

/// `memProfile`, `blockProfile` and `mutexProfile` of `runtime.bucketType`.
pub mod bucket_kind {
    /// What was allocated.
    pub const MEMORY: u64 = 1;
    /// Who waited.
    pub const BLOCK: u64 = 2;
    /// Who held what others waited for.
    pub const MUTEX: u64 = 3;
}

/// Frames of a stack: up to 32 until 1.22, then 128 unless GODEBUG says
/// (`profstackdepth`) up to 1024, and some that are passed over.
pub const MAX_BUCKET_FRAMES: u64 = 1024 + 8;

/// `runtime.bucket`: what was allocated by one stack in blocks of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketHead {
    /// `allnext`: the bucket that was made before this one, 0 for the first.
    pub next: u64,
    /// `typ`: one of [`bucket_kind`].
    pub kind: u64,
    /// `size`: of a block, in bytes.
    pub size_bytes: u64,
    /// `nstk`: frames of the stack.
    pub frames: u64,
}

impl BucketHead {
    /// Reads [`BUCKET_BYTES`] bytes.
    pub fn read(bytes: &[u8]) -> Option<BucketHead> {
        Some(BucketHead {
            next: read_u64(bytes, 8)?,
            kind: read_u64(bytes, 16)?,
            size_bytes: read_u64(bytes, 32)?,
            frames: read_u64(bytes, 40)?,
        })
    }
}

/// Blocks, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blocks {
    /// That were allocated.
    pub allocs: u64,
    /// Of these, that were freed.
    pub frees: u64,
}

/// The counts of a bucket (`runtime.memRecord`), each of sampled blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BucketCounts {
    /// `active`: as of the last collection that is over; what Go's own profile
    /// shows.
    pub active: Blocks,
    /// With all since (`future`).
    pub all: Blocks,
}

/// How counts are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountsLayout {
    /// Numbers and bytes of what was allocated and freed (up to 1.26).
    WithBytes,
    /// Numbers alone (since 1.27).
    Numbers,
}

impl CountsLayout {
    /// Those that may be a version's, likeliest first. Empty where it is newer
    /// than goprof knows. A snapshot may precede its version's change.
    pub fn candidates(version: &GoVersion) -> &'static [CountsLayout] {
        match version.major_minor() {
            (1, ..=26) => &[CountsLayout::WithBytes],
            (1, 27) if version.is_devel() => &[CountsLayout::Numbers, CountsLayout::WithBytes],
            (1, 27) => &[CountsLayout::Numbers],
            _ => &[],
        }
    }

    /// Words of one record.
    fn words(self) -> usize {
        match self {
            CountsLayout::WithBytes => 4,
            CountsLayout::Numbers => 2,
        }
    }

    /// Bytes of all four records.
    pub fn bytes(self) -> usize {
        4 * self.words() * 8
    }

    /// Reads the counts of blocks of one size. None where they contradict
    /// themselves: the layout is another, or they changed while they were read.
    pub fn read(self, bytes: &[u8], size_bytes: u64) -> Option<BucketCounts> {
        let mut counts = BucketCounts::default();
        for record in 0..4 {
            let word = |index: usize| read_u64(bytes, (record * self.words() + index) * 8);
            let blocks = Blocks {
                allocs: word(0)?,
                frees: word(1)?,
            };
            if self == CountsLayout::WithBytes {
                let right = |number: u64, index| number.checked_mul(size_bytes) == word(index);
                (right(blocks.allocs, 2) && right(blocks.frees, 3)).then_some(())?;
            }
            counts.all.allocs = counts.all.allocs.checked_add(blocks.allocs)?;
            counts.all.frees = counts.all.frees.checked_add(blocks.frees)?;
            if record == 0 {
                counts.active = blocks;
            }
        }
        // No block is freed before it was allocated, nor are there so many.
        let sane = |blocks: Blocks| blocks.frees <= blocks.allocs && blocks.allocs < 1 << 56;
        (sane(counts.active) && sane(counts.all)).then_some(counts)
    }
}

/// What so many sampled blocks of one size stand for, in blocks and bytes, where
/// one in `rate` bytes is sampled (`runtime/pprof.scaleHeapSample`, all
/// versions).
pub fn unsample(blocks: i64, size_bytes: u64, rate: u64) -> (i64, i64) {
    if blocks == 0 || size_bytes == 0 {
        return (0, 0);
    }
    let (count, size) = (blocks as f64, size_bytes as f64);
    if rate <= 1 {
        return (blocks, (count * size) as i64);
    }
    let scale = 1.0 / (1.0 - (-size / rate as f64).exp());
    ((count * scale) as i64, (count * size * scale) as i64)
}

/// Whether Go leaves a function out where it is among the first of a stack of
/// the memory profile (`runtime/pprof.writeHeapProto`).
pub fn is_hidden_allocator(function: &str) -> bool {
    function.starts_with("runtime.") || function.starts_with("internal/runtime/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn counts_with_bytes_must_agree_with_them() {
        let mut words = vec![5, 2, 80, 32, 1, 0, 16, 0, 0, 1, 0, 16, 0, 0, 0, 0];
        let read = |words: &[u64]| CountsLayout::WithBytes.read(&bytes(words), 16);
        let counts = read(&words).unwrap();
        assert_eq!((counts.active.allocs, counts.active.frees), (5, 2));
        assert_eq!((counts.all.allocs, counts.all.frees), (6, 3));
        assert_eq!(read(&words[..15]), None, "cut off");
        words[2] = 81;
        assert_eq!(read(&words), None);
    }

    #[test]
    fn counts_alone_must_make_sense() {
        let read = |words: &[u64]| CountsLayout::Numbers.read(&bytes(words), 16);
        let counts = read(&[5, 2, 1, 0, 0, 1, 0, 0]).unwrap();
        assert_eq!((counts.all.allocs, counts.all.frees), (6, 3));
        assert_eq!(read(&[2, 5, 1, 0, 0, 1, 0, 0]), None, "freed first");
        assert_eq!(read(&[1 << 60, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(read(&[u64::MAX, 0, u64::MAX, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn each_version_has_its_layout() {
        let of = |go: &str| CountsLayout::candidates(&GoVersion::parse(go).unwrap());
        assert_eq!(of("go1.19.1"), [CountsLayout::WithBytes]);
        assert_eq!(of("go1.26.1"), [CountsLayout::WithBytes]);
        assert_eq!(of("go1.27.1"), [CountsLayout::Numbers]);
        assert_eq!(of("devel go1.27-0123abc").len(), 2);
        assert!(of("go1.28.1").is_empty());
    }

    #[test]
    fn figures_are_gos() {
        // By runtime/pprof of Go 1.26: scaleHeapSample(3, 3*1024, 524288) and so on.
        assert_eq!(unsample(3, 1024, 524_288), (1537, 1_574_400));
        assert_eq!(unsample(-3, 1024, 524_288), (-1537, -1_574_400));
        assert_eq!(unsample(3, 1024, 1), (3, 3072));
        assert_eq!(unsample(3, 0, 524_288), (0, 0));
        assert_eq!(unsample(0, 8, 524_288), (0, 0));
        assert_eq!(unsample(1, 100 << 20, 524_288), (1, 100 << 20));
    }
}
