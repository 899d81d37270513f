//! Goroutines that wait through a whole window: the probes see neither their beginning
//! nor their end. Some are looked at in the program's memory meanwhile, on a thread for
//! each process: what waits then, and of which no probe sees anything, waited all the time.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context;
use profiler_ebpf::wire::WaitLayout;

use crate::{
    gobinary::{GoroutineStatus, StructOffsets},
    gomemory::{Few, Goroutine, GoroutineBatch, Live, Program, StackRead},
    probe::{OpenWaits, Watched, Watcher, hurry, monotonic_ns},
    process::Process,
    symbolize::Labels,
    unwind::unwind_parked,
};

/// Goroutines that are looked at in each window.
const FEW: Few = Few {
    alive: 512,
    places: 512,
};
/// Bytes that are read of a stack: most that wait have no more.
const STACK_BYTES: usize = 4096;

/// How long the end of watching waits for a look.
const LONGEST_LOOK: Duration = Duration::from_millis(500);
/// A look may end this long after its window. What begins to wait in between, and was not
/// seen to end a wait in the window, is taken for what waited through.
const LATE_NS: u64 = 500_000;

/// A window that is over, and who waited through it.
pub(super) struct Over {
    /// The process.
    pub pid: u32,
    /// The window.
    pub watched: Watched,
    /// Goroutines that waited all the while, or still wait at the end of the last.
    pub through: Result<Vec<Through>, NotSeen>,
}

/// Why nobody knows who waited through a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotSeen {
    /// They were looked at when it was long over.
    Late,
    /// The process's goroutines could not be read.
    Unreadable,
}

/// A goroutine that waited all the while.
pub(super) struct Through {
    /// Its id.
    pub goid: u64,
    /// What it waits for.
    pub reason: u8,
    /// Its stack, leaf first.
    pub stack: Vec<u64>,
    /// Its labels, by key.
    pub labels: Labels,
    /// How long it has waited in the window, in nanoseconds.
    pub waited_ns: u64,
    /// Whether that is all of it: nobody saw it begin.
    pub is_all: bool,
    /// How many goroutines it stands for.
    pub stands_for: f64,
}

/// Looks at a process's goroutines, and hands on what windows came to.
pub(super) struct Parked {
    /// None once there is nothing more to do.
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told.
enum Order {
    /// Look when this time is there, on the monotonic clock.
    Look(u64),
    /// Look now, and say so.
    LookNow(Sender<()>),
    /// The window is over.
    Over(Box<Watched>),
}

impl Parked {
    /// Of a process that is about to be watched.
    ///
    /// # Errors
    /// Its memory cannot be read, or no thread be started.
    pub(super) fn new(
        process: &Arc<Process>,
        offsets: StructOffsets,
        layout: WaitLayout,
        waits: Arc<Mutex<OpenWaits>>,
        sender: Sender<Over>,
    ) -> anyhow::Result<Self> {
        let looker = Looker {
            memory: Live::open(process.pid)?,
            process: Arc::clone(process),
            offsets,
            layout,
            waits,
            dice: monotonic_ns() | 1,
            looked: None,
        };
        let (orders, received) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("parked".to_owned())
            .stack_size(512 << 10)
            .spawn(move || looker.run(&received, &sender))
            .context("cannot start a thread for goroutines that wait")?;
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // The thread is there until this is gone.
            let _ = orders.send(order);
        }
    }
}

impl Watcher for Parked {
    fn look(&mut self, opens_ns: u64) {
        self.order(Order::Look(opens_ns));
    }

    fn look_now(&mut self) {
        let (done, is_done) = mpsc::channel();
        self.order(Order::LookNow(done));
        // One that takes longer is seen to be late.
        let _ = is_done.recv_timeout(LONGEST_LOOK);
    }

    fn over(&mut self, watched: &Watched) {
        self.order(Order::Over(Box::new(*watched)));
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // What it was told is handed on by then. A panic was printed.
            let _ = thread.join();
        }
    }
}

/// At work, on the thread.
struct Looker {
    process: Arc<Process>,
    memory: Live,
    offsets: StructOffsets,
    layout: WaitLayout,
    waits: Arc<Mutex<OpenWaits>>,
    dice: u64,
    /// What the last look saw; none where nobody asked for it.
    looked: Option<Result<Looked, NotSeen>>,
}

