//! The pprof labels of a goroutine, in both forms that Go has kept them in.
//! Read when the sample is taken: the collector may reuse their memory after.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use profiler_ebpf::wire::{
    Label, MAX_LABEL_BYTES, MAX_LABEL_WORDS, MAX_LABELS, MAX_LABELS_WORDS, labels,
};

use super::{
    memory::{BLOCK_WORDS, read_word, read_words},
    scratch::Scratch,
};

/// Go's maps up to 1.23 (`runtime/map.go`): a bucket holds eight tags, eight
/// keys, eight values and a pointer to the next. In words; [`head`] in bytes.
mod gomap {
    pub const SLOTS: usize = 8;
    pub const STRING: usize = 2;
    pub const KEYS: usize = 1;
    pub const VALUES: usize = KEYS + SLOTS * STRING;
    pub const OVERFLOW: usize = VALUES + SLOTS * STRING;
    pub const BUCKET: usize = OVERFLOW + 1;
    /// Tags below this are of empty or evacuated slots.
    pub const MIN_TAG: u8 = 5;
    /// Most buckets looked at, of the map and of what it grew from, each with
    /// one that it overflows to.
    pub const MAX_BUCKETS: u64 = 8;

    /// The map itself: how many entries it has, then flags and the logarithm of
    /// how many buckets, then the buckets, and those that it grows from.
    pub mod head {
        pub const WORDS: usize = 4;
        /// The place of both in the second word, in bits.
        pub const FLAGS: u32 = 0;
        pub const LOG2_BUCKETS: u32 = 8;
        /// The map grows into as many buckets as it had.
        pub const SAME_SIZE: u64 = 8;
    }
}

/// Words of a label in the slice: key and value, an address and a length each.
const PAIR_WORDS: usize = 4;
/// Labels of the slice that are read at once.
const PAIRS: u64 = (BLOCK_WORDS / PAIR_WORDS) as u64;

/// What the steps over labels share and do not change: until Linux 6.7 the verifier
/// looks at a step once, takes what the context holds before the first one for what it
/// always holds, and cuts off what that rules out. What changes is in the map.
struct Labels {
    scratch: *mut Scratch,
    /// How many there are.
    count: u64,
    /// Of the pairs, or of the buckets.
    array: u64,
    /// Of the buckets that a growing map still has; else 0.
    old_array: u64,
    buckets: u64,
    old_buckets: u64,
}

/// Appends the labels at `set` (the value of `g.labels`, not 0).
#[inline(always)]
pub fn take(scratch: &mut Scratch, form: u8, set: u64) {
    let before = scratch.used();
    let mut state = Labels {
        scratch: &raw mut *scratch,
        count: 0,
        array: 0,
        old_array: 0,
        buckets: 0,
        old_buckets: 0,
    };
    scratch.state.label_overflow = 0;
    scratch.state.label_filled = 0;
    scratch.state.labels = 0;
    scratch.state.labels_end = before as u64 + MAX_LABELS_WORDS as u64;
    if form == labels::SLICE {
        slice(&mut state, set);
    } else {
        map(&mut state, set);
    }
    let taken = scratch.state.labels;
    let missed = state.count.saturating_sub(taken).min(255);
    scratch.sample.labels = taken as u8;
    scratch.sample.labels_missed = missed as u8;
    scratch.sample.labels_words = (scratch.used() - before) as u16;
}

/// Go 1.24 and later: a pointer to a slice of pairs of strings.
#[inline(always)]
fn slice(state: &mut Labels, set: u64) {
    [state.array, state.count] = read_words(set);
    let steps = if state.count < MAX_LABELS as u64 {
        state.count
    } else {
        MAX_LABELS as u64
    };
    let callback: extern "C" fn(u64, *mut Labels) -> i64 = slice_step;
    run(steps as u32, callback, state);
}

/// One pair.
extern "C" fn slice_step(index: u64, state: *mut Labels) -> i64 {
    // SAFETY: the loop passes the context that it was given, and the slot of
    // this CPU outlives it.
    let (state, scratch) = unsafe { (&mut *state, &mut *(*state).scratch) };
    let within = index % PAIRS;
    if within == 0 {
        let left = state.count.saturating_sub(index).min(PAIRS);
        let address = state.array.wrapping_add(index * PAIR_WORDS as u64 * 8);
        scratch.state.label_filled = scratch.block.fill(address, left as usize * PAIR_WORDS) as u64;
    }
    if scratch.state.label_filled == 0 {
        return 0;
    }
    let at = within * PAIR_WORDS as u64;
    step_result(append_label(scratch, at, at + PAIR_WORDS as u64 / 2))
}

