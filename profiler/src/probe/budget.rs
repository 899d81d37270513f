//! How much probes may take from a process, and the windows that follow from it:
//! when to put them on, for how long, and what they may spend. Decides only; it reads
//! no clock, does no I/O, and is simulated in its tests.

use std::collections::VecDeque;

use super::costs::{Costs, SHORT_NS};

/// No [`PERIOD_NS`], wherever it begins, may hold more than its share.
pub const PERIOD_NS: u64 = 10_000_000_000;

/// The time of the target falls into slots of this length, or of some of them
/// together, each with one window at most.
const SLOT_NS: u64 = 250_000_000;
/// Most of them together: where a hit is so dear, or so many come at once, that a
/// short slot's share is gone before anything was seen.
const MAX_SLOTS: u64 = 4;

/// The very first window: nothing is known of the target yet.
const FIRST_NS: u64 = 300_000;
/// No window is shorter: to put probes on and off takes a part of this.
const MIN_NS: u64 = 50_000;
/// What is kept free at a slot's end, so that a window that opens late still lies
/// in it.
const MARGIN_NS: u64 = 20_000_000;

/// Of a slot's share, what a window is planned to take. The rest is for a target
/// that does more than it did.
const PLANNED: f64 = 0.8;
/// Of a slot's share, the least that a window may spend.
const LEAST: f64 = 0.1;
/// How much of what a target did before counts where it does less now.
const MEMORY: f64 = 0.7;

/// What probes may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// This share of one CPU, over any [`PERIOD_NS`].
    Share(f64),
    /// Whatever it takes: probes are on all the time.
    Unlimited,
}

/// A part of the target's time, and the window in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// The window's number, from 1 on.
    pub number: u64,
    /// Where the slot begins.
    pub slot_begins_ns: u64,
    /// How long it is.
    pub slot_ns: u64,
    /// When to put the probes on, if they are off.
    pub opens_ns: u64,
    /// How long they are wanted from when they are on.
    pub length_ns: u64,
    /// What they may spend until then.
    pub spend_ns: u64,
    /// Whether the window is the whole slot: the next may follow without a gap.
    pub whole: bool,
}

/// What became of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Closed {
    /// The window.
    pub plan: Plan,
    /// When it opened.
    pub opened_ns: u64,
    /// When it ended: as planned, or when its share was spent.
    pub ended_ns: u64,
    /// What hits took in all, those outside of it included.
    pub charged_ns: u64,
    /// What those outside took: before it opened, and until the probes were off.
    pub outside_ns: u64,
    /// Whether probes were put on for it, or had been on before.
    pub switched: bool,
    /// Whether its share was spent before its time.
    pub spent: bool,
}

impl Closed {
    /// How long was watched.
    pub fn watched_ns(&self) -> u64 {
        self.ended_ns.saturating_sub(self.opened_ns)
    }
}

/// Holds the probes of one process to their budget.
///
/// A slot of length `s` has the share `budget · s / (period + 2 · longest slot)`.
/// Any period touches slots that are together no longer than that divisor, so that
/// their windows take no more than the budget, whatever the target does. Windows lie
/// in their slots at random, and neither their place nor their length depends on what
/// happens in the slot: only the end of one whose share is spent does.
///
/// Where the end of a window takes more than a slot may, a window takes what it must and
/// as much again, and waits until the period that ends with it has room for that.
#[derive(Debug)]
pub struct Controller {
    budget: Budget,
    costs: Costs,
    dice: Dice,
    next_number: u64,
    /// Where the next slot begins.
    next_slot_ns: u64,
    /// Nanoseconds taken per nanosecond watched; none before the first window.
    rate: Option<f64>,
    /// What was taken beyond a slot's share, to be made up for by slots without a
    /// window.
    debt_ns: f64,
    /// What windows took of late: when each was over, and how much.
    taken: VecDeque<(u64, f64)>,
    /// What the end of a window took, where that is more than a period may hold.
    too_dear_ns: Option<u64>,
    skipped: u64,
}

impl Controller {
    /// Begins at `now_ns`. The first slot begins a random part of one later, so that
    /// nothing the target does in step with slots is always or never seen.
    pub fn new(budget: Budget, costs: Costs, seed: u64, now_ns: u64) -> Self {
        let mut dice = Dice(seed);
        let next_slot_ns = match budget {
            Budget::Share(_) => now_ns + dice.below(SLOT_NS),
            Budget::Unlimited => now_ns,
        };
        Self {
            budget,
            costs,
            dice,
            next_number: 1,
            next_slot_ns,
            rate: None,
            debt_ns: 0.0,
            taken: VecDeque::new(),
            too_dear_ns: None,
            skipped: 0,
        }
    }

