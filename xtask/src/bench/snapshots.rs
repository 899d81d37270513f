//! What it costs a busy program that its goroutines are looked at once a second, from
//! outside and by its own endpoint, where it wants every CPU and where one is free; and
//! how long goprof takes to list them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Bench;
use super::apart::Apart;
use super::process::{Cost, Profiler, Target, cost};
use super::report::{Figure, Section};
use super::stats::{Shuffle, Summary};
use super::turns::{Interleaved, Ratios, Turn};

/// How many goroutines wait in the busy programs.
const CROWDS: [u64; 2] = [1_000, 100_000];
/// How many in those that are listed while they do nothing else.
const LISTED: [(u64, &str); 2] = [(100_000, "100,000"), (1_000_000, "1,000,000")];
/// How often they are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How long goprof has until it is at work.
const LEAD: Duration = Duration::from_millis(700);
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Who looks once a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// How far apart two equal configurations come out.
    Nobody,
    Wall,
    Stats,
    /// A new process each time, as is the next.
    List,
    Heap,
    OwnEndpoint,
}

const LOOKS: [Look; 6] = [
    Look::Nobody,
    Look::Wall,
    Look::Stats,
    Look::List,
    Look::Heap,
    Look::OwnEndpoint,
];

impl Look {
    fn id(self) -> &'static str {
        match self {
            Look::Nobody => "noise",
            Look::Wall => "wall",
            Look::Stats => "stats",
            Look::List => "list",
            Look::Heap => "heap",
            Look::OwnEndpoint => "own",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Look::Nobody => "noise: nothing over nothing",
            Look::Wall => "goprof record -e wall -r 1",
            Look::Stats => "goprof stats --every 1s",
            Look::List => "goprof goroutines, each second",
            Look::Heap => "goprof record -e heap, each second",
            Look::OwnEndpoint => "its own /debug/pprof/goroutine",
        }
    }

    /// Adds to goprof's command what has it look at a process in this way.
    fn asks_goprof(self, goprof: &mut Command, bench: &Bench, pid: u32) {
        let pid = pid.to_string();
        let mut record = |args: &[&str]| {
            let output = bench.folder.join("snapshots.pb.gz");
            goprof.arg("record").args(args).args(["-p", &pid, "-o"]);
            goprof.arg(output);
        };
        match self {
            Look::Nobody | Look::OwnEndpoint => {}
            Look::Wall => record(&["-e", "wall", "-r", "1"]),
            Look::Heap => record(&["-e", "heap"]),
            Look::Stats => {
                goprof.args(["stats", "--every", "1s", "-p", &pid]);
            }
            Look::List => {
                goprof.args(["goroutines", "-p", &pid]);
            }
        }
    }
}

/// Turns under one who looks, over the turns right before and after.
#[derive(Debug, Default)]
struct Measured {
    ratios: Ratios,
    /// CPU time of goprof a second, in milliseconds.
    own_ms: Vec<f64>,
    /// How long the program took to answer, in milliseconds.
    answer_ms: Vec<f64>,
}

