//! The pprof labels of a goroutine, in both forms that Go has kept them in.
//! Read when the sample is taken: the collector may reuse their memory after.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use profiler_ebpf::wire::{
    Label, MAX_LABEL_BYTES, MAX_LABEL_WORDS, MAX_LABELS, MAX_LABELS_WORDS, labels,
};

use super::{
    scratch::Scratch,
    stack::{read_byte, read_word},
};

/// Go's maps up to 1.23 (`runtime/map.go`): a bucket holds eight tags, eight
/// keys, eight values and a pointer to the next.
mod gomap {
    pub const SLOTS: u64 = 8;
    pub const STRING_BYTES: u64 = 16;
    pub const KEYS: u64 = SLOTS;
    pub const VALUES: u64 = KEYS + SLOTS * STRING_BYTES;
    pub const OVERFLOW: u64 = VALUES + SLOTS * STRING_BYTES;
    pub const BUCKET_BYTES: u64 = OVERFLOW + 8;
    /// Tags below this are of empty or evacuated slots.
    pub const MIN_TAG: u8 = 5;
    /// Most buckets looked at, of the map and of what it grew from, each with
    /// one that it overflows to.
    pub const MAX_BUCKETS: u64 = 8;
    pub const FLAGS: u64 = 8;
    /// The map grows into as many buckets as it had.
    pub const SAME_SIZE: u8 = 8;
    pub const LOG2_BUCKETS: u64 = 9;
    pub const BUCKETS: u64 = 16;
    pub const OLD_BUCKETS: u64 = 24;
}

/// What the steps over labels share.
struct Labels {
    scratch: *mut Scratch,
    /// Of the pairs, or of the buckets.
    array: u64,
    /// Of the buckets that a growing map still has; else 0.
    old_array: u64,
    buckets: u64,
    old_buckets: u64,
    taken: u64,
    words: u64,
}

/// Appends the labels at `set` (the value of `g.labels`).
#[inline(always)]
pub fn take(scratch: &mut Scratch, form: u8, set: u64) {
    if set == 0 || form == labels::UNKNOWN {
        return;
    }
    let before = scratch.used();
    let mut state = Labels {
        scratch,
        array: 0,
        old_array: 0,
        buckets: 0,
        old_buckets: 0,
        taken: 0,
        words: before as u64 + MAX_LABELS_WORDS as u64,
    };
    let wanted = if form == labels::SLICE {
        slice(&mut state, set)
    } else {
        map(&mut state, set)
    };
    let missed = wanted.saturating_sub(state.taken).min(255);
    scratch.sample.labels = state.taken as u8;
    scratch.sample.labels_missed = missed as u8;
    scratch.sample.labels_words = (scratch.used() - before) as u16;
}

/// Go 1.24 and later: a pointer to a slice of pairs of strings.
#[inline(always)]
fn slice(state: &mut Labels, set: u64) -> u64 {
    state.array = read_word(set);
    let count = read_word(set.wrapping_add(8));
    let steps = if count < MAX_LABELS as u64 {
        count
    } else {
        MAX_LABELS as u64
    };
    let callback: extern "C" fn(u64, *mut Labels) -> i64 = slice_step;
    run(steps as u32, callback, state);
    count
}

extern "C" fn slice_step(index: u64, state: *mut Labels) -> i64 {
    // SAFETY: the loop passes the context that it was given.
    let state = unsafe { &mut *state };
    let pair = state.array.wrapping_add((index & 0xff) * 32);
    append(state, pair, pair.wrapping_add(16))
}

/// Up to Go 1.23: a pointer to a map of strings.
#[inline(always)]
fn map(state: &mut Labels, set: u64) -> u64 {
    let map = read_word(set);
    let count = read_word(map);
    let log2 = read_byte(map.wrapping_add(gomap::LOG2_BUCKETS));
    state.array = read_word(map.wrapping_add(gomap::BUCKETS));
    state.old_array = read_word(map.wrapping_add(gomap::OLD_BUCKETS));
    state.buckets = 1 << (log2 & 7).min(3);
    let same_size = read_byte(map.wrapping_add(gomap::FLAGS)) & gomap::SAME_SIZE != 0;
    state.old_buckets = if same_size {
        state.buckets
    } else {
        state.buckets / 2
    };
    let callback: extern "C" fn(u64, *mut Labels) -> i64 = map_step;
    let slots = 4 * gomap::MAX_BUCKETS * gomap::SLOTS;
    run(slots as u32, callback, state);
    count
}

/// One slot: first those of the map, then those it grew from; of each bucket
/// its own and those of the bucket that it overflows to.
extern "C" fn map_step(index: u64, state: *mut Labels) -> i64 {
    // SAFETY: the loop passes the context that it was given.
    let state = unsafe { &mut *state };
    let slot = index & (gomap::SLOTS - 1);
    let overflows = (index / gomap::SLOTS) & 1 != 0;
    let bucket = (index / gomap::SLOTS / 2) & (2 * gomap::MAX_BUCKETS - 1);
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
    let mut bucket = array.wrapping_add(bucket * gomap::BUCKET_BYTES);
    if overflows {
        bucket = read_word(bucket.wrapping_add(gomap::OVERFLOW));
        if bucket == 0 {
            return 0;
        }
    }
    if read_byte(bucket.wrapping_add(slot)) < gomap::MIN_TAG {
        return 0;
    }
    let at = slot * gomap::STRING_BYTES;
    append(
        state,
        bucket.wrapping_add(gomap::KEYS + at),
        bucket.wrapping_add(gomap::VALUES + at),
    )
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

/// Appends the label whose key and value are the Go strings at these addresses;
/// not zero when there is no more room.
#[inline(always)]
fn append(state: &mut Labels, key: u64, value: u64) -> i64 {
    // SAFETY: a slot of this CPU that outlives the loop.
    let scratch = unsafe { &mut *state.scratch };
    let before = scratch.used();
    if state.taken >= MAX_LABELS as u64 || before as u64 + MAX_LABEL_WORDS as u64 > state.words {
        return 1;
    }
    let (key, key_bytes) = (read_word(key), read_word(key.wrapping_add(8)));
    let (value, value_bytes) = (read_word(value), read_word(value.wrapping_add(8)));
    let most = MAX_LABEL_BYTES as u64;
    let truncated = u32::from(key_bytes > most || value_bytes > most);
    let key_bytes = key_bytes.min(most) as usize;
    let value_bytes = value_bytes.min(most) as usize;
    let header = key_bytes as u64 | (value_bytes as u64) << 16 | (truncated as u64) << 32;
    const { assert!(size_of::<Label>() == 8) };
    if scratch.push(header)
        && scratch.copy_text::<MAX_LABEL_BYTES>(key, key_bytes)
        && scratch.copy_text::<MAX_LABEL_BYTES>(value, value_bytes)
    {
        state.taken += 1;
    } else {
        scratch.rewind(before);
    }
    0
}