    /// The next window. Slots that are over by `now_ns`, or whose share was taken
    /// before, have none.
    pub fn next(&mut self, now_ns: u64) -> Plan {
        let Budget::Share(share) = self.budget else {
            let begins_ns = self.next_slot_ns.max(now_ns);
            return self.whole_slot(begins_ns, SLOT_NS, u64::MAX);
        };
        loop {
            let slots = self.slots_together(share);
            let slot_ns = slots * SLOT_NS;
            let allowed_ns = allowance_ns(share, slot_ns);
            let begins_ns = self.next_slot_ns;
            let late = begins_ns + MARGIN_NS < now_ns;
            let (dear_ns, takes_ns) = self.dear(share, allowed_ns);
            if late || self.debt_ns > 0.0 || !self.has_room(share, begins_ns, takes_ns) {
                self.skipped += slots;
                self.next_slot_ns += slot_ns;
                self.debt_ns = (self.debt_ns - allowed_ns).max(0.0);
                continue;
            }
            if self.fits_whole(slot_ns, allowed_ns) {
                return self.whole_slot(begins_ns, slot_ns, allowed_ns as u64);
            }
            return self.window(begins_ns, slot_ns, allowed_ns, dear_ns);
        }
    }

    /// Learns from a window.
    pub fn closed(&mut self, closed: &Closed) {
        let watched_ns = closed.watched_ns().max(1) as f64;
        let inside_ns = closed.charged_ns.saturating_sub(closed.outside_ns);
        let seen = inside_ns as f64 / watched_ns;
        self.rate = Some(match self.rate {
            Some(rate) => seen.max(MEMORY * rate + (1.0 - MEMORY) * seen),
            None => seen,
        });
        if let Budget::Share(share) = self.budget {
            let switch_ns = if closed.switched {
                self.costs.switch_ns
            } else {
                0
            };
            let taken_ns = (closed.charged_ns + switch_ns) as f64;
            let allowed_ns = allowance_ns(share, closed.plan.slot_ns);
            self.debt_ns += (taken_ns - allowed_ns).max(0.0);
            self.taken.push_back((closed.ended_ns, taken_ns));
            let kept_ns = PERIOD_NS + self.costs.tails.long_ns;
            let is_old = |(at, _): &(u64, f64)| at + kept_ns < closed.ended_ns;
            while self.taken.front().is_some_and(is_old) {
                self.taken.pop_front();
            }
            let is_too_dear = closed.outside_ns as f64 > share * PERIOD_NS as f64;
            if self.costs.tails.are_slow() && is_too_dear {
                self.too_dear_ns = Some(closed.outside_ns);
            }
        }
    }

    /// Whether more was taken than there was, so that slots without a window follow.
    pub fn owes(&self) -> bool {
        self.debt_ns > 0.0
    }

    /// What the end of the last window took, in nanoseconds, where that was more than any
    /// period may hold: no window can be had for the budget.
    pub fn too_dear_ns(&self) -> Option<u64> {
        self.too_dear_ns
    }

    /// What probes take, as it was told.
    pub fn costs(&self) -> Costs {
        self.costs
    }

    /// What probes take of the target while they are on, in CPUs; none before the
    /// first window.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Slots without a window: those that were over before their turn came, and
    /// those whose share had been taken.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// As few slots together as let a window be of some use.
    fn slots_together(&self, share: f64) -> u64 {
        let worth_it = |slots: &u64| {
            let allowed_ns = allowance_ns(share, slots * SLOT_NS);
            let rate = self.rate.unwrap_or(0.0);
            self.length_ns(allowed_ns, rate) >= FIRST_NS as f64
        };
        let mut choices = [1, 2].into_iter();
        choices.find(worth_it).unwrap_or(MAX_SLOTS)
    }

    /// How long a window may be at this rate. A long one takes longer to end.
    fn length_ns(&self, allowed_ns: f64, rate: f64) -> f64 {
        let planned_ns = PLANNED * allowed_ns - self.costs.switch_ns as f64;
        let all_ns = planned_ns / rate.max(1e-9);
        let tails = self.costs.tails;
        let short_ns = (all_ns - tails.short_ns as f64).min(SHORT_NS as f64);
        let long_ns = all_ns - tails.long_ns as f64;
        short_ns.max(long_ns)
    }

