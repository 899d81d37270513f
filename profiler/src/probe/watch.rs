//! A thread for each process that is probed: it puts the probes on and takes them off
//! as the controller says. To put on and to take off wait for the kernel, some tens of
//! milliseconds, in which nothing else may have to stand still.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use profiler_ebpf::wire::{ProbeShare, ProbeWindow, TICK_PERIOD_NS};

use super::{
    budget::{Closed, Controller, Plan},
    clock::{Reading, hurry, monotonic_ns, used},
    estimate::{Rest, Weight},
    shares::Shares,
    uprobes::{Attached, ProbeSet},
    window_ticks::{Ticking, WindowTicks},
};

/// A window that is a whole slot ends when the next one is there, so that no hit falls
/// between them; or this long after its slot, should nobody be there to say so.
const ENDS_WITHIN_NS: u64 = 10_000_000_000;

/// Whoever reads what the kernel side tells has this long to pass on that a share is spent,
/// once that is known: when it was, is known to them alone.
const TOLD_WITHIN_NS: u64 = 1_000_000_000;

/// A window opens this long after the kernel side was told, when this thread sleeps
/// again: the CPU that it took it from the target is part of no window.
const OPENS_IN_NS: u64 = 40_000;

/// And this part of its length later, but no more than `MOST_LATER_NS`. Probes that are
/// put on hold the target up for some tenths of a millisecond: what was to happen
/// meanwhile happens all at once then, and a window from there on would see its waits
/// begin rather than end.
const LATER_PART: u64 = 8;
const MOST_LATER_NS: u64 = 2_000_000;

/// A window that is over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Watched {
    /// What became of it.
    pub closed: Closed,
    /// What it counts for in estimates.
    pub weight: Weight,
    /// What its hits came to, those outside of it included.
    pub share: ProbeShare,
    /// Since when probes had been on without a pause, on the monotonic clock.
    pub since_ns: u64,
    /// Whether the watch ends with it.
    pub is_last: bool,
    /// From the order to put the probes on until they were on, in nanoseconds; 0
    /// where they had been on.
    pub attach_ns: u64,
    /// From the order to take them off until the kernel was done; 0 where they stay.
    pub detach_ns: u64,
}

/// What is told of windows, on the thread that watches: it must not wait for long.
pub trait Watcher: Send + 'static {
    /// A window that is not a whole slot opens at `opens_ns`: whatever waits while it is
    /// open, and is not seen to begin or end, waits through.
    fn look(&mut self, _opens_ns: u64) {}

    /// The last of those that are whole slots ends when this returns.
    fn look_now(&mut self) {}

    /// A window is over.
    fn over(&mut self, watched: &Watched);

    /// The watch ends while no window is open: so much came behind the last.
    fn rest(&mut self, _rest: Rest) {}
}

impl<F: FnMut(&Watched) + Send + 'static> Watcher for F {
    fn over(&mut self, watched: &Watched) {
        self(watched);
    }
}

/// Probes of a process, at work. Dropping it takes them off.
pub struct Watch {
    orders: Option<Sender<Spent>>,
    thread: Option<JoinHandle<Result<Controller>>>,
    /// Closed once the first window is open, or none can be.
    opened: Receiver<()>,
}

/// The share of a window is spent.
struct Spent {
    number: u64,
    time_ns: u64,
}