/// What a look saw.
struct Looked {
    /// Those that waited, and since when, as far as the probes had seen.
    waiting: Vec<(Through, Option<u64>)>,
    /// When that was known, on the monotonic clock.
    time_ns: u64,
}

impl Looker {
    fn run(mut self, orders: &Receiver<Order>, sender: &Sender<Over>) {
        // A look that comes late sees what began when the window was over.
        hurry();
        for order in orders {
            match order {
                Order::Look(opens_ns) => {
                    let left_ns = opens_ns.saturating_sub(monotonic_ns());
                    thread::sleep(Duration::from_nanos(left_ns));
                    self.looked = Some(self.look());
                }
                Order::LookNow(done) => {
                    self.looked = Some(self.look());
                    // It fails where nobody waits any more.
                    let _ = done.send(());
                }
                Order::Over(watched) => {
                    // Where probes stay on nobody looked: what is open is in the next.
                    let looked = self.looked.take();
                    let through = match looked {
                        Some(looked) => looked.and_then(|looked| looked.through(&watched)),
                        None => Ok(Vec::new()),
                    };
                    // It fails where the session is over.
                    let _ = sender.send(Over {
                        pid: self.process.pid,
                        watched: *watched,
                        through,
                    });
                }
            }
        }
    }

    /// Who waits now.
    fn look(&mut self) -> Result<Looked, NotSeen> {
        let program = self.process.go_program(&self.memory);
        let program = program.ok_or(NotSeen::Unreadable)?;
        let mut dice = self.dice;
        let below = |bound: u64| {
            // xorshift64, by Marsaglia.
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            ((u128::from(dice) * u128::from(bound)) >> 64) as u64
        };
        let mut looked = Looked {
            waiting: Vec::new(),
            time_ns: monotonic_ns(),
        };
        let listing = program.for_some_goroutines(FEW, &self.offsets, below, |mut batch| {
            batch.goroutines.retain(|goroutine| self.waits(goroutine));
            self.add(&program, &batch, &mut looked);
        });
        self.dice = dice;
        let listing = listing.map_err(|_| NotSeen::Unreadable)?;
        for (through, _) in &mut looked.waiting {
            through.stands_for = listing.stands_for();
        }
        Ok(looked)
    }

    /// Adds goroutines that wait.
    fn add(&self, program: &Program<'_>, batch: &GoroutineBatch<'_>, looked: &mut Looked) {
        let since = batch.goroutines.iter().map(|g| self.since(g.address));
        let since: Vec<_> = since.collect();
        looked.time_ns = monotonic_ns();
        let stacks = batch.stacks(&self.memory, STACK_BYTES);
        let labels = self.labels(program, batch);
        let mut frames = Vec::new();
        for (index, goroutine) in batch.goroutines.iter().enumerate() {
            let is_read = matches!(stacks.outcome(index), StackRead::Read { .. });
            let Some(registers) = goroutine.saved().filter(|_| is_read) else {
                continue;
            };
            let word = |address| stacks.word(index, address);
            unwind_parked(registers, &self.process, word, &mut frames);
            let through = Through {
                goid: goroutine.goid,
                reason: goroutine.wait_reason,
                stack: frames.clone(),
                labels: labels(goroutine.labels),
                waited_ns: 0,
                is_all: true,
                stands_for: 1.0,
            };
            looked.waiting.push((through, since[index]));
        }
    }

    /// Whether it waits for something that is wanted, or did and has not gone on yet.
    fn waits(&self, goroutine: &Goroutine) -> bool {
        let is_parked = match goroutine.status {
            GoroutineStatus::Waiting => true,
            GoroutineStatus::Runnable => self.layout.park.holds(goroutine.registers.pc),
            _ => false,
        };
        is_parked && self.layout.wants(goroutine.wait_reason.into())
    }

    fn since(&self, g: u64) -> Option<u64> {
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.since(self.process.pid, g)
    }

