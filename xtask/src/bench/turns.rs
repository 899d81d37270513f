//! Turns of a program that counts its work (tests/go/internal/turns): what it got done in
//! one, over the turns right before and after it. What goes on beside it is for others
//! to know.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::Target;

/// What a program did in a turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Turn {
    /// How much.
    pub pieces: f64,
    /// How long it took, by the clock.
    pub clock_s: f64,
    /// And the CPU time.
    pub cpu_s: f64,
}

impl Turn {
    /// Has a program that is busy answer how much it did.
    pub fn of(target: &mut Target, length: Duration) -> Result<Self> {
        Self::of_idle(target, length)?.busy()
    }

    /// The turn, if anything was done in it.
    pub fn busy(self) -> Result<Self> {
        if self.pieces <= 0.0 || self.cpu_s <= 0.0 {
            bail!("the measured program did nothing in {} s", self.clock_s);
        }
        Ok(self)
    }

    /// The same of one that may have nothing to do.
    pub fn of_idle(target: &mut Target, length: Duration) -> Result<Self> {
        Self::parse(&target.ask(&Self::request(length))?)
    }

    /// What the program is to be asked.
    pub fn request(length: Duration) -> String {
        format!("measure {}ms", length.as_millis())
    }

    /// From "done PIECES NANOSECONDS CPU-NANOSECONDS", which is followed by the number of
    /// wrong results where the program looks for them.
    pub fn parse(answer: &str) -> Result<Self> {
        let words = answer.trim().trim_start_matches("done ").split(' ');
        let numbers: Vec<f64> = words
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("the measured program answered `{}`", answer.trim()))?;
        match numbers[..] {
            [_, _, _, wrong] if wrong > 0.0 => bail!("the program got {wrong} wrong results"),
            [pieces, clock_ns, cpu_ns] | [pieces, clock_ns, cpu_ns, _] if clock_ns > 0.0 => {
                Ok(Self {
                    pieces,
                    clock_s: clock_ns / 1e9,
                    cpu_s: cpu_ns / 1e9,
                })
            }
            _ => bail!("the measured program answered `{}`", answer.trim()),
        }
    }

    /// Work a second of the clock.
    pub fn by_clock(&self) -> f64 {
        self.pieces / self.clock_s
    }

    /// And a second of CPU time.
    pub fn by_cpu(&self) -> f64 {
        self.pieces / self.cpu_s
    }
}

/// Work in turns, each over the mean of those right before and after it.
#[derive(Debug, Default)]
pub struct Ratios {
    /// A second of the clock.
    pub by_clock: Vec<f64>,
    /// A second of CPU time.
    pub by_cpu: Vec<f64>,
    /// How many CPUs the program had meanwhile.
    pub cpus: Vec<f64>,
}

impl Ratios {
    fn push(&mut self, turn: Turn, around: [Turn; 2]) {
        let over = |of: fn(&Turn) -> f64| of(&turn) * 2.0 / around.iter().map(of).sum::<f64>();
        self.by_clock.push(over(Turn::by_clock));
        self.by_cpu.push(over(Turn::by_cpu));
        self.cpus.push(turn.cpu_s / turn.clock_s);
    }
}

/// A busy program whose turns beside something have plain ones around them.
#[derive(Debug)]
pub struct Interleaved {
    target: Target,
    plain: Duration,
    before: Turn,
}

impl Interleaved {
    /// Starts it. `plain` is the length of turns with nothing beside them.
    pub fn start(program: &mut Command, plain: Duration) -> Result<Self> {
        let mut target = Target::start(program)?;
        // The first has the growth of the heap in it.
        Turn::of(&mut target, plain)?;
        let before = Turn::of(&mut target, plain)?;
        Ok(Self {
            target,
            plain,
            before,
        })
    }

    /// Adds to `ratios` what `turn` gives, a turn beside something, and gives what else
    /// came of that.
    pub fn beside<T>(
        &mut self,
        ratios: &mut Ratios,
        turn: impl FnOnce(&mut Target) -> Result<(Turn, T)>,
    ) -> Result<T> {
        let (with, what) = turn(&mut self.target)?;
        let after = Turn::of(&mut self.target, self.plain)?;
        ratios.push(with, [self.before, after]);
        self.before = after;
        Ok(what)
    }

    /// The last plain turn.
    pub fn latest(&self) -> Turn {
        self.before
    }

    /// The program, to ask it for something else.
    pub fn target(&mut self) -> &mut Target {
        &mut self.target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_answer_of_the_program() {
        let turn = Turn::parse("done 5000 500000000 900000000\n").unwrap();
        assert_eq!((turn.pieces, turn.clock_s, turn.cpu_s), (5000.0, 0.5, 0.9));
        assert_eq!((turn.by_clock(), turn.by_cpu().round()), (1e4, 5556.0));
        assert!(Turn::parse("done 5000 500000000 900000000 0").is_ok());
        let idle = Turn::parse("done 0 500000000 0").unwrap();
        assert!(idle.busy().is_err() && turn.busy().is_ok());
        for answer in [
            "",
            "done",
            "done 5000 1",
            "done 5000 0 1",
            "done five 1 1",
            "done 5000 1 1 3",
            "done 1 1 1 0 1",
        ] {
            assert!(Turn::parse(answer).is_err(), "{answer:?}");
        }
    }

    #[test]
    fn a_turn_counts_by_those_around_it() {
        let of = |pieces, cpu_s| Turn {
            pieces,
            clock_s: 2.0,
            cpu_s,
        };
        let mut ratios = Ratios::default();
        ratios.push(of(90.0, 2.0), [of(80.0, 1.0), of(120.0, 1.0)]);
        assert_eq!(ratios.by_clock, [0.9]);
        assert_eq!(ratios.by_cpu, [0.45]);
        assert_eq!(ratios.cpus, [1.0]);
    }
}