impl Watch {
    /// Begins to watch. `watcher` is told of each window.
    ///
    /// # Errors
    /// A thread cannot be started, or the process's hits cannot be counted.
    pub fn start(
        set: ProbeSet,
        shares: Arc<Mutex<Shares>>,
        controller: Controller,
        watcher: impl Watcher,
    ) -> Result<Self> {
        lock(&shares).insert(set.pid())?;
        let ticks = lock(&shares).ticks();
        let (orders, received) = mpsc::channel();
        let (until_open, opened) = mpsc::channel();
        let watching = Watching {
            set,
            shares,
            ticks,
            controller,
            received,
            until_open: Some(until_open),
            watcher,
            attached: None,
            attached_ns: 0,
            since: Reading::default(),
            begun: Reading::default(),
            counted: ProbeShare::default(),
            blind_ns: 0,
        };
        let thread = thread::Builder::new()
            .name("probes".to_owned())
            .stack_size(256 << 10)
            .spawn(move || watching.run())
            .context("cannot start a thread for probes")?;
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread),
            opened,
        })
    }

    /// Waits for the first window to open, but not for longer than this.
    pub fn wait_open(&self, most: Duration) {
        // It fails where it takes longer, or where none will.
        let _ = self.opened.recv_timeout(most);
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

    /// Waits until they are off.
    ///
    /// # Errors
    /// As for [`Watch::stop`]; told once.
    pub fn wait(&mut self) -> Result<()> {
        self.orders = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended.map(drop),
            Some(Err(_)) => Err(anyhow!("the thread for probes panicked")),
            None => Ok(()),
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
        // Why it ended is asked for by `wait` and `stop`.
        let _ = self.wait();
    }
}

struct Watching<W> {
    set: ProbeSet,
    shares: Arc<Mutex<Shares>>,
    ticks: WindowTicks,
    controller: Controller,
    received: Receiver<Spent>,
    /// For who waits for the first window to open.
    until_open: Option<Sender<()>>,
    watcher: W,
    attached: Option<Attached>,
    /// Since when they are on, on the monotonic clock.
    attached_ns: u64,
    /// When it began to watch.
    begun: Reading,
    /// When the window before was reported.
    since: Reading,
    /// What had been counted by then.
    counted: ProbeShare,
    /// For how long hits were not counted since then.
    blind_ns: u64,
}

/// A window at work.
struct Open {
    plan: Plan,
    opened_ns: u64,
    closes_ns: u64,
    began: Reading,
    attach_ns: u64,
    /// Where it is not a whole slot.
    ticking: Option<Ticking>,
}

/// A window that is over, and what was read then.
struct Over {
    ended_ns: u64,
    ended: Reading,
    spent: bool,
    is_last: bool,
    detach_ns: u64,
}

/// How a wait ended.
enum Wait {
    Time,
    Spent(u64),
    Stop,
}

impl<W: Watcher> Watching<W> {
    fn run(mut self) -> Result<Controller> {
        hurry();
        let result = self.watch();
        self.attached = None;
        lock(&self.shares).remove(self.set.pid())?;
        result.map(|()| self.controller)
    }

    fn watch(&mut self) -> Result<()> {
        let mut plan = self.controller.next(monotonic_ns());
        self.since = Reading::of(self.set.pid());
        self.begun = self.since;
        // One that goes on until the next opens is told of then: what the kernel side
        // sees meanwhile is its.
        let mut told_later: Option<Watched> = None;
        loop {
            if let Wait::Stop = self.wait_until(plan.opens_ns, 0) {
                match told_later {
                    Some(mut watched) => {
                        self.watcher.look_now();
                        watched.is_last = true;
                        self.watcher.over(&watched);
                    }
                    None => self.tell_rest(),
                }
                return Ok(());
            }
            let mut open = self.open(plan)?;
            self.until_open = None;
            told_later
                .take()
                .iter()
                .for_each(|watched| self.watcher.over(watched));
            let wait = self.wait_until(open.closes_ns, plan.number);
            let (ended_ns, stop) = match wait {
                Wait::Time => (open.closes_ns, false),
                Wait::Spent(time_ns) => (time_ns, false),
                Wait::Stop => {
                    if plan.whole {
                        self.watcher.look_now();
                    }
                    (self.close_now(&open)?, true)
                }
            };
            let spent = matches!(wait, Wait::Spent(_));
            let spent_untold = matches!(wait, Wait::Time)
                && lock(&self.shares).is_spent(self.set.pid(), plan.number)?;
            // Those that come until they stop are in no window.
            open.ticking = None;
            let mut over = Over {
                ended_ns: ended_ns.max(open.opened_ns),
                ended: Reading::of(self.set.pid()),
                spent,
                is_last: stop,
                detach_ns: 0,
            };
            if spent || spent_untold || stop || !plan.whole {
                over.detach_ns = self.detach()?;
            }
            if spent_untold {
                self.hear_when(&open, &mut over);
            }
            // Where probes stay on, what the window took is known already.
            let watched = self.account(&open, &over)?;
            if over.is_last {
                self.watcher.over(&watched);
                return Ok(());
            }
            if let Some(ns) = self.controller.too_dear_ns() {
                self.watcher.over(&watched);
                bail!(
                    "it hits them so often that taking them off takes {} ms of it, more than \
                     its budget has for 10 s; this kernel takes them off one after another \
                     (before Linux 6.6): raise --probe-budget or lift it",
                    ns / 1_000_000
                );
            }
            let owes = self.controller.owes();
            plan = self.controller.next(monotonic_ns());
            if (owes || !plan.whole) && self.attached.is_some() {
                // What comes until they are off is in no window.
                let pid = self.set.pid();
                lock(&self.shares).close(pid)?;
                self.counted = lock(&self.shares).of(pid)?;
                self.detach()?;
            }
            match self.attached {
                Some(_) => told_later = Some(watched),
                None => self.watcher.over(&watched),
            }
        }
    }

