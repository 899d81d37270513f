//! Reads a goroutine's pprof labels out of a process, in both formats that Go
//! stores them in. Reads through what the caller gives it; whatever the memory
//! holds, the work and the result are bounded, and what is left out is counted.

use super::structs::LabelFormat;

/// Labels read of one goroutine.
pub const MAX_LABELS: usize = 64;
/// Bytes read of a key or a value.
pub const MAX_LABEL_BYTES: usize = 256;

/// Buckets of a map that are read, overflow buckets included: four times what
/// [`MAX_LABELS`] need if they spread evenly.
const MAX_BUCKETS: usize = 256;
/// Longer strings, and more labels, are not Go's: no program has the memory.
const MAX_LEN: u64 = 1 << 47;

/// The labels of one goroutine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// Key and value, sorted by key.
    pub pairs: Vec<(String, String)>,
    /// Keys and values that were cut to [`MAX_LABEL_BYTES`].
    pub cut: u32,
    /// Labels left out because there are more than [`MAX_LABELS`].
    pub excess: u64,
    /// Labels could not be read, or are not what Go writes: there may be more.
    pub damaged: bool,
}

/// Reads the labels at `pointer`, the value of `g.labels`; 0 means none. `read`
/// fills a buffer from an address of the process, or says that it cannot.
pub fn read_labels(
    format: LabelFormat,
    pointer: u64,
    read: impl FnMut(u64, &mut [u8]) -> bool,
) -> Labels {
    let mut reader = Reader {
        read,
        labels: Labels::default(),
    };
    if pointer != 0 {
        let done = match format {
            LabelFormat::Slice => reader.slice(pointer),
            LabelFormat::Map => reader.map(pointer),
        };
        reader.labels.damaged |= done.is_none();
    }
    reader.labels.pairs.sort();
    reader.labels
}

struct Reader<R> {
    read: R,
    labels: Labels,
}

impl<R: FnMut(u64, &mut [u8]) -> bool> Reader<R> {
    fn words<const N: usize>(&mut self, address: u64) -> Option<[u64; N]> {
        let mut words = [0; N];
        for (index, word) in words.iter_mut().enumerate() {
            let mut bytes = [0; 8];
            let address = address.checked_add(index as u64 * 8)?;
            if !(self.read)(address, &mut bytes) {
                return None;
            }
            *word = u64::from_le_bytes(bytes);
        }
        Some(words)
    }

    /// A `label.Set` (1.24 and later): `List []Label`, each two strings.
    fn slice(&mut self, pointer: u64) -> Option<()> {
        let [list, len, capacity] = self.words(pointer)?;
        if len > capacity || capacity > MAX_LEN {
            return None;
        }
        for index in 0..len.min(MAX_LABELS as u64) {
            let [key, key_len, value, value_len] = self.words(list.checked_add(index * 32)?)?;
            self.label((key, key_len), (value, value_len))?;
        }
        self.labels.excess = len.saturating_sub(MAX_LABELS as u64);
        Some(())
    }

    /// A `*map[string]string` (up to 1.23), and so a pointer to a pointer to an
    /// `hmap` (`runtime/map.go`).
    fn map(&mut self, pointer: u64) -> Option<()> {
        let [hmap] = self.words(pointer)?;
        if hmap == 0 {
            return Some(());
        }
        let [count, packed, buckets, old_buckets] = self.words(hmap)?;
        let (flags, log2_buckets) = (packed as u8, (packed >> 8) as u8);
        if count > MAX_LEN || log2_buckets > 40 {
            return None;
        }
        let mut buckets_left = MAX_BUCKETS;
        // While a map grows, what has not moved yet is in the old buckets.
        let same_size = flags & SAME_SIZE_GROW != 0;
        let old_log2 = log2_buckets.saturating_sub(u8::from(!same_size));
        for (array, log2) in [(buckets, log2_buckets), (old_buckets, old_log2)] {
            if array == 0 {
                continue;
            }
            for index in 0..1u64 << log2 {
                if self.found() >= count || buckets_left == 0 {
                    break;
                }
                let bucket = array.checked_add(index * BUCKET_BYTES)?;
                self.bucket_chain(bucket, &mut buckets_left)?;
            }
        }
        let missing = count.saturating_sub(self.found());
        if buckets_left == 0 {
            self.labels.excess += missing;
        } else if missing > 0 || self.found() > count {
            return None;
        }
        Some(())
    }

    /// Labels seen so far.
    fn found(&self) -> u64 {
        self.labels.pairs.len() as u64 + self.labels.excess
    }

