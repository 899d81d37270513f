//! Reads of the current task's user memory, which never fault: what cannot be
//! read is zero or nothing.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use profiler_ebpf::walk::{BLOCK_BYTES, UserMemory, block_bytes};

/// A word; 0 where it cannot be read.
#[inline(always)]
pub fn read_word(address: u64) -> u64 {
    read_words::<1>(address)[0]
}

/// Words that lie side by side; all 0 where one cannot be read.
#[inline(always)]
pub fn read_words<const N: usize>(address: u64) -> [u64; N] {
    let mut words = [0u64; N];
    // SAFETY: there is room for that many words. The helper writes zeros where
    // it fails.
    unsafe { read(words.as_mut_ptr().cast(), N * 8, address) };
    words
}

/// Reads `bytes`; says whether it could, and writes zeros where not.
///
/// # Safety
/// There is room for `bytes` at `to`.
#[inline(always)]
pub unsafe fn read(to: *mut c_void, bytes: usize, address: u64) -> bool {
    // SAFETY: the caller's promise. The helper checks the address and does not
    // fault.
    unsafe { bpf_probe_read_user(to, bytes as u32, address as *const c_void) == 0 }
}

/// Words of a [`Block`].
pub const BLOCK_WORDS: usize = BLOCK_BYTES as usize / 8;

/// A copy of some user memory.
#[repr(C)]
pub struct Block {
    /// Where it begins.
    address: u64,
    /// The offset of the last word; 0 where nothing was read.
    last: u64,
    words: [u64; BLOCK_WORDS],
}

impl Block {
    /// Forgets what was read.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.last = 0;
    }

    /// Reads `words` (at most [`BLOCK_WORDS`]) at `address`, and says whether it
    /// could.
    #[inline(always)]
    pub fn fill(&mut self, address: u64, words: usize) -> bool {
        self.clear();
        // Hidden from the compiler, which would check where the number comes
        // from instead: the verifier must see this one checked.
        let words = core::hint::black_box(words);
        if words > BLOCK_WORDS {
            return false;
        }
        // SAFETY: there is room for that many words.
        unsafe { read(self.words.as_mut_ptr().cast(), words * 8, address) }
    }

    /// `N` words from the one at `index` on; zeros where the block ends before.
    #[inline(always)]
    pub fn words<const N: usize>(&self, index: usize) -> [u64; N] {
        let mut words = [0; N];
        let index = core::hint::black_box(index);
        if index <= BLOCK_WORDS - N {
            for (offset, word) in words.iter_mut().enumerate() {
                // SAFETY: `index` was checked.
                *word = unsafe { *self.words.get_unchecked(index + offset) };
            }
        }
        words
    }
}

/// The stack of the current task, read in blocks: a call of the kernel for each
/// frame was most of what a walk took.
pub struct Stack(*mut Block);

impl Stack {
    /// # Safety
    /// The block outlives what is returned, and nobody else uses it meanwhile.
    #[inline(always)]
    pub unsafe fn new(block: *mut Block) -> Self {
        Self(block)
    }
}

impl UserMemory for Stack {
    #[inline(always)]
    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        // SAFETY: as `new` was promised.
        let block = unsafe { &mut *self.0 };
        let offset = address.wrapping_sub(block.address);
        if offset < block.last {
            return Some(block.words(offset as usize / 8));
        }
        (read_block(block, address) != 0).then(|| block.words(0))
    }
}

/// Reads the block that begins at `address`; not zero where it could.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn read_block(block: *mut Block, address: u64) -> u64 {
    // SAFETY: null, or what `Stack` has.
    let Some(block) = (unsafe { block.as_mut() }) else {
        return 0;
    };
    let bytes = block_bytes(address);
    if !block.fill(address, bytes as usize / 8) {
        return 0;
    }
    block.address = address;
    block.last = bytes - 8;
    1
}
