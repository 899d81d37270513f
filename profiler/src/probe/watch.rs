//! A thread for each process that is probed: it puts the probes on and takes them off
//! as the controller says. To put on and to take off wait for the kernel, some tens of
//! milliseconds, in which nothing else may have to stand still.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use profiler_ebpf::wire::{ProbeShare, ProbeWindow};

use super::{
    budget::{Closed, Controller, Plan},
    estimate::Weight,
    shares::Shares,
    uprobes::{Attached, ProbeSet},
};

/// A window that is over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Watched {
    /// What became of it.
    pub closed: Closed,
    /// What it counts for in estimates.
    pub weight: Weight,
    /// What its hits came to, those outside of it included.
    pub share: ProbeShare,
    /// From the order to put the probes on until they were on, in nanoseconds; 0
    /// where they had been on.
    pub attach_ns: u64,
    /// From the order to take them off until the kernel was done; 0 where they stay.
    pub detach_ns: u64,
}

/// Probes of a process, at work. Dropping it takes them off.
pub struct Watch {
    orders: Option<Sender<Spent>>,
    thread: Option<JoinHandle<Result<Controller>>>,
}

/// The share of a window is spent.
struct Spent {
    number: u64,
    time_ns: u64,
}

impl Watch {
    /// Begins to watch. `take` gets each window when it is over, on the thread that
    /// watches: it must not wait for long.
    ///
    /// # Errors
    /// A thread cannot be started, or the process's hits cannot be counted.
    pub fn start(
        set: ProbeSet,
        shares: Arc<Mutex<Shares>>,
        controller: Controller,
        take: impl FnMut(&Watched) + Send + 'static,
    ) -> Result<Self> {
        lock(&shares).insert(set.pid())?;
        let (orders, received) = mpsc::channel();
        let watching = Watching {
            set,
            shares,
            controller,
            received,
            take,
            attached: None,
            since_ns: 0,
            windows: 0,
        };
        let thread = thread::Builder::new()
            .name("probes".to_owned())
            .stack_size(256 << 10)
            .spawn(move || watching.run())
            .context("cannot start a thread for probes")?;
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// The kernel side tells that the share of a window is spent.
    pub fn spent(&self, number: u64, time_ns: u64) {
        if let Some(orders) = &self.orders {
            // It fails where the thread has ended, and then nothing is on.
            let _ = orders.send(Spent { number, time_ns });
        }
    }

    /// Begins to take the probes off, the last window with them.
    pub fn end(&mut self) {
        self.orders = None;
    }

    /// Waits until they are off. Why it ended is not asked.
    pub fn wait(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Takes the probes off, the last window with them, and waits for that.
    ///
    /// # Errors
    /// The probes could not be put on at some time: the process is gone, or the
    /// kernel refused.
    pub fn stop(mut self) -> Result<Controller> {
        self.orders = None;
        let thread = self
            .thread
            .take()
            .ok_or_else(|| anyhow!("stopped before"))?;
        thread
            .join()
            .map_err(|_| anyhow!("the thread for probes panicked"))?
    }

    /// Whether it ended by itself.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Why it ended is asked for by `stop`.
        self.wait();
    }
}

struct Watching<F> {
    set: ProbeSet,
    shares: Arc<Mutex<Shares>>,
    controller: Controller,
    received: Receiver<Spent>,
    take: F,
    attached: Option<Attached>,
    /// Since when they are on, on the monotonic clock.
    since_ns: u64,
    windows: u64,
}

/// A window at work.
struct Open {
    plan: Plan,
    opened_ns: u64,
    closes_ns: u64,
    before: ProbeShare,
    attach_ns: u64,
}

/// How a wait ended.
enum Wait {
    Time,
    Spent(u64),
    Stop,
}

impl<F: FnMut(&Watched)> Watching<F> {
    fn run(mut self) -> Result<Controller> {
        let result = self.watch();
        self.attached = None;
        lock(&self.shares).remove(self.set.pid())?;
        result.map(|()| self.controller)
    }

    fn watch(&mut self) -> Result<()> {
        let mut plan = self.controller.next(monotonic_ns());
        loop {
            if let Wait::Stop = self.wait_until(plan.opens_ns, 0) {
                return Ok(());
            }
            let open = self.open(plan)?;
            let wait = self.wait_until(open.closes_ns, plan.number);
            let (ended_ns, stop) = match wait {
                Wait::Time => (open.closes_ns, false),
                Wait::Spent(time_ns) => (time_ns, false),
                Wait::Stop => (self.close_now(&open)?, true),
            };
            let spent = matches!(wait, Wait::Spent(_));
            if spent || stop || !plan.whole {
                self.finish(&open, ended_ns, spent)?;
                if stop {
                    return Ok(());
                }
                plan = self.controller.next(monotonic_ns());
                continue;
            }
            // What it took is known already: the next window may follow at once.
            self.report(&open, ended_ns, false, 0)?;
            plan = self.controller.next(monotonic_ns());
            if !plan.whole {
                self.attached = None;
            }
        }
    }

