//! Simulated targets, held to their budget: whatever they do, no period may hold more
//! than its share, and what the windows say must be the truth.

use super::super::costs::Tails;
use super::super::estimate::{Estimate, Weight, Windows};
use super::*;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
const COSTS: Costs = Costs {
    trap_ns: 650,
    switch_ns: 50_000,
    tails: Tails::AT_ONCE,
};

/// A target that is busy on all its CPUs, and hits probes at a rate which changes from
/// moment to moment.
struct Simulated<'a> {
    /// Hits a second at a time, in nanoseconds, where probes take nothing of it.
    rate: &'a dyn Fn(u64) -> f64,
    cpus: f64,
    costs: Costs,
}

/// What became of it.
struct Outcome {
    /// When something was charged, and how much.
    charges: Vec<(u64, f64)>,
    windows: Windows,
    /// What the windows say there were of hits.
    estimate: Estimate,
    /// What there were.
    truth: f64,
}

const STEP_NS: u64 = MS / 20;

/// What went on in some time.
#[derive(Default, Clone, Copy)]
struct Sums {
    hits: f64,
    charged: f64,
    own: f64,
}

impl Simulated<'_> {
    /// A step with the probes on or off. What they take, the target cannot do.
    fn step(&self, at_ns: u64, on: bool) -> Sums {
        let step_ns = STEP_NS as f64;
        let rate = (self.rate)(at_ns);
        let taken = if on {
            rate * self.costs.trap_ns as f64 / 1e9 / self.cpus
        } else {
            0.0
        };
        let own = self.cpus * step_ns / (1.0 + taken);
        Sums {
            hits: rate * step_ns / 1e9 / (1.0 + taken),
            charged: self.cpus * step_ns - own,
            own,
        }
    }

    fn run(&self, share: f64, seconds: u64, seed: u64) -> Outcome {
        let mut controller = Controller::new(Budget::Share(share), self.costs, seed, 0);
        let mut charges = Vec::new();
        let (mut windows, mut values, mut all) = (Windows::default(), Vec::new(), Sums::default());
        let (mut now_ns, mut on) = (0, false);
        while now_ns < seconds * S {
            let plan = controller.next(now_ns);
            let (before, begun_ns) = (all, now_ns);
            while now_ns < plan.opens_ns {
                all.add(self.step(now_ns, false));
                now_ns += STEP_NS;
            }
            let (closed, seen) = self.watch(&plan, &mut now_ns, &mut on, &mut charges);
            all.add(seen.0);
            all.add(seen.1);
            values.push((windows.len(), seen.0.hits));
            windows.push(Weight {
                slot_ns: plan.slot_ns,
                watched_ns: closed.watched_ns(),
                own_ns: seen.0.own,
                own_since_ns: all.own - before.own,
                since_ns: now_ns - begun_ns,
            });
            controller.closed(&closed);
            if controller.too_dear_ns().is_some() {
                break;
            }
        }
        Outcome {
            charges,
            estimate: windows.estimate(&values),
            windows,
            truth: all.hits,
        }
    }

    /// Watches a window as the kernel would, and says what was seen, and what went on
    /// until the probes were off.
    fn watch(
        &self,
        plan: &Plan,
        now_ns: &mut u64,
        on: &mut bool,
        charges: &mut Vec<(u64, f64)>,
    ) -> (Closed, (Sums, Sums)) {
        let opened_ns = *now_ns;
        let closes_ns = (opened_ns + plan.length_ns).min(plan.slot_begins_ns + plan.slot_ns);
        let switched = !*on;
        let (mut seen, mut tail) = (Sums::default(), Sums::default());
        if switched {
            charges.push((*now_ns, self.costs.switch_ns as f64));
        }
        while *now_ns < closes_ns && seen.charged < plan.spend_ns as f64 {
            let step = self.step(*now_ns, true);
            charges.push((*now_ns, step.charged));
            seen.add(step);
            *now_ns += STEP_NS;
        }
        let (ended_ns, spent) = (*now_ns, *now_ns < closes_ns);
        *on = plan.whole && !spent;
        if !*on {
            let tail_ns = self.costs.tails.after(ended_ns - opened_ns);
            while *now_ns < ended_ns + tail_ns {
                let step = self.step(*now_ns, true);
                charges.push((*now_ns, step.charged));
                tail.add(step);
                *now_ns += STEP_NS;
            }
        }
        let closed = Closed {
            plan: *plan,
            opened_ns,
            ended_ns,
            charged_ns: (seen.charged + tail.charged) as u64,
            outside_ns: tail.charged as u64,
            switched,
            spent,
        };
        (closed, (seen, tail))
    }
}

impl Sums {
    fn add(&mut self, other: Sums) {
        self.hits += other.hits;
        self.charged += other.charged;
        self.own += other.own;
    }
}

impl Outcome {
    /// The most that any period held, as a share of one CPU.
    fn worst(&self) -> f64 {
        let (mut sum, mut worst, mut first) = (0.0, 0.0_f64, 0);
        for (at_ns, charge) in &self.charges {
            sum += charge;
            while self.charges[first].0 + PERIOD_NS <= *at_ns {
                sum -= self.charges[first].1;
                first += 1;
            }
            worst = worst.max(sum / PERIOD_NS as f64);
        }
        worst
    }