    /// A bucket (`bmap`) and those that it overflows into: 8 bytes that say
    /// what each slot holds, 8 keys, 8 values, the next one.
    fn bucket_chain(&mut self, mut bucket: u64, buckets_left: &mut usize) -> Option<()> {
        while bucket != 0 {
            let Some(left) = buckets_left.checked_sub(1) else {
                return Some(());
            };
            *buckets_left = left;
            let [tops] = self.words(bucket)?;
            for (slot, top) in (0u64..).zip(tops.to_le_bytes()) {
                if top < MIN_TOP_HASH {
                    continue;
                }
                if self.labels.pairs.len() >= MAX_LABELS {
                    self.labels.excess += 1;
                    continue;
                }
                let key = bucket.checked_add(8 + slot * 16)?;
                let [key, key_len] = self.words(key)?;
                let [value, value_len] = self.words(bucket.checked_add(136 + slot * 16)?)?;
                self.label((key, key_len), (value, value_len))?;
            }
            [bucket] = self.words(bucket.checked_add(BUCKET_BYTES - 8)?)?;
        }
        Some(())
    }

    fn label(&mut self, key: (u64, u64), value: (u64, u64)) -> Option<()> {
        let pair = (self.text(key)?, self.text(value)?);
        self.labels.pairs.push(pair);
        Some(())
    }

    /// A string by address and length. What is not UTF-8 is replaced.
    fn text(&mut self, (address, len): (u64, u64)) -> Option<String> {
        if len > MAX_LEN {
            return None;
        }
        let mut buffer = [0; MAX_LABEL_BYTES];
        let kept = usize::try_from(len)
            .unwrap_or(usize::MAX)
            .min(MAX_LABEL_BYTES);
        let buffer = &mut buffer[..kept];
        if kept > 0 && !(self.read)(address, buffer) {
            return None;
        }
        let mut bytes: &[u8] = buffer;
        if len > MAX_LABEL_BYTES as u64 {
            self.labels.cut += 1;
            // Not within a character, where it is one.
            if let Err(error) = std::str::from_utf8(bytes)
                && error.error_len().is_none()
            {
                bytes = &bytes[..error.valid_up_to()];
            }
        }
        Some(String::from_utf8_lossy(bytes).into_owned())
    }
}

