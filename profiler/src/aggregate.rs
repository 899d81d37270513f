//! Aggregate: stacks to a [`Window`] of distinct stacks with counts. Does no
//! I/O; memory grows with distinct stacks, not with samples.

use std::collections::HashMap;

use crate::process::ProcessIndex;

/// The stacks between two moments.
#[derive(Debug, Default)]
pub struct Window {
    stacks: HashMap<Box<[u64]>, StackIndex>,
    threads: HashMap<(u32, [u8; 16]), ThreadIndex>,
    counts: HashMap<Key, u64>,
    samples: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct StackIndex(u32);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ThreadIndex(u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    process: ProcessIndex,
    thread: Option<ThreadIndex>,
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
pub struct StackCount<'a> {
    /// Whose it is.
    pub process: ProcessIndex,
    /// On which thread, where threads are told apart.
    pub thread: Option<Thread>,
    /// Kernel addresses, leaf first.
    pub kernel: &'a [u64],
    /// User addresses, leaf first.
    pub user: &'a [u64],
    /// How often it was seen.
    pub count: u64,
}

impl Window {
    /// Adds one sample. `stack` holds `kernel_frames` kernel addresses and then
    /// user addresses, leaf first.
    pub fn add(
        &mut self,
        process: ProcessIndex,
        thread: Option<(u32, [u8; 16])>,
        stack: &[u64],
        kernel_frames: u16,
    ) {
        let stack = match self.stacks.get(stack) {
            Some(index) => *index,
            None => {
                let index = StackIndex(self.stacks.len() as u32);
                self.stacks.insert(stack.into(), index);
                index
            }
        };
        let thread = thread.map(|thread| {
            let next = ThreadIndex(self.threads.len() as u32);
            *self.threads.entry(thread).or_insert(next)
        });
        let key = Key {
            process,
            thread,
            stack,
            kernel_frames,
        };
        *self.counts.entry(key).or_default() += 1;
        self.samples += 1;
    }

    /// How many samples were added.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The distinct stacks, in a fixed order: by process, most seen first.
    pub fn stacks(&self) -> Vec<StackCount<'_>> {
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
        let mut stacks: Vec<StackCount<'_>> = self
            .counts
            .iter()
            .map(|(key, count)| {
                let stack = addresses[key.stack.0 as usize];
                let (kernel, user) =
                    stack.split_at(usize::from(key.kernel_frames).min(stack.len()));
                StackCount {
                    process: key.process,
                    thread: key.thread.map(|index| threads[index.0 as usize].clone()),
                    kernel,
                    user,
                    count: *count,
                }
            })
            .collect();
        stacks.sort_by(|a, b| {
            (
                a.process,
                b.count,
                a.kernel,
                a.user,
                a.thread.as_ref().map(|t| t.tid),
            )
                .cmp(&(
                    b.process,
                    a.count,
                    b.kernel,
                    b.user,
                    b.thread.as_ref().map(|t| t.tid),
                ))
        });
        stacks
    }
}

/// A thread's name out of its sixteen bytes.
fn name(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(16);
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: ProcessIndex = ProcessIndex(0);

    #[test]
    fn equal_stacks_are_counted_once() {
        let mut window = Window::default();
        window.add(P, None, &[1, 2, 3], 1);
        window.add(P, None, &[1, 2, 3], 1);
        window.add(P, None, &[2, 3], 0);
        let stacks = window.stacks();
        assert_eq!(window.samples(), 3);
        assert_eq!(stacks.len(), 2);
        assert_eq!(
            (stacks[0].kernel, stacks[0].user, stacks[0].count),
            (&[1][..], &[2, 3][..], 2)
        );
        assert_eq!(
            (stacks[1].kernel, stacks[1].user, stacks[1].count),
            (&[][..], &[2, 3][..], 1)
        );
    }

    #[test]
    fn tells_threads_processes_and_the_kernels_share_apart() {
        let mut window = Window::default();
        let mut comm = [0; 16];
        comm[..2].copy_from_slice(b"go");
        window.add(P, Some((7, comm)), &[1, 2], 0);
        window.add(P, Some((8, comm)), &[1, 2], 0);
        window.add(P, Some((8, comm)), &[1, 2], 1);
        window.add(ProcessIndex(1), Some((8, comm)), &[1, 2], 1);
        let stacks = window.stacks();
        assert_eq!(stacks.len(), 4);
        assert!(
            stacks
                .iter()
                .all(|s| s.thread.as_ref().is_some_and(|t| t.name == "go"))
        );
    }
}