    fn off(&self) -> f64 {
        (self.estimate.value - self.truth).abs() / self.truth
    }
}

fn simulate(rate: &dyn Fn(u64) -> f64, seconds: u64, seed: u64) -> Outcome {
    let costs = COSTS;
    let simulated = Simulated {
        rate,
        cpus: 2.0,
        costs,
    };
    simulated.run(0.01, seconds, seed)
}

/// The same, where places are taken off one after another, as many as there are for waits.
fn simulate_slow(rate: &dyn Fn(u64) -> f64, close_ns: u64, seed: u64) -> Outcome {
    let costs = Costs {
        tails: Tails::one_by_one(6, close_ns),
        ..COSTS
    };
    let simulated = Simulated {
        rate,
        cpus: 2.0,
        costs,
    };
    simulated.run(0.01, 120, seed)
}

#[test]
fn a_target_that_hits_seldom_is_watched_all_the_time() {
    let outcome = simulate(&|_| 5_000.0, 60, 1);
    assert!(outcome.worst() <= 0.01, "{}", outcome.worst());
    let share = outcome.windows.watched_share();
    assert!(share > 0.98, "{share}");
    assert!(outcome.off() < 0.02, "{}", outcome.off());
    assert!(outcome.estimate.standard_error / outcome.estimate.value < 0.01);
}

#[test]
fn busy_targets_stay_within_the_budget_and_use_it() {
    for rate in [20e3, 100e3, 300e3, 1e6, 3e6, 10e6] {
        let outcome = simulate(&|_| rate, 60, 2);
        let worst = outcome.worst();
        assert!(worst <= 0.01, "{rate}: {worst}");
        assert!(worst > 0.002, "{rate}: only {worst} is used");
        assert!(outcome.off() < 0.02, "{rate}: {}", outcome.off());
        let watched = outcome.windows.watched_share();
        assert!(watched > 0.001, "{rate}: {watched}");
    }
}

#[test]
fn places_that_are_taken_off_one_after_another_stay_within_the_budget() {
    // In windows that all slots could have, that some could, and that none could.
    for (rate, close_ms, least) in [
        (2e3, 16, 0.9),
        (20e3, 16, 0.1),
        (100e3, 16, 0.02),
        (100e3, 80, 0.02),
        (300e3, 80, 0.003),
        (800e3, 16, 0.003),
    ] {
        for seed in 0..5 {
            let outcome = simulate_slow(&|_| rate, close_ms * MS, seed);
            let worst = outcome.worst();
            assert!(worst <= 0.01, "{rate}, {close_ms} ms: {worst}");
            let watched = outcome.windows.watched_share();
            assert!(watched >= least, "{rate}, {close_ms} ms: {watched}");
            assert!(outcome.off() < 0.02, "{rate}: {}", outcome.off());
        }
    }
}

#[test]
fn a_burst_that_nothing_announced_takes_what_one_end_does() {
    let bursts = |at: u64| match (at / (700 * MS)).is_multiple_of(5) {
        true => 1e6,
        false => 100.0,
    };
    for seed in 0..20 {
        let outcome = simulate_slow(&bursts, 16 * MS, seed);
        let worst = outcome.worst();
        assert!(worst <= 0.01, "{seed}: {worst}");
    }
}

#[test]
fn where_no_window_can_be_had_none_follows_the_first() {
    let outcome = simulate_slow(&|_| 5e6, 80 * MS, 4);
    assert_eq!(outcome.windows.len(), 1);
    let before = simulate_slow(&|at| if at > 60 * S { 5e6 } else { 20e3 }, 80 * MS, 4);
    let ended = before.charges.last().expect("windows").0;
    assert!((60 * S..75 * S).contains(&ended), "{ended}");
}

#[test]
fn whatever_the_target_does_no_period_holds_more() {
    let noise = |at_ns: u64, every: u64| {
        let mut dice = Dice(at_ns / every);
        dice.below(1000) as f64 / 1000.0
    };
    let rates: [(&str, &dyn Fn(u64) -> f64); 5] = [
        ("bursts", &|at| {
            if (at / (700 * MS)).is_multiple_of(5) {
                2e6
            } else {
                100.0
            }
        }),
        ("in step with slots", &|at| {
            if (at / (125 * MS)).is_multiple_of(2) {
                2e6
            } else {
                0.0
            }
        }),
        ("a step up", &|at| if at > 20 * S { 3e6 } else { 0.0 }),
        ("noise", &|at| 4e6 * noise(at, 3 * MS).powi(4)),
        ("seldom and much", &|at| {
            if noise(at, 100 * MS) > 0.97 {
                3e6
            } else {
                10.0
            }
        }),
    ];
    for (what, rate) in rates {
        for seed in 0..5 {
            let outcome = simulate(rate, 60, seed);
            // Beyond the share goes what a burst takes while a long window ends.
            let worst = outcome.worst();
            assert!(worst <= 0.0115, "{what}, {seed}: {worst}");
        }
    }
}

