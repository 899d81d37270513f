//! Aggregate: stacks to a [`Window`] of distinct stacks with values. Does no
//! I/O; memory grows with distinct stacks, not with samples.

mod distinct;

// Fast over the long keys that stacks are. Its seeds are random, so that a target
// cannot choose stacks that collide.
use foldhash::HashMap;

use crate::process::ProcessIndex;
use distinct::Distinct;

/// The stacks between two moments.
#[derive(Debug, Default)]
pub struct Window {
    stacks: HashMap<Box<[u64]>, StackIndex>,
    threads: HashMap<(u32, [u8; 16]), ThreadIndex>,
    labels: HashMap<Labels, LabelsIndex>,
    /// See [`Window::word`].
    words: Vec<String>,
    values: HashMap<Key, Values>,
    samples: u64,
    /// Addresses, and those of each process: the ones take memory for their names
    /// when the window is written, the others for being looked up.
    addresses: Distinct,
    places: Distinct,
    /// Bytes of the stacks, threads and labels, about.
    bytes: usize,
}

/// About what a key on the heap costs beside its own bytes: its place in a map,
/// which has room for twice as many on average while it grows, and what the
/// allocator takes.
const ENTRY_BYTES: usize = 80;

/// About what the names and lines of an address take while it is written.
const ADDRESS_BYTES: usize = 450;
/// About what it takes to look an address of a process up.
const PLACE_BYTES: usize = 64;

/// What stands for the first word in place of an address: neither user code nor the
/// kernel's is there.
const WORDS: u64 = 1 << 62;

/// Most values of a sample.
pub const MAX_VALUES: usize = 4;

/// The values of a sample, a count first. What each means depends on what was
/// sampled; the last ones may mean nothing, and are 0.
pub type Values = [i64; MAX_VALUES];

/// The pprof labels of a goroutine: keys and values, by key.
pub type Labels = Vec<(String, String)>;

/// Whose a sample is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// The process.
    pub process: ProcessIndex,
    /// The thread's id and name, where threads are told apart.
    pub thread: Option<(u32, [u8; 16])>,
    /// The goroutine, where goroutines are told apart.
    pub goid: Option<u64>,
    /// The goroutine's labels.
    pub labels: Labels,
    /// The size of a block of memory, in bytes, where memory is what is counted.
    pub block_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct StackIndex(u32);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ThreadIndex(u32);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct LabelsIndex(u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    process: ProcessIndex,
    thread: Option<ThreadIndex>,
    goid: Option<u64>,
    labels: Option<LabelsIndex>,
    block_bytes: Option<u64>,
    stack: StackIndex,
    /// How many of the stack's addresses, from the leaf, are the kernel's.
    kernel_frames: u16,
}

/// A thread of a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Thread {
    /// Kernel thread id, in the pid namespace goprof runs in.
    pub tid: u32,
    /// Its name, as of the sample.
    pub name: String,
}

/// One distinct stack of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackValues<'a> {
    /// Whose it is.
    pub process: ProcessIndex,
    /// On which thread, where threads are told apart.
    pub thread: Option<Thread>,
    /// In which goroutine, where goroutines are told apart.
    pub goid: Option<u64>,
    /// Its labels, by key.
    pub labels: &'a [(String, String)],
    /// Kernel addresses, leaf first.
    pub kernel: &'a [u64],
    /// User addresses, leaf first.
    pub user: &'a [u64],
    /// See [`Owner::block_bytes`].
    pub block_bytes: Option<u64>,
    /// The sums of its values.
    pub values: Values,
}

impl Window {
    /// Adds one sample. `stack` holds `kernel_frames` kernel addresses and then
    /// user addresses, leaf first.
    pub fn add(&mut self, owner: Owner, stack: &[u64], kernel_frames: u16) {
        self.add_values(owner, stack, kernel_frames, [1, 0, 0, 0]);
    }