/// `runtime.sameSizeGrow`, a flag of maps.
const SAME_SIZE_GROW: u8 = 8;
/// `runtime.minTopHash`: below it a slot is empty, or its content has moved.
const MIN_TOP_HASH: u8 = 5;
/// Bytes of a bucket of a `map[string]string`.
const BUCKET_BYTES: u64 = 8 + 8 * 16 + 8 * 16 + 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory of a process: bytes from an address on.
    struct Fake(Vec<u8>);
    const BASE: u64 = 0x10_0000;

    impl Fake {
        fn new() -> Fake {
            Fake(Vec::new())
        }

        fn put(&mut self, bytes: &[u8]) -> u64 {
            let address = BASE + self.0.len() as u64;
            self.0.extend(bytes);
            self.0.resize(self.0.len().next_multiple_of(8), 0);
            address
        }

        fn put_words(&mut self, words: &[u64]) -> u64 {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.put(&bytes)
        }

        fn read(&self, format: LabelFormat, pointer: u64) -> Labels {
            let mut reads = 0;
            let labels = read_labels(format, pointer, |address, buffer| {
                reads += 1;
                let found = address
                    .checked_sub(BASE)
                    .and_then(|start| self.0.get(start as usize..))
                    .and_then(|rest| rest.get(..buffer.len()));
                found.is_some_and(|bytes| {
                    buffer.copy_from_slice(bytes);
                    true
                })
            });
            assert!(reads < 10_000, "{reads} reads");
            labels
        }

        fn slice(&mut self, pairs: &[(&[u8], &[u8])]) -> u64 {
            let mut words = Vec::new();
            for (key, value) in pairs {
                words.extend([self.put(key), key.len() as u64]);
                words.extend([self.put(value), value.len() as u64]);
            }
            let list = self.put_words(&words);
            let len = pairs.len() as u64;
            self.put_words(&[list, len, len])
        }

        fn bucket(&mut self, tops: [u8; 8], pairs: [(&str, &str); 8], next: u64) -> u64 {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (key, value) in pairs {
                keys.extend([self.put(key.as_bytes()), key.len() as u64]);
                values.extend([self.put(value.as_bytes()), value.len() as u64]);
            }
            let words = [vec![u64::from_le_bytes(tops)], keys, values, vec![next]];
            self.put_words(&words.concat())
        }
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn no_labels_are_none() {
        for format in [LabelFormat::Map, LabelFormat::Slice] {
            assert_eq!(Fake::new().read(format, 0), Labels::default());
        }
        let mut memory = Fake::new();
        let nil_map = memory.put_words(&[0]);
        assert_eq!(memory.read(LabelFormat::Map, nil_map), Labels::default());
    }

    #[test]
    fn slices_are_read() {
        let mut memory = Fake::new();
        let at = memory.slice(&[(b"a", b"1"), (b"b", b""), (b"", b"2")]);
        let labels = memory.read(LabelFormat::Slice, at);
        assert_eq!(labels.pairs, [pair("", "2"), pair("a", "1"), pair("b", "")]);
        assert_eq!((labels.cut, labels.excess, labels.damaged), (0, 0, false));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let mut memory = Fake::new();
        let value = format!("{}é", "v".repeat(255));
        let at = memory.slice(&[(&[b'k'; 256], value.as_bytes())]);
        let labels = memory.read(LabelFormat::Slice, at);
        assert_eq!(labels.pairs, [pair(&"k".repeat(256), &"v".repeat(255))]);
        assert_eq!(labels.cut, 1);
    }

    #[test]
    fn labels_past_the_limit_are_counted() {
        let mut memory = Fake::new();
        let pairs: Vec<(&[u8], &[u8])> = vec![(b"k", b"v"); MAX_LABELS + 3];
        let at = memory.slice(&pairs);
        let labels = memory.read(LabelFormat::Slice, at);
        assert_eq!((labels.pairs.len(), labels.excess), (MAX_LABELS, 3));
    }

    #[test]
    fn maps_are_read_with_overflow_and_while_they_grow() {
        let mut memory = Fake::new();
        let none = ("", "");
        let overflow = memory.bucket([9, 0, 0, 0, 0, 0, 0, 0], [("c", "3"); 8], 0);
        let two = [("a", "1"), none, ("b", "2"), none, none, none, none, none];
        let first = memory.bucket([5, 1, 200, 0, 0, 0, 0, 0], two, overflow);
        memory.bucket([0; 8], [none; 8], 0);
        // Has not moved; then one that has.
        let old = memory.bucket([77, 0, 0, 0, 0, 0, 0, 0], [("d", "4"); 8], 0);
        memory.bucket([2, 3, 4, 2, 3, 4, 2, 3], [("moved", "x"); 8], 0);
        let hmap = memory.put_words(&[4, 1 << 8, first, old]);
        let at = memory.put_words(&[hmap]);
        let labels = memory.read(LabelFormat::Map, at);
        let expected = [
            pair("a", "1"),
            pair("b", "2"),
            pair("c", "3"),
            pair("d", "4"),
        ];
        assert_eq!(labels.pairs, expected);
        assert!(!labels.damaged);
    }

    #[test]
    fn damage_is_told() {
        let mut memory = Fake::new();
        let word = memory.put_words(&[u64::MAX; 4]);
        let hmap = memory.put_words(&[3, 0, 0, 0]);
        let wrong_count = memory.put_words(&[hmap]);
        for (format, at) in [
            (LabelFormat::Slice, word),
            (LabelFormat::Map, word),
            (LabelFormat::Slice, u64::MAX),
            (LabelFormat::Map, 8),
            (LabelFormat::Map, wrong_count),
        ] {
            let labels = memory.read(format, at);
            assert!(labels.damaged && labels.pairs.is_empty(), "{at:x}");
        }
        let mut memory = Fake::new();
        let list = memory.put_words(&[BASE, 1, BASE, u64::MAX]);
        let at = memory.put_words(&[list, 1, 1]);
        assert!(memory.read(LabelFormat::Slice, at).damaged);
    }

    #[test]
    fn endless_memory_is_left() {
        // Every word leads back here: chains of buckets never end.
        let endless = |address: u64, reads: &mut u32| {
            *reads += 1;
            address
        };
        for (format, fill) in [
            (LabelFormat::Slice, 0x20u64),
            (LabelFormat::Map, 0x0505_0505_0505_0505),
            (LabelFormat::Map, 0x20),
        ] {
            let mut reads = 0;
            let labels = read_labels(format, 0x20, |address, buffer| {
                endless(address, &mut reads);
                for chunk in buffer.chunks_mut(8) {
                    chunk.copy_from_slice(&fill.to_le_bytes()[..chunk.len()]);
                }
                true
            });
            assert!(labels.pairs.len() <= MAX_LABELS);
            assert!(reads < 10_000, "{reads} reads");
        }
    }
}