    fn labels(
        &self,
        program: &Program<'_>,
        batch: &GoroutineBatch<'_>,
    ) -> impl Fn(u64) -> Labels + use<> {
        let pointers = batch.goroutines.iter().map(|goroutine| goroutine.labels);
        let found = self
            .offsets
            .labels
            .map(|format| program.labels(format, pointers.filter(|at| *at != 0)));
        move |at| {
            let labels = found.as_ref().and_then(|found| found.get(&at));
            let mut pairs = labels.map_or_else(Labels::new, |labels| labels.pairs.clone());
            pairs.sort_unstable();
            pairs
        }
    }
}

impl Looked {
    /// Those that waited through a window; of whole slots, those that still wait at the
    /// end of the last.
    fn through(self, watched: &Watched) -> Result<Vec<Through>, NotSeen> {
        let is_whole = watched.closed.plan.whole;
        let from_ns = match is_whole {
            true => watched.since_ns,
            false => watched.closed.opened_ns,
        };
        let ended_ns = watched.closed.ended_ns;
        if self.time_ns > ended_ns.saturating_add(LATE_NS) {
            return Err(NotSeen::Late);
        }
        let mut through = Vec::new();
        for (mut of, since) in self.waiting {
            let began_ns = since.map_or(from_ns, |since| since.max(from_ns));
            // What begins in a window is stood for by what ends in it.
            if (!is_whole && began_ns > from_ns) || began_ns > ended_ns {
                continue;
            }
            of.waited_ns = ended_ns.saturating_sub(began_ns);
            of.is_all = began_ns == from_ns;
            through.push(of);
        }
        Ok(through)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Closed, Plan, Weight};

    const MS: u64 = 1_000_000;

    /// A window of 10 ms from 100 ms on, or the last of whole slots since 40 ms.
    fn window(is_whole: bool) -> Watched {
        let plan = Plan {
            number: 1,
            slot_begins_ns: 0,
            slot_ns: 250 * MS,
            opens_ns: 100 * MS,
            length_ns: 10 * MS,
            spend_ns: MS,
            whole: is_whole,
        };
        Watched {
            closed: Closed {
                plan,
                opened_ns: 100 * MS,
                ended_ns: 110 * MS,
                charged_ns: 0,
                outside_ns: 0,
                switched: false,
                spent: false,
            },
            weight: Weight {
                slot_ns: 0,
                watched_ns: 0,
                own_ns: 0.0,
                own_since_ns: 0.0,
                since_ns: 0,
            },
            share: Default::default(),
            since_ns: 40 * MS,
            is_last: true,
            attach_ns: 0,
            detach_ns: 0,
        }
    }

    /// What a look at such a time comes to, of goroutines that have waited since then.
    fn waited_ms(is_whole: bool, time_ns: u64, since: &[Option<u64>]) -> Result<Vec<u64>, NotSeen> {
        let waiting = since.iter().enumerate().map(|(goid, since)| {
            let through = Through {
                goid: goid as u64,
                reason: 0,
                stack: Vec::new(),
                labels: Labels::new(),
                waited_ns: 0,
                is_all: false,
                stands_for: 1.0,
            };
            (through, *since)
        });
        let looked = Looked {
            waiting: waiting.collect(),
            time_ns,
        };
        let through = looked.through(&window(is_whole))?;
        Ok(through.iter().map(|of| of.waited_ns / MS).collect())
    }

    #[test]
    fn what_began_before_a_window_and_is_not_over_waited_through_it() {
        let since = [None, Some(90 * MS), Some(104 * MS), Some(111 * MS)];
        assert_eq!(waited_ms(false, 105 * MS, &since), Ok(vec![10, 10]));
    }

    #[test]
    fn at_the_end_of_whole_slots_all_counts_that_is_open() {
        let since = [None, Some(90 * MS), Some(104 * MS), Some(111 * MS)];
        assert_eq!(waited_ms(true, 109 * MS, &since), Ok(vec![70, 20, 6]));
    }

    #[test]
    fn a_look_that_came_too_late_says_nothing() {
        for is_whole in [false, true] {
            let just = waited_ms(is_whole, 110 * MS + LATE_NS, &[None]);
            assert!(just.is_ok_and(|waited| waited.len() == 1));
            let late = waited_ms(is_whole, 111 * MS, &[None]);
            assert_eq!(late, Err(NotSeen::Late));
        }
    }
}
