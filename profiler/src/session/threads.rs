//! The threads there are when a recording of time off the CPU begins, so that the
//! time of each counts from then, also of those that never run again.

use std::fs;

use profiler_ebpf::wire::{OFF_CPU_EVERY_NS, Thread};

use super::{
    monotonic_ns,
    recorder::{Recorder, Sampled},
    waits::Wait,
};
use crate::{
    aggregate::Owner,
    gomemory::{Live, Memory as _, Registers},
    process::ProcessIndex,
    unwind::{GAP, unwind_thread},
};

/// Most threads of a process looked at: as many as the kernel side has room for.
const MAX_THREADS: usize = 64 * 1024;

/// `TASK_INTERRUPTIBLE` (`include/linux/sched.h`): what it waits in the kernel says
/// in other ways, so that one state does for all that is not runnable.
const BLOCKED: u64 = 1;

/// What `/proc` says of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    comm: [u8; 16],
    is_runnable: bool,
    /// For how long it has been on a CPU.
    ran_ns: u64,
}

impl<T: Sampled> Recorder<T> {
    /// Begins a wait of each thread of the processes that are sampled, where the
    /// kernel side does not follow it yet. `add` tells the kernel side, and says
    /// whether that was so; None where that has no room.
    pub(super) fn follow_threads(&mut self, mut add: impl FnMut(u32, &Thread) -> Option<bool>) {
        let pids: Vec<u32> = self.table.pids().collect();
        for pid in pids {
            let Some(process) = self.table.current(pid) else {
                continue;
            };
            let memory = Live::open(pid).ok();
            let (tids, more) = thread_ids(pid);
            self.tally.threads_left_out += more;
            for tid in tids {
                let now_ns = monotonic_ns();
                let Some(seen) = look_at(pid, tid) else {
                    continue;
                };
                let stack = memory
                    .as_ref()
                    .and_then(|memory| self.stack_of(process, tid, memory));
                let thread = Thread {
                    left_ns: now_ns,
                    interval_ns: OFF_CPU_EVERY_NS,
                    last_ns: now_ns,
                    state: if seen.is_runnable { 0 } else { BLOCKED },
                    ran_ns: seen.ran_ns,
                    weight: 1,
                    pid,
                    ..Thread::default()
                };
                match add(tid, &thread) {
                    Some(true) => {}
                    Some(false) => continue,
                    None => {
                        self.tally.threads_left_out += 1;
                        continue;
                    }
                }
                let wait = Wait {
                    owner: Owner {
                        process,
                        thread: self.threads.then_some((tid, seen.comm)),
                        ..Owner::default()
                    },
                    stack: stack.unwrap_or_else(|| [GAP].into()),
                    kernel_frames: 0,
                    weight: 1,
                    is_runnable: seen.is_runnable,
                    began_ns: now_ns,
                    counted_ns: 0,
                    ran_ns: Some(seen.ran_ns),
                };
                self.off_cpu.begin(u64::from(tid), wait);
            }
        }
    }

    /// The user stack of a thread that is in the kernel and stays there while it is
    /// read.
    fn stack_of(&mut self, process: ProcessIndex, tid: u32, memory: &Live) -> Option<Box<[u64]>> {
        let registers = || {
            let path = format!("/proc/{}/task/{tid}/syscall", memory.pid());
            registers(&fs::read_to_string(path).ok()?)
        };
        let before = registers()?;
        let word = |address| memory.word(address);
        let program = self.table.get(process);
        unwind_thread(before, None, program, word, &mut self.frames);
        let is_still = registers() == Some(before);
        (is_still && !self.frames.is_empty()).then(|| self.frames.as_slice().into())
    }
}

/// The ids of a process's threads, and how many more there are than are looked at.
fn thread_ids(pid: u32) -> (Vec<u32>, u64) {
    let folder = fs::read_dir(format!("/proc/{pid}/task"));
    let names = folder.into_iter().flatten().flatten();
    let mut ids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let first = ids.by_ref().take(MAX_THREADS).collect();
    (first, ids.count() as u64)
}

fn look_at(pid: u32, tid: u32) -> Option<Seen> {
    // Read first: what it runs after is not taken for waiting.
    let ran_ns = ran_ns(pid, tid)?;
    let stat = fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    let (comm, state) = comm_and_state(&stat)?;
    Some(Seen {
        comm,
        is_runnable: state == b'R',
        ran_ns,
    })
}

/// For how long a thread has been on a CPU, in nanoseconds; None where it is gone.
pub(super) fn ran_ns(pid: u32, tid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// A thread's name and state out of its `stat` (proc_pid_stat(5)): the name is in
/// parentheses and may hold anything.
fn comm_and_state(stat: &[u8]) -> Option<([u8; 16], u8)> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let name = stat.get(open + 1..close)?;
    let mut comm = [0; 16];
    let length = name.len().min(comm.len() - 1);
    comm[..length].copy_from_slice(&name[..length]);
    Some((comm, *stat.get(close + 2)?))
}

/// The registers out of a thread's `syscall` (proc_pid_syscall(5)): the stack and the
/// instruction pointer are the last two; it says `running` where it runs.
fn registers(text: &str) -> Option<Registers> {
    let mut words = text.split_whitespace().rev();
    let mut hex = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let (pc, sp) = (hex()?, hex()?);
    (pc != 0).then_some(Registers { sp, pc, bp: None })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let (comm, state) = comm_and_state(b"12 (a) R (b) S 1 12").unwrap();
        assert_eq!((&comm[..7], state), (&b"a) R (b"[..], b'S'));
        assert_eq!(comm_and_state(b"12 (a)"), None);
        assert_eq!(comm_and_state(b"12 )a( S"), None);
        let (comm, _) = comm_and_state(b"1 (0123456789abcdefgh) R 1").unwrap();
        assert_eq!(&comm, b"0123456789abcde\0");
    }

    #[test]
    fn registers_are_the_last_two_words() {
        let blocked = "202 0xc 0x80 0x0 0x0 0x0 0x0 0x7ffc10 0x46c7a3\n";
        let expected = Registers {
            sp: 0x7f_fc10,
            pc: 0x46_c7a3,
            bp: None,
        };
        assert_eq!(registers(blocked), Some(expected));
        assert_eq!(registers("-1 0x7ffc10 0x46c7a3\n"), Some(expected));
        assert_eq!(registers("running\n"), None);
        assert_eq!(registers("-1 0x0 0x0\n"), None);
    }

    #[test]
    fn this_thread_is_seen_running() {
        let pid = std::process::id();
        // SAFETY: has no arguments and cannot fail.
        let tid = unsafe { libc::gettid() }.unsigned_abs();
        assert!(thread_ids(pid).0.contains(&tid));
        let seen = look_at(pid, tid).unwrap();
        assert!(seen.is_runnable, "{seen:?}");
        // The kernel counts a thread that runs at its ticks.
        let deadline = Instant::now() + Duration::from_secs(10);
        while ran_ns(pid, tid).unwrap() <= seen.ran_ns {
            assert!(Instant::now() < deadline, "it has not run since: {seen:?}");
        }
        assert_eq!(look_at(pid, 0), None);
    }
}