    /// The same with other values than a count of 1.
    pub fn add_values(&mut self, owner: Owner, stack: &[u64], kernel_frames: u16, added: Values) {
        let addresses = stack;
        let stack = match self.stacks.get(stack) {
            Some(index) => *index,
            None => {
                let index = StackIndex(self.stacks.len() as u32);
                self.stacks.insert(stack.into(), index);
                stack.iter().for_each(|address| self.addresses.add(address));
                self.bytes += size_of_val(stack) + ENTRY_BYTES;
                index
            }
        };
        let thread = owner.thread.map(|thread| {
            let next = ThreadIndex(self.threads.len() as u32);
            let index = *self.threads.entry(thread).or_insert(next);
            self.bytes += if index == next { ENTRY_BYTES } else { 0 };
            index
        });
        let labels = (!owner.labels.is_empty()).then(|| {
            let next = LabelsIndex(self.labels.len() as u32);
            let size = |(key, value): &(String, String)| key.len() + value.len() + ENTRY_BYTES;
            if !self.labels.contains_key(&owner.labels) {
                self.bytes += owner.labels.iter().map(size).sum::<usize>();
            }
            *self.labels.entry(owner.labels).or_insert(next)
        });
        let key = Key {
            process: owner.process,
            thread,
            goid: owner.goid,
            labels,
            block_bytes: owner.block_bytes,
            stack,
            kernel_frames,
        };
        let values = self.values.entry(key).or_insert_with(|| {
            for address in addresses {
                self.places.add((owner.process, address));
            }
            Values::default()
        });
        for (value, added) in values.iter_mut().zip(added) {
            *value = value.saturating_add(added);
        }
        self.samples = self.samples.saturating_add(added[0].unsigned_abs());
    }

    /// Adds all of another window, with its values changed by `change`.
    pub fn merge(&mut self, other: &Window, mut change: impl FnMut(Values) -> Values) {
        for of in other.stacks() {
            let mut stack = of.kernel.to_vec();
            stack.extend_from_slice(of.user);
            let owner = Owner {
                process: of.process,
                thread: of
                    .thread
                    .as_ref()
                    .map(|thread| (thread.tid, comm(&thread.name))),
                goid: of.goid,
                labels: of.labels.to_vec(),
                block_bytes: of.block_bytes,
            };
            let kernel_frames = u16::try_from(of.kernel.len()).unwrap_or(u16::MAX);
            self.add_values(owner, &stack, kernel_frames, change(of.values));
        }
    }

    /// What stands for a word, such as what a goroutine waits for, as the leaf of a user
    /// stack. There are few of them.
    pub fn word(&mut self, text: &str) -> u64 {
        let known = self.words.iter().position(|word| word == text);
        let index = known.unwrap_or_else(|| {
            self.words.push(text.to_owned());
            self.bytes += text.len() + ENTRY_BYTES;
            self.words.len() - 1
        });
        WORDS + index as u64
    }