    /// What a window may spend whose end takes so much that a slot's share is not for it,
    /// and what it then takes in all; none and nothing where it takes less.
    fn dear(&self, share: f64, allowed_ns: f64) -> (Option<f64>, f64) {
        let rate = self.rate.unwrap_or(0.0);
        let end_ns = rate * self.costs.tails.short_ns as f64 + self.costs.switch_ns as f64;
        if end_ns <= (PLANNED - LEAST) * allowed_ns {
            return (None, 0.0);
        }
        let most_ns = PLANNED * share * PERIOD_NS as f64;
        let spend_ns = end_ns.min(most_ns - end_ns).max(LEAST * allowed_ns);
        (Some(spend_ns), spend_ns + end_ns)
    }

    /// Whether a window that takes so much may begin: alone in its period where that is
    /// more than one may hold, as it may well take less.
    fn has_room(&self, share: f64, begins_ns: u64, takes_ns: f64) -> bool {
        if takes_ns == 0.0 {
            return true;
        }
        let reaches_ns = PERIOD_NS + self.costs.tails.long_ns;
        let of_late = self
            .taken
            .iter()
            .filter(|(at, _)| at + reaches_ns > begins_ns);
        let taken_ns: f64 = of_late.map(|(_, taken_ns)| taken_ns).sum();
        let most_ns = share * PERIOD_NS as f64;
        taken_ns + takes_ns.min(most_ns) <= most_ns
    }

    /// How long the very first window is. Where its end takes long, there is no point in
    /// one that sees next to nothing.
    fn first_ns(&self) -> u64 {
        match self.costs.tails.are_slow() {
            true => FIRST_NS.max(self.costs.tails.short_ns / 4),
            false => FIRST_NS,
        }
    }

    fn fits_whole(&self, slot_ns: u64, allowed_ns: f64) -> bool {
        let rate = self.rate.unwrap_or(f64::INFINITY);
        let tail_ns = rate * self.costs.tails.long_ns as f64;
        rate * slot_ns as f64 + tail_ns + self.costs.switch_ns as f64 <= PLANNED * allowed_ns
    }

    fn whole_slot(&mut self, begins_ns: u64, slot_ns: u64, spend_ns: u64) -> Plan {
        self.next_slot_ns = begins_ns + slot_ns;
        Plan {
            number: self.number(),
            slot_begins_ns: begins_ns,
            slot_ns,
            opens_ns: begins_ns,
            length_ns: slot_ns,
            spend_ns,
            whole: true,
        }
    }

    fn window(
        &mut self,
        begins_ns: u64,
        slot_ns: u64,
        allowed_ns: f64,
        dear_ns: Option<f64>,
    ) -> Plan {
        let most_ns = (slot_ns / 2) as f64;
        let (length_ns, spend_ns) = match (self.rate, dear_ns) {
            (None, _) => (self.first_ns().min(slot_ns / 2), allowed_ns / 4.0),
            (Some(rate), Some(spend_ns)) => {
                let length_ns = PLANNED * spend_ns / rate.max(1e-9);
                (length_ns.clamp(MIN_NS as f64, most_ns) as u64, spend_ns)
            }
            (Some(rate), None) => {
                let length_ns = self.length_ns(allowed_ns, rate);
                let length_ns = length_ns.clamp(MIN_NS as f64, most_ns) as u64;
                let tail_ns = self.costs.tails.after(length_ns);
                let kept_ns = rate * tail_ns as f64 + self.costs.switch_ns as f64;
                (length_ns, (allowed_ns - kept_ns).max(LEAST * allowed_ns))
            }
        };
        let room_ns = slot_ns - length_ns - MARGIN_NS;
        self.next_slot_ns = begins_ns + slot_ns;
        Plan {
            number: self.number(),
            slot_begins_ns: begins_ns,
            slot_ns,
            opens_ns: begins_ns + self.dice.below(room_ns),
            length_ns,
            spend_ns: spend_ns as u64,
            whole: false,
        }
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }
}

/// What a slot may take.
fn allowance_ns(share: f64, slot_ns: u64) -> f64 {
    let budget_ns = share * PERIOD_NS as f64;
    budget_ns * slot_ns as f64 / (PERIOD_NS + 2 * MAX_SLOTS * SLOT_NS) as f64
}

/// Numbers that look random (SplitMix64).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    /// A number below `bound`, 0 where that is 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
