//! Where a record is put together: a slot of this CPU in a map, as the stack of
//! a program holds 512 bytes. Words are only ever appended.

use core::ffi::c_void;

use aya_ebpf::{macros::map, maps::PerCpuArray};
use profiler_ebpf::wire::{MAX_PAYLOAD_WORDS, Measured, Sample};

use super::{
    budget::add,
    chain::{IntoC, Walk, Walked},
    goroutine::Goroutine,
    memory::{self, Block},
};

/// Most words appended by one [`Scratch::copy_user`].
pub const MAX_COPY_WORDS: usize = 128;

/// A record under way. The kernel allows a slot of 32 KB on every machine
/// (`PCPU_MIN_UNIT_SIZE`).
#[repr(C)]
pub struct Scratch {
    /// Programs of probes at work on this slot, or that look whether one is.
    users: u64,
    /// Words in use. In the map, not in a register: the verifier then knows
    /// only what was last checked, and need not follow each depth at which a
    /// walk can end on its own.
    used: u64,
    /// What the parts of the work hand on to each other.
    pub state: State,
    /// What comes before the header, where something else than CPU time is sampled.
    pub measured: Measured,
    /// The header.
    pub sample: Sample,
    words: [u64; MAX_PAYLOAD_WORDS],
    /// What was read last of a stack, or of labels.
    pub block: Block,
}

/// What the parts of the work on a sample hand on to each other: each is a
/// function that the verifier looks at once, by itself, and so takes little
/// but what it finds here.
#[repr(C)]
pub struct State {
    /// The goroutine.
    pub goroutine: Goroutine,
    /// The walk under way.
    pub walk: Walk,
    /// What was walked last.
    pub walked: Walked,
    /// Not zero where the goroutine's own stack is another than the one that
    /// the thread was on, or than the one that a signal interrupted.
    pub left: u64,
    /// The frame that returns into `runtime.cgocallback`; 0 where there is none.
    pub callback_fp: u64,
    /// The frame behind it, if words from there are to be copied yet.
    pub into_c: IntoC,
    /// How many labels were taken.
    pub labels: u64,
    /// How many words may be in use after the last of them.
    pub labels_end: u64,
    /// The bucket that the present one of a map of labels overflows to.
    pub label_overflow: u64,
    /// Not zero where the block holds the labels, or the bucket, of this step.
    pub label_filled: u64,
}

const _: () = assert!(size_of::<Scratch>() <= 32 * 1024);

/// Who may be at work on one CPU at the same time, each with a slot of its own.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum Slot {
    /// The CPU sampler, which interrupts all others and not itself.
    Tick = 0,
    /// Thread switches, which happen with interrupts off.
    Switch = 1,
    /// Programs of probes, of which one can be put aside for another: by
    /// [`Scratch::for_probe`] alone.
    Probe = 2,
    /// Requests to block devices: the kernel runs no second program of that kind
    /// meanwhile.
    Block = 3,
}

/// Slots a CPU.
const SLOTS: u32 = 4;

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(SLOTS, 0);