    /// The words, in the order of what stands for them.
    pub fn words(&self) -> Words<'_> {
        Words(&self.words)
    }

    /// Takes out all samples of a process, and says how many they were.
    pub fn drop_process(&mut self, process: ProcessIndex) -> u64 {
        let mut dropped = 0;
        self.values.retain(|key, values| {
            let keep = key.process != process;
            dropped += if keep { 0 } else { values[0].unsigned_abs() };
            keep
        });
        self.samples = self.samples.saturating_sub(dropped);
        dropped
    }

    /// The processes it has samples of.
    pub fn processes(&self) -> Vec<ProcessIndex> {
        let mut processes: Vec<ProcessIndex> = self.values.keys().map(|key| key.process).collect();
        processes.sort_unstable();
        processes.dedup();
        processes
    }

    /// About how much memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes + self.values.len() * 2 * (size_of::<Key>() + size_of::<Values>())
    }

    /// About how much memory it takes while it is named and written, in bytes: as
    /// it is, as samples and as rows, and with its names.
    pub fn bytes_written(&self) -> usize {
        3 * self.bytes()
            + self.addresses.count() * ADDRESS_BYTES
            + self.places.count() * PLACE_BYTES
    }

    /// How many samples were added: the sum of their counts.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The distinct stacks, in a fixed order: by process, the highest count first.
    pub fn stacks(&self) -> Vec<StackValues<'_>> {
        let mut addresses: Vec<&[u64]> = vec![&[]; self.stacks.len()];
        for (stack, index) in &self.stacks {
            addresses[index.0 as usize] = stack;
        }
        let mut threads: Vec<Thread> = vec![
            Thread {
                tid: 0,
                name: String::new()
            };
            self.threads.len()
        ];
        for ((tid, comm), index) in &self.threads {
            threads[index.0 as usize] = Thread {
                tid: *tid,
                name: name(comm),
            };
        }
        let mut labels: Vec<&[(String, String)]> = vec![&[]; self.labels.len()];
        for (set, index) in &self.labels {
            labels[index.0 as usize] = set;
        }
        let mut stacks: Vec<StackValues<'_>> = self
            .values
            .iter()
            .map(|(key, values)| {
                let stack = addresses[key.stack.0 as usize];
                let (kernel, user) =
                    stack.split_at(usize::from(key.kernel_frames).min(stack.len()));
                StackValues {
                    process: key.process,
                    thread: key.thread.map(|index| threads[index.0 as usize].clone()),
                    goid: key.goid,
                    labels: key.labels.map_or(&[], |index| labels[index.0 as usize]),
                    kernel,
                    user,
                    block_bytes: key.block_bytes,
                    values: *values,
                }
            })
            .collect();
        stacks.sort_by(|a, b| {
            let by_count = a
                .process
                .cmp(&b.process)
                .then(b.values[0].cmp(&a.values[0]));
            by_count.then_with(|| a.identity().cmp(&b.identity()))
        });
        stacks
    }
}

/// The words of a window: see [`Window::word`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Words<'w>(&'w [String]);

impl<'w> Words<'w> {
    /// The word that an address stands for.
    pub fn of(self, address: u64) -> Option<&'w str> {
        let index = usize::try_from(address.checked_sub(WORDS)?).ok()?;
        self.0.get(index).map(String::as_str)
    }
}

impl StackValues<'_> {
    /// What tells it from the others.
    fn identity(&self) -> impl Ord + '_ {
        let tid = self.thread.as_ref().map(|thread| thread.tid);
        (
            self.kernel,
            self.user,
            tid,
            self.goid,
            self.labels,
            self.block_bytes,
        )
    }
}

/// A thread's name as its sixteen bytes.
fn comm(name: &str) -> [u8; 16] {
    let mut comm = [0; 16];
    for (to, from) in comm.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    comm
}