/// A busy program, and what was measured of it.
struct Crowd {
    count: u64,
    /// Where it has room beside it; else it wants every CPU.
    apart: Option<Apart>,
    load: Interleaved,
    address: String,
    measured: [Measured; LOOKS.len()],
}

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let program = bench.build_go("snapshot_load")?;
    let (rounds, turn) = match bench.quick {
        true => (1, Duration::from_secs(3)),
        false => (4, Duration::from_secs(4)),
    };
    let apart = Apart::of(bench);
    if let Err(why) = &apart {
        bench.progress(&format!("snapshots: no rows with a CPU free: {why:#}"));
    }
    let (mut figures, mut rates) = (Vec::new(), Vec::new());
    for place in [None].into_iter().chain(apart.ok().map(Some)) {
        for count in CROWDS {
            let crowd = Crowd::start(&program, count, place, turn)?;
            let crowd = crowd.measure_rounds(bench, rounds, turn)?;
            rates.push(format!("{:.0}", crowd.load.latest().by_clock() / 1000.0));
            figures.extend(crowd.figures());
        }
    }
    for (count, words) in LISTED {
        bench.progress(&format!("snapshots: a list of {count}"));
        figures.extend(listing(bench, &program, count, words)?);
    }
    Ok(Section {
        title: "A look at goroutines once a second",
        method: format!(
            "A program that is busy on every CPU beside \
             1,000 and 100,000 goroutines that wait for channels, in select, for a mutex and \
             sleeping, at 8 depths, one in ten with labels. {rounds} turns of {} s of each kind, \
             in an order drawn anew each round, each over the mean of the turns right before \
             and after it in which nobody looks. By the clock what goprof itself takes is in it, \
             as it takes it of the CPUs that the program wants. With a CPU free the program \
             has one, with `GOMAXPROCS=1`, and goprof another (`taskset`). In the order of the rows, \
             {} thousand pieces of work a second. Lists: `goprof goroutines` of a program that does \
             nothing but wait, start to end.",
            turn.as_secs(),
            rates.join(", ")
        ),
        figures,
    })
}

impl Crowd {
    fn start(program: &Path, count: u64, apart: Option<Apart>, turn: Duration) -> Result<Self> {
        let mut command = match &apart {
            None => Command::new(program),
            Some(apart) => apart.program(program),
        };
        if apart.is_some() {
            command.env("GOMAXPROCS", "1");
        }
        let mut load = Interleaved::start(waiting(&mut command, count, true), turn)?;
        let address = load.target().ask("address")?;
        let address = address.trim().trim_start_matches("done ").to_owned();
        Ok(Self {
            count,
            apart,
            load,
            address,
            measured: Default::default(),
        })
    }

    /// Measures each so many times.
    fn measure_rounds(mut self, bench: &Bench, rounds: usize, turn: Duration) -> Result<Self> {
        let mut shuffle = Shuffle::default();
        for round in 1..=rounds {
            bench.progress(&format!(
                "snapshots: {} goroutines{}, round {round} of {rounds}",
                self.count,
                self.place_words()
            ));
            for index in shuffle.order(LOOKS.len()) {
                self.measure(bench, index, turn)?;
            }
        }
        Ok(self)
    }

    fn place_words(&self) -> &'static str {
        match self.apart {
            None => "",
            Some(_) => ", a CPU free",
        }
    }

    /// A turn under one who looks, and one without.
    fn measure(&mut self, bench: &Bench, index: usize, turn: Duration) -> Result<()> {
        let (look, address) = (LOOKS[index], self.address.as_str());
        let goprof = match self.apart {
            None => Command::new(&bench.goprof),
            Some(apart) => apart.beside(&bench.goprof),
        };
        let Measured {
            ratios,
            own_ms,
            answer_ms,
        } = &mut self.measured[index];
        self.load.beside(ratios, |target| {
            let mut goprof = goprof;
            look.asks_goprof(&mut goprof, bench, target.pid());
            let with = match look {
                Look::Nobody => Turn::of(target, turn)?,
                Look::Wall | Look::Stats => {
                    let profiler = Profiler::start(&mut goprof)?;
                    sleep(LEAD);
                    let with = Turn::of(target, turn)?;
                    let cost = profiler.stop()?;
                    own_ms.push(cost.cpu_s * 1e3 / cost.wall_s);
                    with
                }
                Look::List | Look::Heap => {
                    let (with, costs) = turn_beside(target, turn, || cost(&mut goprof))?;
                    let cpu_s: f64 = costs.iter().map(|cost| cost.cpu_s).sum();
                    own_ms.push(cpu_s * 1e3 / turn.as_secs_f64());
                    answer_ms.extend(costs.iter().map(|cost| cost.wall_s * 1e3));
                    with
                }
                Look::OwnEndpoint => {
                    let (with, took) = turn_beside(target, turn, || ask(address))?;
                    answer_ms.extend(took.iter().map(|took| took.as_secs_f64() * 1e3));
                    with
                }
            };
            Ok((with, ()))
        })
    }

    fn figures(&self) -> Vec<Figure> {
        let count = self.count;
        let (place, words) = (
            if self.apart.is_some() { ".apart" } else { "" },
            self.place_words(),
        );
        let mut figures = Vec::new();
        let mut add = |look: Look, part: &str, label: &str, unit, runs: &[f64]| {
            if !runs.is_empty() {
                let summary = Summary::of(runs.iter().copied());
                let id = format!("snapshots.{count}{place}.{}.{part}", look.id());
                let what = format!("{count} goroutines{words}, {}{label}", look.what());
                figures.push(Figure::new(id, &what, unit, summary));
            }
        };
        for (look, of) in LOOKS.into_iter().zip(&self.measured) {
            add(
                look,
                "throughput",
                ": work by the clock",
                "ratio",
                &of.ratios.by_clock,
            );
            if self.apart.is_none() {
                let label = ": work per CPU second of the program";
                add(look, "by_cpu", label, "ratio", &of.ratios.by_cpu);
            }
            let own = ": goprof's own CPU time a second, start and end included";
            add(look, "own", own, "ms", &of.own_ms);
            add(look, "answer", ": time of each", "ms", &of.answer_ms);
        }
        figures
    }
}