#[test]
fn totals_are_the_truth_within_their_error() {
    let wave = |at: u64| 400e3 * (1.0 + 0.2 * (at as f64 / 3.7e9).sin());
    let jitter = |at: u64| {
        let mut dice = Dice(at / (7 * MS));
        600e3 * (0.8 + dice.below(1000) as f64 / 2500.0)
    };
    let rates: [(&str, &dyn Fn(u64) -> f64); 2] = [("wave", &wave), ("jitter", &jitter)];
    for (what, rate) in rates {
        let (mut within, mut sum) = (0, 0.0);
        for seed in 0..100 {
            let outcome = simulate(rate, 30, seed * 977 + 5);
            let error = outcome.estimate.value - outcome.truth;
            sum += error / outcome.truth;
            within +=
                u32::from(error.abs() <= outcome.estimate.half_width_95(outcome.windows.len()));
        }
        assert!(within >= 90, "{what}: {within} of 100 within their error");
        assert!(
            (sum / 100.0).abs() < 0.02,
            "{what}: off by {} in the mean",
            sum / 100.0
        );
    }
}

/// What the estimate cannot do, as docs/probes.md says: where a busy target hits much at
/// one time and little at another, the probes take more of the one, which counts less.
#[test]
fn phases_of_a_busy_target_that_hit_more_count_too_little() {
    let phases = |at: u64| {
        if (at / (900 * MS)).is_multiple_of(2) {
            600e3
        } else {
            0.0
        }
    };
    let outcome = simulate(&phases, 60, 3);
    let ratio = outcome.estimate.value / outcome.truth;
    assert!((0.80..0.98).contains(&ratio), "{ratio}");
}

#[test]
fn the_first_window_is_tiny_and_the_share_of_none_is_exceeded_by_plan() {
    let mut controller = Controller::new(Budget::Share(0.01), COSTS, 7, 5 * S);
    let first = controller.next(5 * S);
    assert_eq!(
        (first.number, first.length_ns, first.whole),
        (1, FIRST_NS, false)
    );
    assert!(first.slot_begins_ns >= 5 * S && first.slot_begins_ns < 5 * S + SLOT_NS);
    assert!(first.opens_ns >= first.slot_begins_ns);
    let allowed_ns = allowance_ns(0.01, SLOT_NS);
    assert!((first.spend_ns as f64) < allowed_ns / 2.0);
    // As many slots as a period can touch come to no more than the budget.
    let most = (PERIOD_NS / SLOT_NS + 1) as f64 * allowed_ns;
    assert!(most <= 0.01 * PERIOD_NS as f64);
}

#[test]
fn what_was_taken_too_much_is_made_up_for() {
    let mut controller = Controller::new(Budget::Share(0.01), COSTS, 7, 0);
    let plan = controller.next(0);
    let taken_ns = 10.0 * allowance_ns(0.01, SLOT_NS);
    controller.closed(&Closed {
        plan,
        opened_ns: plan.opens_ns,
        ended_ns: plan.opens_ns + plan.length_ns,
        charged_ns: taken_ns as u64,
        outside_ns: 0,
        switched: true,
        spent: true,
    });
    let next = controller.next(plan.opens_ns + plan.length_ns);
    let slots = (next.slot_begins_ns - plan.slot_begins_ns) / SLOT_NS;
    assert!(slots >= 9, "{slots}");
    assert!(controller.skipped() >= 8);
}

#[test]
fn without_a_budget_slots_follow_each_other() {
    let mut controller = Controller::new(Budget::Unlimited, COSTS, 7, 3);
    let first = controller.next(3);
    let second = controller.next(100 * MS);
    assert_eq!(
        (first.opens_ns, first.spend_ns, first.whole),
        (3, u64::MAX, true)
    );
    assert_eq!(second.opens_ns, first.opens_ns + first.length_ns);
    assert_eq!(controller.rate(), None);
}

#[test]
fn what_is_owed_is_made_up_for_by_a_slot_without_a_window() {
    let mut controller = Controller::new(Budget::Share(0.01), COSTS, 1, 0);
    let over = |plan: Plan, charged_ns| Closed {
        plan,
        opened_ns: plan.opens_ns,
        ended_ns: plan.opens_ns + plan.length_ns,
        charged_ns,
        outside_ns: 0,
        switched: false,
        spent: false,
    };
    let first = controller.next(0);
    controller.closed(&over(first, 0));
    let whole = controller.next(first.slot_begins_ns + first.slot_ns);
    assert!(whole.whole && !controller.owes(), "{whole:?}");
    // Its share is a little less.
    controller.closed(&over(whole, 22 * MS / 10));
    assert!(controller.owes());
    let ends_ns = whole.slot_begins_ns + whole.slot_ns;
    let next = controller.next(ends_ns);
    assert_eq!(next.slot_begins_ns, ends_ns + whole.slot_ns, "{next:?}");
    assert!(!controller.owes());
}
