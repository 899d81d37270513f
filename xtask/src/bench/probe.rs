//! What the eBPF program takes per sample, as the kernel itself counts it
//! (`bpf_stats`). The runs that hit no wanted process are measured as well and
//! taken out.

use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Bench;
use super::process::{self, Profiler, Target};
use super::report::{Figure, Section};
use super::stats::{Shuffle, Summary};

/// Far above what anyone records with: more samples in less time, and the cost
/// of one does not depend on it.
const PROBE_RATE_HZ: u32 = 999;

/// The stacks to measure: their id, what they are, frames, extra arguments.
const STACKS: [(&str, &str, &str, &[&str]); 5] = [
    ("probe.10", "10 frames", "10", &[]),
    (
        "probe.10_labels",
        "10 frames, and 4 pprof labels",
        "10",
        &["-labels", "4"],
    ),
    ("probe.60", "60 frames", "60", &[]),
    (
        "probe.10_clobbered",
        "10 frames, frame pointer overwritten by assembly",
        "10",
        &["-clobber"],
    ),
    (
        "probe.60_clobbered",
        "60 frames, frame pointer overwritten by assembly",
        "60",
        &["-clobber"],
    ),
];

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let (rounds, interval) = if bench.quick {
        (2, Duration::from_secs(1))
    } else {
        (5, Duration::from_secs(5))
    };
    let program = bench.build_go("stack_depth")?;
    let _stats = enable_stats()?;
    let mut hits = STACKS.map(|_| Vec::new());
    let (mut misses, mut shares) = (Vec::new(), Vec::new());
    let mut shuffle = Shuffle::default();
    for round in 0..rounds {
        bench.progress(&format!("probe: round {} of {rounds}", round + 1));
        for index in shuffle.order(STACKS.len()) {
            let (_, _, frames, extra) = STACKS[index];
            let mut target = Command::new(&program);
            target.args(["-frames", frames]).args(extra);
            let taken = run(bench, &mut target, interval)?;
            hits[index].push(taken.hit_ns);
            misses.push(taken.miss_ns);
            shares.push(taken.hit_share);
        }
    }
    let mut figures: Vec<Figure> = STACKS
        .iter()
        .zip(hits)
        .map(|((id, what, ..), runs)| Figure::new(*id, what, "ns", Summary::of(runs)))
        .collect();
    figures.push(Figure::new(
        "probe.miss",
        "a tick in some other process",
        "ns",
        Summary::of(misses),
    ));
    figures.push(Figure::new(
        "probe.hit_share",
        "runs that were samples while measured",
        "ratio",
        Summary::of(shares),
    ));
    Ok(Section {
        title: "The eBPF program, per sample",
        method: format!(
            "bpf_stats of cpu_sample at {PROBE_RATE_HZ} Hz, target busy on every CPU for \
             {interval:?}, then frozen while another program is busy, which gives the cost of a \
             miss; hit = (all ns - misses x miss ns) / samples. The goroutine's id is always \
             taken. {rounds} rounds."
        ),
        figures,
    })
}

struct Taken {
    hit_ns: f64,
    miss_ns: f64,
    hit_share: f64,
}

/// What the kernel counted of a program so far.
#[derive(Debug, Clone, Copy)]
struct Runs {
    time_ns: u64,
    count: u64,
}

fn run(bench: &Bench, program: &mut Command, interval: Duration) -> Result<Taken> {
    let decoy = Target::start(program)?;
    decoy.freeze()?;
    let target = Target::start(program)?;
    let mut goprof = Command::new(&bench.goprof);
    goprof
        .args(["record", "-p", &target.pid().to_string()])
        .args(["-r", &PROBE_RATE_HZ.to_string(), "-o"])
        .arg(bench.folder.join("probe.pb.gz"));
    let goprof = Profiler::start(&mut goprof)?;
    goprof.wait_until_sampling()?;

    sleep(interval);
    target.freeze()?;
    // A thread stops when it next returns to user mode.
    sleep(Duration::from_millis(50));
    let sampled = runs(goprof.pid())?;
    decoy.thaw()?;
    sleep(Duration::from_millis(200));
    let before = runs(goprof.pid())?;
    sleep(interval / 2);
    let after = runs(goprof.pid())?;
    let said = goprof.stop()?.errors;
    // Those lost to a full ring were walked too, but then the count is not
    // what was reported.
    if !said.contains("; 0 lost") {
        bail!("goprof lost samples, which the measurement cannot tell from misses:\n{said}");
    }
    separate(sampled, before, after, process::samples(&said)?)
}

/// Splits the time of all runs into hits and misses. `samples` of the runs
/// until `sampled` were hits, those from `before` to `after` all misses.
fn separate(sampled: Runs, before: Runs, after: Runs, samples: u64) -> Result<Taken> {
    if samples == 0 || samples > sampled.count || after.count <= before.count {
        bail!(
            "the kernel counted {} runs of cpu_sample for {samples} samples, then {}",
            sampled.count,
            after.count - before.count.min(after.count)
        );
    }
    let miss_ns = (after.time_ns - before.time_ns) as f64 / (after.count - before.count) as f64;
    let missed_ns = (sampled.count - samples) as f64 * miss_ns;
    Ok(Taken {
        hit_ns: (sampled.time_ns as f64 - missed_ns) / samples as f64,
        miss_ns,
        hit_share: samples as f64 / sampled.count as f64,
    })
}

/// What the kernel counted of the perf-event program that `pid` has loaded.
fn runs(pid: u32) -> Result<Runs> {
    let info =
        process::perf_event_program(pid)?.context("goprof holds no program for perf events")?;
    let number = |key| {
        process::number(&info, key).with_context(|| format!("the kernel does not tell {key}"))
    };
    Ok(Runs {
        time_ns: number("run_time_ns")?,
        count: number("run_cnt")?,
    })
}

/// Makes the kernel time eBPF programs until the descriptor is closed, however
/// this process ends: no setting of the system is touched.
fn enable_stats() -> Result<OwnedFd> {
    // Of the kernel's uapi/linux/bpf.h; since Linux 5.8.
    const BPF_ENABLE_STATS: libc::c_int = 32;
    const BPF_STATS_RUN_TIME: u32 = 0;
    let attributes = BPF_STATS_RUN_TIME;
    // SAFETY: the kernel reads as many bytes of the attributes as it is told.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_ENABLE_STATS,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    let fd = i32::try_from(fd)?;
    if fd < 0 {
        return Err(std::io::Error::last_os_error())
            .context("make the kernel time eBPF programs (BPF_ENABLE_STATS, Linux 5.8 or later)");
    }
    // SAFETY: a descriptor just opened, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(time_ns: u64, count: u64) -> Runs {
        Runs { time_ns, count }
    }

    #[test]
    fn misses_are_taken_out() {
        // 90 hits of 1000 ns and 10 misses of 100 ns; then 50 misses.
        let sampled = runs(91_000, 100);
        let taken = separate(sampled, sampled, runs(96_000, 150), 90).unwrap();
        assert_eq!((taken.hit_ns, taken.miss_ns), (1000.0, 100.0));
        assert_eq!(taken.hit_share, 0.9);
    }

    #[test]
    fn counts_that_contradict_each_other_are_refused() {
        let sampled = runs(91_000, 100);
        assert!(separate(sampled, sampled, runs(96_000, 150), 0).is_err());
        assert!(separate(sampled, sampled, runs(96_000, 150), 101).is_err());
        assert!(separate(sampled, sampled, sampled, 90).is_err());
    }
}