impl Scratch {
    /// This CPU's slot.
    #[inline(always)]
    pub fn of_this_cpu(slot: Slot) -> Option<&'static mut Scratch> {
        // SAFETY: the slot lives as long as the map; nobody else uses it now.
        SCRATCH
            .get_ptr_mut(slot as u32)
            .map(|scratch| unsafe { &mut *scratch })
    }

    /// This CPU's slot for a program of a probe; none where another one is at work
    /// on it. To be given back by [`Scratch::release`].
    #[inline(always)]
    pub fn for_probe() -> Option<&'static mut Scratch> {
        let scratch = Self::of_this_cpu(Slot::Probe)?;
        // Of two that come at the same time, at least one sees two.
        // SAFETY: in a value of a map; volatile, as others write it.
        let users = unsafe {
            add(&raw mut scratch.users, 1);
            core::ptr::read_volatile(&raw const scratch.users)
        };
        if users != 1 {
            scratch.release();
            return None;
        }
        Some(scratch)
    }

    /// Gives the slot back.
    #[inline(always)]
    pub fn release(&mut self) {
        // SAFETY: in a value of a map.
        unsafe { add(&raw mut self.users, u64::MAX) };
    }

    /// Begins a record: no words are in use.
    #[inline(always)]
    pub fn begin(&mut self) {
        self.used = 0;
    }

    /// How many words are in use.
    #[inline(always)]
    pub fn used(&self) -> usize {
        // SAFETY: a read of our own field; volatile, so that it is one.
        unsafe { core::ptr::read_volatile(&raw const self.used) as usize }
    }

    /// Appends a word, if there is room.
    #[inline(always)]
    pub fn push(&mut self, word: u64) -> bool {
        let Some(room) = self.room(1) else {
            return false;
        };
        // SAFETY: there is room for a word.
        unsafe { *room = word };
        self.commit(1);
        true
    }

    /// Room for `words` (a constant) at the end; to be taken by
    /// [`Scratch::commit`].
    #[inline(always)]
    pub fn room(&mut self, words: usize) -> Option<*mut u64> {
        let at = self.used();
        if at > MAX_PAYLOAD_WORDS - words {
            return None;
        }
        // SAFETY: `at` was just checked.
        Some(unsafe { self.words.as_mut_ptr().add(at) })
    }

    /// Takes `words` that were written to [`Scratch::room`].
    #[inline(always)]
    pub fn commit(&mut self, words: usize) {
        self.used = (self.used() + words) as u64;
    }

    /// Drops what was appended since `used` words were in use.
    #[inline(always)]
    pub fn rewind(&mut self, used: usize) {
        self.used = used as u64;
    }

    /// Appends `words` of the thread's memory, all or none of them.
    #[inline(always)]
    pub fn copy_user(&mut self, address: u64, words: usize) -> bool {
        // Hidden from the compiler, which would check where the number comes
        // from instead: the verifier must see this one checked.
        let words = core::hint::black_box(words);
        if words > MAX_COPY_WORDS {
            return false;
        }
        let Some(room) = self.room(MAX_COPY_WORDS) else {
            return false;
        };
        // SAFETY: there is room for the most words there can be.
        let read = unsafe { memory::read(room.cast::<c_void>(), words * 8, address) };
        if read {
            self.commit(words);
        }
        read
    }

    /// Appends `bytes` (at most `MAX` of them, a multiple of eight) of the
    /// thread's memory, padded with zeros to whole words.
    #[inline(always)]
    pub fn copy_text<const MAX: usize>(&mut self, address: u64, bytes: usize) -> bool {
        if bytes > MAX {
            return false;
        }
        let Some(room) = self.room(MAX / 8 + 1) else {
            return false;
        };
        // SAFETY: there is room for a word more than the most bytes there can
        // be.
        let read = unsafe {
            *room.add(bytes / 8) = 0;
            memory::read(room.cast::<c_void>(), bytes, address)
        };
        if read {
            self.commit(bytes.div_ceil(8));
        }
        read
    }

    /// The same with [`Scratch::measured`] before it.
    #[inline(always)]
    pub fn measured_record(&self) -> Option<&[u8]> {
        let words = self.used();
        if words > MAX_PAYLOAD_WORDS {
            return None;
        }
        // SAFETY: as below; `measured` stands right before the header.
        Some(unsafe {
            core::slice::from_raw_parts(
                core::ptr::from_ref(&self.measured).cast::<u8>(),
                size_of::<Measured>() + size_of::<Sample>() + words * 8,
            )
        })
    }

    /// The record's bytes: the header and the words in use.
    #[inline(always)]
    pub fn record(&self) -> Option<&[u8]> {
        let words = self.used();
        if words > MAX_PAYLOAD_WORDS {
            return None;
        }
        // SAFETY: the header and the words stand next to each other, and
        // `words` of them were just checked to be there.
        Some(unsafe {
            core::slice::from_raw_parts(
                core::ptr::from_ref(&self.sample).cast::<u8>(),
                size_of::<Sample>() + words * 8,
            )
        })
    }
}
