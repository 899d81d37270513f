//! What a hit of a probe takes on this machine, measured on a child of goprof's own
//! before any other process is probed: the CPU time of a small function with a probe
//! and without. And how long it takes to take one off, where each goes off by itself.

use std::{
    arch::global_asm,
    fs,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{means::Means, shares::Shares, uprobe_programs::UprobePrograms, uprobes::ProbeSet};
use crate::{
    gobinary::{PlaceInstruction, ProbePlace},
    process::{MapsLine, Object, parse_maps},
};

/// The hidden word by which goprof becomes the child.
pub const CHILD_ARGUMENT: &str = "probe-target";
/// The program that is measured: what every one does, and nothing else.
pub const PROGRAM: &str = "probe_count";
/// What a hit is taken for where it could not be measured: more than any machine
/// took, of those that were.
pub const DEFAULT_TRAP_NS: u64 = 2_000;
/// How long it is taken to take to take one off by itself where that could not be measured.
pub const DEFAULT_CLOSE_NS: u64 = 100_000_000;

/// How often a probe is put on and taken off to see how long that takes.
const CLOSES: usize = 3;

/// Calls in a round with the probe on, and how many rounds.
const HITS: u64 = 1_000;
const ROUNDS: usize = 15;
/// Calls in a round without: they take some nanoseconds each.
const CALLS: u64 = 100_000;

/// What a hit takes, in nanoseconds of CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HitCost {
    /// In the middle round.
    pub median_ns: u64,
    /// In the round that was a quarter from the cheapest.
    pub low_ns: u64,
    /// In the round that was a quarter from the dearest.
    pub high_ns: u64,
    /// How long it takes to take a probe off by itself, in the middle of some times; 0
    /// where all go off at once.
    pub close_ns: u64,
}

// The function that is called: its first instruction is one that the kernel
// emulates, as those of places in Go's functions are.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl goprof_probe_target",
    "goprof_probe_target:",
    "push rbp",
    "pop rbp",
    "ret",
);
#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl goprof_probe_target",
    "goprof_probe_target:",
    "b.ls 1f",
    "1: ret",
);

unsafe extern "C" {
    fn goprof_probe_target();
}

/// Measures a hit, with `program` (goprof itself) as the child.
///
/// # Errors
/// The child cannot be started or probed, or the kernel counts other hits than it
/// made: some kernels before 6.10 see those of a process's first thread alone.
pub fn measure(program: &Path, programs: &UprobePrograms, shares: &mut Shares) -> Result<HitCost> {
    let mut target = Target::start(program)?;
    shares.insert(target.pid())?;
    let measured = target.measure(programs, shares);
    shares.remove(target.pid())?;
    measured.context("cannot measure what a probe's hit takes")
}

/// The child, at work.
struct Target {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    place: ProbePlace,
}

impl Target {
    fn start(program: &Path) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(CHILD_ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (requests, answers) = pipes.ok_or_else(|| anyhow!("a child without pipes"))?;
        let mut target = Self {
            child,
            requests,
            answers: BufReader::new(answers),
            place: ProbePlace {
                vaddr: 0,
                file_offset: 0,
                instruction: PlaceInstruction::PushFramePointer,
            },
        };
        target.place.file_offset = target.answer()?;
        Ok(target)
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn measure(&mut self, programs: &UprobePrograms, shares: &Shares) -> Result<HitCost> {
        let file = fs::File::open(format!("/proc/{}/exe", self.pid()))?;
        let object = Object::open(file, "goprof".to_owned())?;
        let mut set = ProbeSet::new(self.pid(), Arc::new(object));
        set.add(programs, PROGRAM, &[self.place])?;

        let bare_ns = self.call(CALLS)? as f64 / CALLS as f64;
        let attached = set.attach()?;
        // The first hits find nothing in the CPU's caches.
        self.call(HITS)?;
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let hit_ns = self.call(HITS)? as f64 / HITS as f64;
            rounds.push((hit_ns - bare_ns).max(1.0) as u64);
        }
        let close_ns = match programs.means() {
            // The rest is for the kernel to wait for.
            Means::Link => {
                drop(thread::spawn(move || drop(attached)));
                0
            }
            Means::Events(_) => {
                let mut times = vec![time(|| drop(attached))];
                for _ in 1..CLOSES {
                    let attached = set.attach()?;
                    times.push(time(|| drop(attached)));
                }
                times.sort_unstable();
                times[CLOSES / 2]
            }
        };
        let hits = shares.of(self.pid())?.hits;
        let made = HITS * (ROUNDS as u64 + 1);
        ensure!(
            hits == made,
            "the kernel counted {hits} hits of {made}: probes do not see all threads"
        );
        rounds.sort_unstable();
        Ok(HitCost {
            median_ns: rounds[ROUNDS / 2],
            low_ns: rounds[ROUNDS / 4],
            high_ns: rounds[ROUNDS * 3 / 4],
            close_ns,
        })
    }

    /// Has the function called so often, and says how many nanoseconds of CPU time
    /// that took.
    fn call(&mut self, times: u64) -> Result<u64> {
        writeln!(self.requests, "{times}").context("tell the child to begin")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<u64> {
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .context("hear from the child")?;
        let number = line.trim().parse();
        number.with_context(|| format!("the child said `{}`", line.trim()))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Either fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the child does: says where the function is, and calls it as often as it is
/// told to, until nobody is there to tell it. On a thread that is not its first, as
/// nearly all of a Go program are.
///
/// # Errors
/// Its mappings cannot be read.
pub fn serve() -> Result<()> {
    let thread = thread::Builder::new().spawn(serve_on_thread)?;
    thread.join().map_err(|_| anyhow!("the thread panicked"))?
}

fn serve_on_thread() -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{}", function_offset()?)?;
    output.flush()?;
    for line in io::stdin().lock().lines() {
        let times: u64 = line?.trim().parse().context("how often to call")?;
        let begun_ns = thread_time_ns();
        for _ in 0..times {
            // SAFETY: a function without arguments that changes nothing.
            unsafe { goprof_probe_target() };
        }
        writeln!(output, "{}", thread_time_ns().saturating_sub(begun_ns))?;
        output.flush()?;
    }
    Ok(())
}

/// Where the function is in the file.
fn function_offset() -> Result<u64> {
    let address = goprof_probe_target as *const () as u64;
    let maps = parse_maps(&fs::read("/proc/self/maps")?);
    let of = |line: &MapsLine| {
        let distance = address.checked_sub(line.start)?;
        (address < line.end).then_some(line.offset + distance)
    };
    let found = maps.iter().find_map(of);
    found.ok_or_else(|| anyhow!("the function is in no mapping"))
}

fn time(work: impl FnOnce()) -> u64 {
    let begun = Instant::now();
    work();
    u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn thread_time_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a structure of our own.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
