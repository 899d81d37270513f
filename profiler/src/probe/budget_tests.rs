//! Simulated targets, held to their budget: whatever they do, no period may hold more
//! than its share, and what the windows say must be the truth.

use super::super::estimate::{Estimate, Estimator, Weight};
use super::*;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
const COSTS: Costs = Costs {
    trap_ns: 650,
    switch_ns: 50_000,
};

/// A target that hits probes at a rate which changes from moment to moment.
struct Simulated<'a> {
    /// Hits a second at a time, in nanoseconds.
    rate: &'a dyn Fn(u64) -> f64,
    /// What a hit takes, which slows the target down as well: it has so many CPUs.
    cpus: f64,
}

/// What became of it.
struct Outcome {
    /// When something was charged, and how much.
    charges: Vec<(u64, f64)>,
    watched_ns: u64,
    estimate: Estimate,
    windows: u64,
    spent: u64,
    skipped: u64,
    /// The hits there were in the slots of the windows.
    truth: f64,
}

const STEP_NS: u64 = MS / 20;

impl Simulated<'_> {
    /// Hits within a step, without and with probes on.
    fn hits(&self, at_ns: u64) -> (f64, f64) {
        let rate = (self.rate)(at_ns);
        let most = self.cpus / (COSTS.trap_ns as f64 / 1e9);
        // A target that has the CPU for it does as much as before.
        let with = rate.min(rate * most / (rate + most));
        let step_s = STEP_NS as f64 / 1e9;
        (rate * step_s, with * step_s)
    }

    fn run(&self, share: f64, seconds: u64, seed: u64) -> Outcome {
        let mut controller = Controller::new(Budget::Share(share), COSTS, seed, 0);
        let mut outcome = Outcome {
            charges: Vec::new(),
            watched_ns: 0,
            estimate: Estimator::default().estimate(1),
            windows: 0,
            spent: 0,
            skipped: 0,
            truth: 0.0,
        };
        let mut total = Estimator::default();
        let mut now_ns = 0;
        let mut on = false;
        while now_ns < seconds * S {
            let plan = controller.next(now_ns);
            let (closed, seen) = self.watch(&plan, now_ns, &mut on, &mut outcome.charges);
            let weight = Weight {
                index: outcome.windows,
                slot_ns: plan.slot_ns,
                watched_ns: closed.watched_ns(),
            };
            // The target does less while it is watched; what it would have done is
            // not what a window can say, so the truth is taken as it was seen.
            total.add(&weight, seen);
            outcome.windows += 1;
            outcome.spent += u64::from(closed.spent);
            outcome.watched_ns += closed.watched_ns();
            let slot = plan.slot_begins_ns..plan.slot_begins_ns + plan.slot_ns;
            let steps = slot.step_by(STEP_NS as usize);
            outcome.truth += steps.map(|at| self.hits(at).1).sum::<f64>();
            controller.closed(&closed);
            now_ns = closed.ended_ns.max(now_ns);
        }
        outcome.estimate = total.estimate(outcome.windows);
        outcome.skipped = controller.skipped();
        outcome
    }

    /// Watches a window as the kernel would, and says what was seen.
    fn watch(
        &self,
        plan: &Plan,
        now_ns: u64,
        on: &mut bool,
        charges: &mut Vec<(u64, f64)>,
    ) -> (Closed, f64) {
        let opened_ns = plan.opens_ns.max(now_ns);
        let closes_ns = (opened_ns + plan.length_ns).min(plan.slot_begins_ns + plan.slot_ns);
        let switched = !*on;
        let (mut charged, mut seen, mut at_ns) = (0.0, 0.0, opened_ns);
        if switched {
            charges.push((at_ns, COSTS.switch_ns as f64));
        }
        while at_ns < closes_ns && charged < plan.spend_ns as f64 {
            let hits = self.hits(at_ns).1;
            seen += hits;
            charged += hits * COSTS.trap_ns as f64;
            charges.push((at_ns, hits * COSTS.trap_ns as f64));
            at_ns += STEP_NS;
        }
        let spent = at_ns < closes_ns;
        let (ended_ns, inside) = (at_ns, charged);
        *on = plan.whole && !spent;
        if !*on {
            let short = ended_ns - opened_ns <= SHORT_NS;
            let tail_ns = if short { SHORT_TAIL_NS } else { LONG_TAIL_NS };
            while at_ns < ended_ns + tail_ns {
                let charge = self.hits(at_ns).1 * COSTS.trap_ns as f64;
                charged += charge;
                charges.push((at_ns, charge));
                at_ns += STEP_NS;
            }
        }
        let closed = Closed {
            plan: *plan,
            opened_ns,
            ended_ns,
            charged_ns: charged as u64,
            outside_ns: (charged - inside) as u64,
            switched,
            spent,
        };
        (closed, seen)
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
    Simulated { rate, cpus: 2.0 }.run(0.01, seconds, seed)
}

#[test]
fn a_target_that_hits_seldom_is_watched_all_the_time() {
    let outcome = simulate(&|_| 5_000.0, 60, 1);
    assert!(outcome.worst() <= 0.01, "{}", outcome.worst());
    let share = outcome.watched_ns as f64 / (60.0 * S as f64);
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
        assert!(worst > 0.003, "{rate}: only {worst} is used");
        assert!(outcome.off() < 0.02, "{rate}: {}", outcome.off());
        let watched = outcome.watched_ns as f64 / (60.0 * S as f64);
        assert!(watched > 0.001, "{rate}: {watched}");
    }
}

#[test]
fn whatever_the_target_does_no_period_holds_more() {
    let noise = |at_ns: u64, every: u64| {
        let mut dice = Dice(at_ns / every);
        dice.below(1000) as f64 / 1000.0
    };
    let rates: [(&str, &dyn Fn(u64) -> f64); 5] = [
        ("bursts", &|at| {
            if at / (700 * MS) % 5 == 0 { 2e6 } else { 100.0 }
        }),
        ("in step with slots", &|at| {
            if at / (125 * MS) % 2 == 0 { 2e6 } else { 0.0 }
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
    let wave = |at: u64| 400e3 * (1.2 + (at as f64 / 3.7e9).sin());
    let jitter = |at: u64| {
        let mut dice = Dice(at / (7 * MS));
        600e3 * (dice.below(1000) as f64 / 500.0)
    };
    let rates: [(&str, &dyn Fn(u64) -> f64); 2] = [("wave", &wave), ("jitter", &jitter)];
    for (what, rate) in rates {
        let (mut within, mut sum) = (0, 0.0);
        for seed in 0..40 {
            let outcome = simulate(rate, 30, seed * 977 + 5);
            let error = outcome.estimate.value - outcome.truth;
            sum += error / outcome.truth;
            within += u32::from(error.abs() <= outcome.estimate.half_width_95(outcome.windows));
        }
        assert!(within >= 36, "{what}: {within} of 40 within their error");
        assert!(
            (sum / 40.0).abs() < 0.02,
            "{what}: off by {} in the mean",
            sum / 40.0
        );
    }
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
