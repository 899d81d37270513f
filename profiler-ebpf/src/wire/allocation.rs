//! Why an allocation was taken, and what else comes with it: the `detail` of a
//! [`Measured`](super::Measured).

/// The runtime itself took it as a sample. The size is that of the block.
pub const BY_RUNTIME: u64 = 0;
/// It passed a random threshold, of [`MEAN_BYTES`] on average: an allocation of so
/// many bytes does by a chance of `1 - exp(-bytes / MEAN_BYTES)`. The size is that
/// which was asked for.
pub const BY_THRESHOLD: u64 = 1;
/// Thresholds on average. Of allocations of 100 bytes one in six is taken, so that
/// the stacks take less than the traps do.
pub const MEAN_BYTES: u64 = 512;
/// A span of blocks is used up: the weight says how many of its blocks were used since it
/// was taken from those with room, 0 where that could not be read, and the size is that
/// of one.
pub const BY_SPAN: u64 = 2;
/// It is too large for blocks, and has a span of its own. The size is that which was asked
/// for.
pub const BY_LARGE: u64 = 3;
/// Which of these it is.
pub const WHY: u64 = 3;
/// From here up: the bytes that were allocated since the program began, by the
/// runtime; 0 where not known.
pub const TOTAL_SHIFT: u32 = 2;