/// A thread's name out of its sixteen bytes.
fn name(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(16);
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(process: u32) -> Owner {
        Owner {
            process: ProcessIndex(process),
            ..Owner::default()
        }
    }

    #[test]
    fn equal_stacks_are_counted_once() {
        let mut window = Window::default();
        window.add(owner(0), &[1, 2, 3], 1);
        window.add(owner(0), &[1, 2, 3], 1);
        window.add(owner(0), &[2, 3], 0);
        let stacks = window.stacks();
        assert_eq!(window.samples(), 3);
        assert_eq!(stacks.len(), 2);
        let parts = |s: &StackValues<'_>| (s.kernel.to_vec(), s.user.to_vec(), s.values[0]);
        assert_eq!(parts(&stacks[0]), (vec![1], vec![2, 3], 2));
        assert_eq!(parts(&stacks[1]), (vec![], vec![2, 3], 1));
    }

    #[test]
    fn tells_threads_processes_and_the_kernels_share_apart() {
        let mut window = Window::default();
        let mut comm = [0; 16];
        comm[..2].copy_from_slice(b"go");
        let on = |process, tid| Owner {
            thread: Some((tid, comm)),
            ..owner(process)
        };
        window.add(on(0, 7), &[1, 2], 0);
        window.add(on(0, 8), &[1, 2], 0);
        window.add(on(0, 8), &[1, 2], 1);
        window.add(on(1, 8), &[1, 2], 1);
        let stacks = window.stacks();
        assert_eq!(stacks.len(), 4);
        let named = |s: &StackValues<'_>| s.thread.as_ref().is_some_and(|t| t.name == "go");
        assert!(stacks.iter().all(named));
    }

    #[test]
    fn values_are_added_up_and_block_sizes_told_apart() {
        let mut window = Window::default();
        let of = |size| Owner {
            block_bytes: Some(size),
            ..owner(0)
        };
        window.add_values(of(16), &[1], 0, [2, 32, 1, 16]);
        window.add_values(of(16), &[1], 0, [1, 16, -1, -16]);
        window.add_values(of(32), &[1], 0, [1, i64::MAX, 0, 0]);
        window.add_values(of(32), &[1], 0, [0, i64::MAX, 0, 0]);
        let stacks = window.stacks();
        let parts = |s: &StackValues<'_>| (s.block_bytes, s.values);
        assert_eq!(
            stacks.iter().map(parts).collect::<Vec<_>>(),
            [(Some(16), [3, 48, 0, 0]), (Some(32), [1, i64::MAX, 0, 0])]
        );
        assert_eq!(window.samples(), 4);
    }

    #[test]
    fn memory_grows_with_distinct_stacks_alone() {
        let mut window = Window::default();
        window.add(owner(0), &[1; 100], 0);
        let one = window.bytes();
        assert!(one > 800, "{one}");
        window.add(owner(0), &[1; 100], 0);
        assert_eq!(window.bytes(), one);
        window.add(owner(0), &[2; 100], 0);
        assert!(window.bytes() >= 2 * one);
    }

    #[test]
    fn names_take_memory_once_and_lookups_for_each_process() {
        let mut window = Window::default();
        let counted = |window: &Window| (window.addresses.count(), window.places.count());
        window.add(owner(0), &[1, 2, 3], 0);
        window.add(owner(0), &[2, 3], 0);
        assert_eq!(counted(&window), (3, 3));
        window.add(owner(1), &[1, 2, 3], 0);
        assert_eq!(counted(&window), (3, 6));
        window.add(owner(1), &[4], 0);
        assert_eq!(counted(&window), (4, 7));
        assert!(window.bytes_written() > 3 * window.bytes() + 4 * ADDRESS_BYTES);
    }

    #[test]
    fn a_process_can_be_taken_out() {
        let mut window = Window::default();
        window.add(owner(0), &[1], 0);
        window.add(owner(1), &[1], 0);
        window.add(owner(1), &[1], 0);
        assert_eq!(window.drop_process(ProcessIndex(1)), 2);
        assert_eq!(window.drop_process(ProcessIndex(1)), 0);
        assert_eq!((window.samples(), window.stacks().len()), (1, 1));
        assert_eq!(window.processes(), [ProcessIndex(0)]);
    }

    #[test]
    fn a_word_stands_in_a_stack_like_an_address() {
        let mut window = Window::default();
        let (wait, runs) = (window.word("[select]"), window.word("[running]"));
        assert_eq!(window.word("[select]"), wait);
        window.add(owner(0), &[wait, 1], 0);
        window.add(owner(0), &[runs, 1], 0);
        assert_eq!(window.stacks().len(), 2);
        let words = window.words();
        assert_eq!(
            (words.of(wait), words.of(runs)),
            (Some("[select]"), Some("[running]"))
        );
        assert_eq!((words.of(1), words.of(runs + 1)), (None, None));
        assert_eq!(words.of(u64::MAX), None);
    }

    #[test]
    fn tells_goroutines_and_labels_apart() {
        let mut window = Window::default();
        let labelled = |value: &str| Owner {
            labels: vec![("path".into(), value.into())],
            ..owner(0)
        };
        window.add(labelled("/a"), &[1], 0);
        window.add(labelled("/a"), &[1], 0);
        window.add(labelled("/b"), &[1], 0);
        window.add(
            Owner {
                goid: Some(9),
                ..owner(0)
            },
            &[1],
            0,
        );
        let stacks = window.stacks();
        assert_eq!(stacks.len(), 3);
        assert_eq!(stacks[0].labels, [("path".to_owned(), "/a".to_owned())]);
        assert_eq!(stacks[0].values[0], 2);
        assert!(
            stacks
                .iter()
                .any(|s| s.goid == Some(9) && s.labels.is_empty())
        );
    }
}