    fn tell_rest(&mut self) {
        let now = Reading::of(self.set.pid());
        let (since_ns, cpu_since_ns) = now.since(&self.since);
        let own_since_ns = cpu_since_ns as f64 * self.user_share(&now);
        self.watcher.rest(Rest {
            since_ns,
            own_since_ns,
        });
    }

    /// The part of the target's CPU time so far that was in user mode.
    fn user_share(&self, now: &Reading) -> f64 {
        let both = now.used.zip(self.begun.used);
        both.map_or(0.0, |(now, begun)| now.user_share(&begun))
    }

    fn open(&mut self, plan: Plan) -> Result<Open> {
        let pid = self.set.pid();
        // Where probes stay on the kernel would not say so.
        ensure!(used(pid).is_some(), "process {pid} is gone");
        let begun_ns = monotonic_ns();
        let goes_on = self.attached.is_some();
        if !goes_on {
            self.attached = Some(self.set.attach()?);
        }
        let ticking = match plan.whole {
            true => None,
            false => Some(self.ticks.run()?),
        };
        let now_ns = monotonic_ns();
        let opens_ns = if goes_on {
            self.since.time_ns
        } else {
            let later_ns = (plan.length_ns / LATER_PART).min(MOST_LATER_NS);
            now_ns + OPENS_IN_NS + later_ns
        };
        if !goes_on {
            self.attached_ns = opens_ns;
        }
        let slot_ends_ns = plan.slot_begins_ns.saturating_add(plan.slot_ns);
        let closes_ns = if plan.whole {
            slot_ends_ns.max(opens_ns)
        } else {
            opens_ns + plan.length_ns
        };
        let trap_ns = self.controller.costs().trap_ns;
        let grace_ns = if plan.whole { ENDS_WITHIN_NS } else { 0 };
        let window = ProbeWindow {
            number: plan.number,
            opens_ns,
            closes_ns: closes_ns + grace_ns,
            since_ns: self.attached_ns,
            trap_ns,
            spent_at_ns: self
                .counted
                .charge_ns(trap_ns)
                .saturating_add(plan.spend_ns),
        };
        let told_ns = {
            let mut shares = lock(&self.shares);
            let told_ns = monotonic_ns();
            shares.open(pid, &window)?;
            told_ns
        };
        if !plan.whole {
            self.watcher.look(opens_ns);
        }
        let began = if goes_on {
            self.since
        } else {
            Reading::of(pid)
        };
        Ok(Open {
            plan,
            // Not before the kernel side knew of it. Hits count from then on: the clock
            // after that may be much later, where this thread is put aside.
            opened_ns: if goes_on {
                opens_ns
            } else {
                told_ns.clamp(opens_ns, closes_ns)
            },
            closes_ns,
            began,
            attach_ns: if goes_on {
                0
            } else {
                now_ns.saturating_sub(begun_ns)
            },
            ticking,
        })
    }