/// Up to Go 1.23: a pointer to a map of strings.
#[inline(always)]
fn map(state: &mut Labels, set: u64) {
    let [count, sizes, buckets, old_buckets] = read_words::<{ gomap::head::WORDS }>(read_word(set));
    state.count = count;
    state.array = buckets;
    state.old_array = old_buckets;
    let log2 = (sizes >> gomap::head::LOG2_BUCKETS) & 7;
    state.buckets = 1 << log2.min(3);
    let same_size = (sizes >> gomap::head::FLAGS) & gomap::head::SAME_SIZE != 0;
    state.old_buckets = if same_size {
        state.buckets
    } else {
        state.buckets / 2
    };
    let callback: extern "C" fn(u64, *mut Labels) -> i64 = map_step;
    let slots = 4 * gomap::MAX_BUCKETS * gomap::SLOTS as u64;
    run(slots as u32, callback, state);
}

/// One slot: first those of the map, then those it grew from; of each bucket
/// its own and those of the bucket that it overflows to.
extern "C" fn map_step(index: u64, state: *mut Labels) -> i64 {
    // SAFETY: the loop passes the context that it was given, and the slot of
    // this CPU outlives it.
    let (state, scratch) = unsafe { (&mut *state, &mut *(*state).scratch) };
    if scratch.state.labels >= state.count {
        return 1;
    }
    let slot = index as usize % gomap::SLOTS;
    if slot == 0 {
        let address = bucket_address(
            index / gomap::SLOTS as u64,
            state,
            scratch.state.label_overflow,
        );
        scratch.state.label_filled = 0;
        scratch.state.label_overflow = 0;
        if address != 0 && scratch.block.fill(address, gomap::BUCKET) {
            scratch.state.label_filled = 1;
            [scratch.state.label_overflow] = scratch.block.words(gomap::OVERFLOW);
        }
    }
    if scratch.state.label_filled == 0 {
        return 0;
    }
    let [tags] = scratch.block.words::<1>(0);
    if ((tags >> (slot * 8)) as u8) < gomap::MIN_TAG {
        return 0;
    }
    let at = slot * gomap::STRING;
    let (key, value) = (gomap::KEYS + at, gomap::VALUES + at);
    step_result(append_label(scratch, key as u64, value as u64))
}

/// The address of the bucket of this number; 0 where there is none.
#[inline(always)]
fn bucket_address(number: u64, state: &Labels, overflow: u64) -> u64 {
    if !number.is_multiple_of(2) {
        return overflow;
    }
    let bucket = number / 2;
    let (array, bucket, buckets) = if bucket < gomap::MAX_BUCKETS {
        (state.array, bucket, state.buckets)
    } else {
        (
            state.old_array,
            bucket - gomap::MAX_BUCKETS,
            state.old_buckets,
        )
    };
    if array == 0 || bucket >= buckets {
        return 0;
    }
    array.wrapping_add(bucket * gomap::BUCKET as u64 * 8)
}

#[inline(always)]
fn run(steps: u32, callback: extern "C" fn(u64, *mut Labels) -> i64, state: &mut Labels) {
    // SAFETY: the callback's context outlives the loop.
    unsafe {
        bpf_loop(
            steps,
            callback as *mut c_void,
            core::ptr::from_mut(state).cast::<c_void>(),
            0,
        );
    }
}

/// What a step of a loop returns to stop, where `full` is not zero, or go on. The
/// verifier must see that it is one or zero, which the compiler knows of itself.
#[inline(always)]
fn step_result(full: u64) -> i64 {
    i64::from(core::hint::black_box(full) != 0)
}

/// Appends the label whose strings, an address and a length each, lie in the block
/// at these words; not zero when there is no more room.
///
/// A global function, as the next: the verifier looks at each once, and not anew
/// from every step and form.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn append_label(scratch: *mut Scratch, key_at: u64, value_at: u64) -> u64 {
    // SAFETY: null, or what the steps have.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else {
        return 1;
    };
    let before = scratch.used();
    let end = before as u64 + MAX_LABEL_WORDS as u64;
    if scratch.state.labels >= MAX_LABELS as u64 || end > scratch.state.labels_end {
        return 1;
    }
    let [key, key_bytes] = scratch.block.words(key_at as usize);
    let [value, value_bytes] = scratch.block.words(value_at as usize);
    let most = MAX_LABEL_BYTES as u64;
    let truncated = u32::from(key_bytes > most || value_bytes > most);
    let key_bytes = key_bytes.min(most);
    let value_bytes = value_bytes.min(most);
    let header = key_bytes | value_bytes << 16 | (truncated as u64) << 32;
    const { assert!(size_of::<Label>() == 8) };
    if scratch.push(header)
        && copy_label_text(scratch, key, key_bytes) != 0
        && copy_label_text(scratch, value, value_bytes) != 0
    {
        scratch.state.labels += 1;
    } else {
        scratch.rewind(before);
    }
    0
}

/// Appends so many bytes at `address`, at most [`MAX_LABEL_BYTES`]; zero where they
/// cannot be read or there is no room.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn copy_label_text(scratch: *mut Scratch, address: u64, bytes: u64) -> u64 {
    // SAFETY: null, or what `append_label` has.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else {
        return 0;
    };
    scratch.copy_text::<MAX_LABEL_BYTES>(address, bytes as usize) as u64
}
