//! What probes take of a program that has a CPU for itself: turns under them in some ways,
//! and under nothing, which is the noise. How goprof is asked for probes is for others
//! to know.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::Bench;
use super::process::Target;
use super::report::Figure;
use super::stats::{Shuffle, Summary};
use super::turns::{Interleaved, Ratios, Turn};

/// How long before a turn goprof begins: probes are calibrated first, and what they do is
/// learnt in the first windows.
const LEAD: Duration = Duration::from_secs(2);

/// How often each way has its turn.
const ROUNDS: usize = 3;

/// How long turns are.
#[derive(Debug, Clone, Copy)]
pub struct Lengths {
    /// Under probes: as long as what a budget is for.
    pub turn: Duration,
    /// Under none.
    pub plain: Duration,
}

impl Lengths {
    /// Quick ones see a part of what a budget is for.
    pub fn of(bench: &Bench) -> Self {
        let (turn, plain) = if bench.quick { (3, 2) } else { (10, 4) };
        Self {
            turn: Duration::from_secs(turn),
            plain: Duration::from_secs(plain),
        }
    }

    /// A turn of a program beside which goprof has just begun.
    pub fn turn_of(&self, target: &mut Target) -> Result<Turn> {
        sleep(LEAD);
        Turn::of(target, self.turn)
    }

    /// The same of one that may have nothing to do.
    pub fn turn_of_idle(&self, target: &mut Target) -> Result<Turn> {
        sleep(LEAD);
        Turn::of_idle(target, self.turn)
    }

    /// How long goprof is to stay, for such a turn.
    pub fn recording(&self) -> Duration {
        self.turn + LEAD + Duration::from_millis(500)
    }
}

/// How often each way is to have its turn.
pub fn rounds(bench: &Bench) -> usize {
    let usual = if bench.quick { 1 } else { ROUNDS };
    bench.rounds.unwrap_or(usual)
}

/// What goprof said of a turn.
#[derive(Debug, Clone, Copy)]
pub struct Said {
    /// How much of the time was watched.
    pub watched_share: f64,
    /// How often probes were hit.
    pub hits: f64,
    /// What was charged, of one CPU.
    pub charged_share: f64,
}

/// A program under probes in some ways, in turns.
#[derive(Debug)]
pub struct Series {
    load: Interleaved,
    lengths: Lengths,
    shuffle: Shuffle,
    ways: Vec<(Ratios, Vec<Said>)>,
    noise: Ratios,
}

impl Series {
    /// Starts the program, which is to have turns in so many ways.
    pub fn start(program: &mut Command, lengths: Lengths, ways: usize) -> Result<Self> {
        Ok(Self {
            load: Interleaved::start(program, lengths.plain)?,
            lengths,
            shuffle: Shuffle::default(),
            ways: (0..ways).map(|_| Default::default()).collect(),
            noise: Ratios::default(),
        })
    }

    /// A turn in each way and one under nothing, in an order that is drawn anew.
    pub fn round(
        &mut self,
        mut under: impl FnMut(usize, &mut Target) -> Result<(Turn, Said)>,
    ) -> Result<()> {
        let lengths = self.lengths;
        for index in self.shuffle.order(self.ways.len() + 1) {
            match self.ways.get_mut(index) {
                Some((ratios, all_said)) => {
                    let turn = |target: &mut Target| under(index, target);
                    all_said.push(self.load.beside(ratios, turn)?);
                }
                None => {
                    let turn = |target: &mut Target| Ok((lengths.turn_of(target)?, ()));
                    self.load.beside(&mut self.noise, turn)?;
                }
            }
        }
        Ok(())
    }

    /// Work a second of the clock without probes.
    pub fn rate(&self) -> f64 {
        self.load.latest().by_clock()
    }

    /// What came of one way, most important first; `goal` is for what it takes.
    pub fn figures(
        &self,
        way: usize,
        (id, what): (&str, &str),
        goal: Option<&'static str>,
    ) -> Vec<Figure> {
        let Some((ratios, all_said)) = self.ways.get(way) else {
            return Vec::new();
        };
        let mut figures: Vec<Figure> = losses(ratios, (id, what)).into();
        if let Some(goal) = goal {
            figures = figures.into_iter().map(|of| of.goal(goal)).collect();
        }
        let mut add = |part: &str, label: &str, unit, value: fn(&Said) -> f64| {
            let summary = Summary::of(all_said.iter().map(value));
            let (id, what) = (format!("{id}.{part}"), format!("{what}: {label}"));
            figures.push(Figure::new(id, &what, unit, summary));
        };
        add("charged", "charged, of one CPU", "%", |said| {
            said.charged_share * 100.0
        });
        add("watched", "of the time watched", "%", |said| {
            said.watched_share * 100.0
        });
        add("hits", "hits", "hits", |said| said.hits);
        figures
    }

    /// What turns under nothing seem to take.
    pub fn noise_figures(&self, id: &str, what: &str) -> [Figure; 2] {
        losses(&self.noise, (&format!("{id}.noise"), what))
    }
}

/// What is lost: CPU time, beyond what the same work takes else, as a share of one CPU, and
/// work by the clock.
fn losses(ratios: &Ratios, (id, what): (&str, &str)) -> [Figure; 2] {
    let cpu = ratios.by_cpu.iter().zip(&ratios.cpus);
    let cpu = cpu.map(|(ratio, cpus)| (1.0 - ratio) * cpus * 100.0);
    let clock = ratios.by_clock.iter().map(|ratio| (1.0 - ratio) * 100.0);
    let figure = |part: &str, label: &str, summary| {
        let (id, what) = (format!("{id}.{part}"), format!("{what}: {label}"));
        Figure::new(id, &what, "%", summary)
    };
    [
        figure("loss_cpu", "CPU time lost, of one CPU", Summary::of(cpu)),
        figure("loss_clock", "work lost, by the clock", Summary::of(clock)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_what_is_missing() {
        let ratios = Ratios {
            by_clock: vec![0.9],
            by_cpu: vec![0.8],
            cpus: vec![0.5],
        };
        let [cpu, clock] = losses(&ratios, ("probes", "some"));
        assert!((cpu.summary.median - 10.0).abs() < 1e-9, "{cpu:?}");
        assert!((clock.summary.median - 10.0).abs() < 1e-9, "{clock:?}");
        assert_eq!(clock.id, "probes.loss_clock");
    }
}