fn waiting(program: &mut Command, count: u64, is_busy: bool) -> &mut Command {
    program.arg(format!("-goroutines={count}"));
    program.arg(format!("-busy={is_busy}"))
}

/// A turn beside which something is done once a second, and what each time came to.
fn turn_beside<T: Send>(
    target: &mut Target,
    turn: Duration,
    mut act: impl FnMut() -> Result<T> + Send,
) -> Result<(Turn, Vec<T>)> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let actor = scope.spawn(|| {
            let mut results = Vec::new();
            let mut next = Instant::now();
            while !is_over.load(Ordering::Relaxed) {
                if Instant::now() < next {
                    sleep(Duration::from_millis(10));
                    continue;
                }
                results.push(act()?);
                next += EVERY;
            }
            Ok(results)
        });
        let with = Turn::of(target, turn);
        is_over.store(true, Ordering::Relaxed);
        let results: Result<Vec<T>> = match actor.join() {
            Ok(results) => results,
            Err(_) => bail!("who looks at the program panicked"),
        };
        Ok((with?, results?))
    })
}

/// Has the program write its own goroutine profile; returns how long that took.
fn ask(address: &str) -> Result<Duration> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).context("connect to the program")?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(b"GET /debug/pprof/goroutine HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if !answer.starts_with(b"HTTP/1.0 200") {
        bail!("{address} has no goroutine profile");
    }
    Ok(begun.elapsed())
}

/// Lists of a program that only waits.
fn listing(bench: &Bench, program: &Path, count: u64, words: &str) -> Result<Vec<Figure>> {
    let target = Target::start(waiting(&mut Command::new(program), count, false))?;
    let is_large = count > 100_000;
    let runs = match (bench.quick, is_large) {
        (true, _) => 2,
        (false, true) => 3,
        (false, false) => 11,
    };
    let list = || {
        let mut goprof = Command::new(&bench.goprof);
        cost(goprof.args(["goroutines", "-p", &target.pid().to_string()]))
    };
    // The program's binary is read from disk.
    list()?;
    let costs: Vec<Cost> = (0..runs).map(|_| list()).collect::<Result<_>>()?;
    let figure = |part: &str, label: &str, unit, of: fn(&Cost) -> f64| {
        let id = format!("snapshots.list.{count}.{part}");
        let what = format!("goprof goroutines, {words}: {label}");
        Figure::new(id, &what, unit, Summary::of(costs.iter().map(of)))
    };
    let time = figure("time", "start to end", "ms", |cost| cost.wall_s * 1e3);
    let time = match is_large {
        true => time,
        false => time.goal("below 300"),
    };
    Ok(vec![
        time,
        figure("cpu", "CPU time", "ms", |cost| cost.cpu_s * 1e3),
        figure("memory", "most resident memory", "MiB", |cost| {
            cost.peak_mib
        }),
    ])
}