    fn open(&mut self, plan: Plan) -> Result<Open> {
        let pid = self.set.pid();
        let before = lock(&self.shares).of(pid)?;
        let begun_ns = monotonic_ns();
        let attach_ns = if self.attached.is_none() {
            self.attached = Some(self.set.attach()?);
            monotonic_ns().saturating_sub(begun_ns)
        } else {
            0
        };
        let mut shares = lock(&self.shares);
        let opens_ns = monotonic_ns();
        if attach_ns > 0 {
            self.since_ns = opens_ns;
        }
        let closes_ns = if plan.whole {
            (plan.slot_begins_ns + plan.slot_ns).max(opens_ns)
        } else {
            opens_ns + plan.length_ns
        };
        let trap_ns = self.controller.costs().trap_ns;
        let window = ProbeWindow {
            number: plan.number,
            opens_ns,
            closes_ns,
            since_ns: self.since_ns,
            trap_ns,
            spent_at_ns: before.charge_ns(trap_ns).saturating_add(plan.spend_ns),
        };
        shares.open(pid, &window)?;
        Ok(Open {
            plan,
            // Not before the kernel side knew of it.
            opened_ns: monotonic_ns().min(closes_ns),
            closes_ns,
            before,
            attach_ns,
        })
    }

    fn close_now(&self, open: &Open) -> Result<u64> {
        lock(&self.shares).close(self.set.pid())?;
        Ok(monotonic_ns().min(open.closes_ns))
    }

    /// Takes the probes off after a window, and reports what it took until then.
    fn finish(&mut self, open: &Open, ended_ns: u64, spent: bool) -> Result<()> {
        let begun_ns = monotonic_ns();
        if let Some(attached) = self.attached.take() {
            attached.detach()?;
        }
        self.report(
            open,
            ended_ns,
            spent,
            monotonic_ns().saturating_sub(begun_ns),
        )
    }

    fn report(&mut self, open: &Open, ended_ns: u64, spent: bool, detach_ns: u64) -> Result<()> {
        let after = lock(&self.shares).of(self.set.pid())?;
        let share = difference(&after, &open.before);
        let trap_ns = self.controller.costs().trap_ns;
        let closed = Closed {
            plan: open.plan,
            opened_ns: open.opened_ns,
            ended_ns: ended_ns.max(open.opened_ns),
            charged_ns: share.charge_ns(trap_ns),
            outside_ns: share.refused.saturating_mul(trap_ns),
            switched: open.attach_ns > 0,
            spent,
        };
        self.controller.closed(&closed);
        let watched = Watched {
            closed,
            weight: Weight {
                index: self.windows,
                slot_ns: open.plan.slot_ns,
                watched_ns: closed.watched_ns(),
            },
            share,
            attach_ns: open.attach_ns,
            detach_ns,
        };
        self.windows += 1;
        (self.take)(&watched);
        Ok(())
    }

    /// Waits for a time, or for the share of window `number` to be spent.
    fn wait_until(&self, until_ns: u64, number: u64) -> Wait {
        loop {
            let left_ns = until_ns.saturating_sub(monotonic_ns());
            match self.received.recv_timeout(Duration::from_nanos(left_ns)) {
                Ok(spent) if spent.number == number => return Wait::Spent(spent.time_ns),
                // Of a window that is over.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Wait::Time,
                Err(RecvTimeoutError::Disconnected) => return Wait::Stop,
            }
        }
    }
}

fn lock(shares: &Mutex<Shares>) -> MutexGuard<'_, Shares> {
    shares.lock().unwrap_or_else(PoisonError::into_inner)
}

fn difference(after: &ProbeShare, before: &ProbeShare) -> ProbeShare {
    ProbeShare {
        hits: after.hits.wrapping_sub(before.hits),
        refused: after.refused.wrapping_sub(before.refused),
        repeated: after.repeated.wrapping_sub(before.repeated),
        program_ns: after.program_ns.wrapping_sub(before.program_ns),
    }
}

/// The clock of records and windows, in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a structure of our own.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
