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

/// A window that is over, and who waited through it.
pub(super) struct Over {
    /// The process.
    pub pid: u32,
    /// The window.
    pub watched: Watched,
    /// Goroutines that waited all the while, or still wait at the end of the last.
    pub through: Vec<Through>,
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
            looked: Vec::new(),
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
    /// Those that waited at the last look, and since when, as far as that was seen.
    looked: Vec<(Through, Option<u64>)>,
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
                    self.looked = self.look();
                }
                Order::Over(watched) => {
                    let through = self.through(&watched);
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
    fn look(&mut self) -> Vec<(Through, Option<u64>)> {
        let Some(program) = self.process.go_program(&self.memory) else {
            return Vec::new();
        };
        let mut dice = self.dice;
        let below = |bound: u64| {
            // xorshift64, by Marsaglia.
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            ((u128::from(dice) * u128::from(bound)) >> 64) as u64
        };
        let mut looked = Vec::new();
        let listing = program.for_some_goroutines(FEW, &self.offsets, below, |mut batch| {
            batch.goroutines.retain(|goroutine| self.waits(goroutine));
            self.add(&program, &batch, &mut looked);
        });
        self.dice = dice;
        // Without the list nothing is known of who waits.
        let Ok(listing) = listing else {
            return Vec::new();
        };
        for (through, _) in &mut looked {
            through.stands_for = listing.stands_for();
        }
        looked
    }

    /// Adds goroutines that wait.
    fn add(
        &self,
        program: &Program<'_>,
        batch: &GoroutineBatch<'_>,
        looked: &mut Vec<(Through, Option<u64>)>,
    ) {
        let since = batch.goroutines.iter().map(|g| self.since(g.address));
        let since: Vec<_> = since.collect();
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
            looked.push((through, since[index]));
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

    /// Those of the last look that waited through a window; of whole slots, those that
    /// still wait at the end of the last.
    fn through(&mut self, watched: &Watched) -> Vec<Through> {
        let is_whole = watched.closed.plan.whole;
        // Of one that another follows nothing is open that is not in the next.
        if is_whole && !watched.is_last {
            return Vec::new();
        }
        let from_ns = match is_whole {
            true => watched.since_ns,
            false => watched.closed.opened_ns,
        };
        let ended_ns = watched.closed.ended_ns;
        let mut through = Vec::new();
        for (mut of, since) in self.looked.drain(..) {
            let began_ns = since.map_or(from_ns, |since| since.max(from_ns));
            // What begins in a window is stood for by what ends in it.
            if (!is_whole && began_ns > from_ns) || began_ns > ended_ns {
                continue;
            }
            of.waited_ns = ended_ns.saturating_sub(began_ns);
            of.is_all = began_ns == from_ns;
            through.push(of);
        }
        through
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