    fn close_now(&self, open: &Open) -> Result<u64> {
        lock(&self.shares).close(self.set.pid())?;
        Ok(monotonic_ns().min(open.closes_ns))
    }

    /// The share of a window was spent before its time, and who tells of that is late: it
    /// ended then, and nothing was seen behind it.
    fn hear_when(&self, open: &Open, over: &mut Over) {
        match self.wait_until(monotonic_ns() + TOLD_WITHIN_NS, open.plan.number) {
            Wait::Spent(time_ns) => over.ended_ns = time_ns.max(open.opened_ns),
            Wait::Stop => over.is_last = true,
            // What was told was lost, and is counted there.
            Wait::Time => {}
        }
        over.spent = true;
    }

    /// Takes the probes off, and says how long that took.
    fn detach(&mut self) -> Result<u64> {
        let begun_ns = monotonic_ns();
        match self.attached.take() {
            Some(attached) => {
                let blind = attached.detach()?.as_nanos();
                self.blind_ns += u64::try_from(blind).unwrap_or(u64::MAX);
            }
            None => return Ok(0),
        }
        Ok(monotonic_ns().saturating_sub(begun_ns))
    }

    fn account(&mut self, open: &Open, over: &Over) -> Result<Watched> {
        let pid = self.set.pid();
        let counted = lock(&self.shares).of(pid)?;
        let now = Reading::of(pid);
        let share = difference(&counted, &self.counted);
        self.counted = counted;
        let stays = self.attached.is_some();
        // What stays on is watched until it was counted.
        let (ended_ns, ended) = if stays {
            (now.time_ns, now)
        } else {
            (over.ended_ns, over.ended)
        };
        let watched_ns = ended_ns.saturating_sub(open.opened_ns);
        let (inside_ns, outside_ns) = self.charges(&share, watched_ns);
        let closed = Closed {
            plan: open.plan,
            opened_ns: open.opened_ns,
            ended_ns,
            charged_ns: inside_ns.saturating_add(outside_ns),
            outside_ns,
            switched: open.attach_ns > 0,
            spent: over.spent,
        };
        self.controller.closed(&closed);
        let user_share = self.user_share(&now);
        let (since_ns, cpu_since_ns) = now.since(&self.since);
        let (_, cpu_inside_ns) = ended.since(&open.began);
        self.since = now;
        let own = |cpu_ns: u64| cpu_ns.saturating_sub(closed.charged_ns) as f64 * user_share;
        // The kernel brings CPU time up to date too seldom for a short window.
        let own_ns = match open.plan.whole {
            true => own(cpu_inside_ns),
            false => share.user_ticks.saturating_mul(TICK_PERIOD_NS) as f64,
        };
        Ok(Watched {
            closed,
            weight: Weight {
                slot_ns: if stays { watched_ns } else { open.plan.slot_ns },
                watched_ns,
                own_ns,
                own_since_ns: own(cpu_since_ns),
                since_ns,
            },
            share,
            since_ns: self.attached_ns,
            is_last: over.is_last,
            attach_ns: open.attach_ns,
            detach_ns: over.detach_ns,
        })
    }

    /// What hits took inside of a window, and outside: those that were not counted there
    /// are taken to be as many as inside.
    fn charges(&mut self, share: &ProbeShare, watched_ns: u64) -> (u64, u64) {
        let trap_ns = self.controller.costs().trap_ns;
        let refused_ns = share.refused.saturating_mul(trap_ns);
        let inside_ns = share.charge_ns(trap_ns).saturating_sub(refused_ns);
        let inside = inside_ns as f64 / watched_ns.max(1) as f64;
        let before = self.controller.rate().unwrap_or(0.0);
        let blind_ns = mem::take(&mut self.blind_ns) as f64 * inside.max(before);
        (inside_ns, refused_ns.saturating_add(blind_ns as u64))
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
        user_ticks: after.user_ticks.wrapping_sub(before.user_ticks),
        kernel_ticks: after.kernel_ticks.wrapping_sub(before.kernel_ticks),
    }
}
