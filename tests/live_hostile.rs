//! A target that leads profilers astray on purpose: its frame pointers, stack
//! pointers, `g`, saved registers and labels are lies, in C and beside Go's own
//! threads. Its stacks become partial and say why; goprof ends well, takes
//! every sample in bounded time, and tells the honest part of it right.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use goprof_tests::go::{self, Variant};
use goprof_tests::pprof::Profile;
use goprof_tests::target::Target;
use goprof_tests::{goprof, quiet};

const RATE_HZ: u64 = 499;
const SECONDS: u64 = 3;

/// Most time that the kernel side may take for a sample, on average: the
/// longest walks there are, twice, and labels that all fail.
const MAX_SAMPLE_NS: u64 = 200_000;

/// The last version that keeps labels in a map, and the newest.
const VERSIONS: [&str; 2] = ["1.23.9", go::NEWEST];

#[test]
fn a_hostile_target_gets_partial_stacks_and_harms_nobody() {
    let binaries = VERSIONS.map(|version| go::build_with("hostile", version, Variant::Plain));
    let _turn = quiet::measuring();
    for (version, binary) in VERSIONS.iter().zip(&binaries) {
        println!("go{version}");
        let mut target = Target::start(binary, &[]);
        let recording = Recording::of(&target);
        target.assert_running();
        recording.check_cost();
        recording.check_reasons();
        check_honest_work(&recording.profile);
    }
}

/// A recording, and what it cost.
struct Recording {
    profile: Profile,
    said: String,
    /// CPU time of the target while the sampler ran.
    target_cpu_s: f64,
    sampler_ns: u64,
}

impl Recording {
    #[track_caller]
    fn of(target: &Target) -> Self {
        let _timed = aya::sys::enable_stats(aya::sys::Stats::RunTime)
            .expect("root, and Linux 5.8 or later, to time eBPF programs");
        let folder = tempfile::tempdir().expect("make a folder");
        let file = folder.path().join("cpu.pb.gz");
        let (pid, rate, seconds) = (target.pid_arg(), RATE_HZ.to_string(), SECONDS.to_string());
        let path = file.to_str().expect("a path in UTF-8");
        let args = ["-p", &pid, "-r", &rate, "-d", &seconds, "-o", path];
        let mut running =
            goprof::start(&[&["record", "-v", "--no-kernel"][..], &args[..]].concat());
        let mut sampler_ns = 0;
        // What the target had used when the sampler began to run, and when it
        // was last seen to run.
        let mut ticks: Option<(u64, u64)> = None;
        while running.is_running() {
            let now_ns = run_time_ns(running.pid());
            if now_ns > sampler_ns {
                sampler_ns = now_ns;
                let used = cpu_ticks(target.pid());
                ticks = Some((ticks.map_or(used, |(first, _)| first), used));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let (first, last) = ticks.expect("the kernel times what goprof loads");
        // SAFETY: asks for a constant of the system.
        let tick_hz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        let target_cpu_s = (last - first) as f64 / tick_hz;
        let outcome = running.finish(Duration::from_secs(60)).succeeded();
        Recording {
            profile: Profile::read(&file),
            said: outcome.stderr,
            target_cpu_s,
            sampler_ns,
        }
    }

    /// None is lost, and each took bounded time.
    fn check_cost(&self) {
        let samples = self.profile.total();
        assert!(self.said.contains("; 0 lost"), "{}", self.said);
        let expected = self.target_cpu_s * RATE_HZ as f64;
        assert!(
            samples as f64 > expected * 0.85 && samples > 300,
            "{samples} samples where about {expected:.0} were to come\n{}",
            self.said
        );
        let sample_ns = self.sampler_ns / samples;
        println!("{samples} samples of about {expected:.0}, {sample_ns} ns each");
        assert!(sample_ns < MAX_SAMPLE_NS, "{sample_ns} ns a sample");
    }

    /// Every stack that is not whole is counted under a reason and a function.
    fn check_reasons(&self) {
        let samples = self.profile.total();
        let ends = self.counts("stacks ");
        println!("{ends:?}");
        assert_eq!(ends.values().sum::<u64>(), samples, "{}", self.said);
        let whole = ends.get("whole").copied().unwrap_or(0);
        // C code that spoils its frame pointer alone can be unwound by its
        // tables; without a stack pointer nothing can.
        assert!(whole < samples * 9 / 10, "{whole} of {samples} are whole");
        assert!(ends.len() >= 3, "two reasons at least: {}", self.said);
        let broken = self.counts("broke at ");
        let elsewhere = self.counts("broke elsewhere");
        let broken_stacks = broken.values().chain(elsewhere.values()).sum::<u64>();
        assert_eq!(whole + broken_stacks, samples, "{}", self.said);
        let named = |name| broken.keys().any(|line: &String| line.starts_with(name));
        assert!(named("spin_off_stack,"), "{}", self.said);
        assert!(self.said.contains("labels of samples"), "{}", self.said);
    }

    /// The lines of the summary that begin so and end in a count.
    fn counts(&self, beginning: &str) -> BTreeMap<String, u64> {
        let lines = self.said.lines().map(str::trim_start);
        let rest = lines.filter_map(|line| line.strip_prefix(beginning)?.rsplit_once(": "));
        rest.filter_map(|(what, count)| Some((what.to_owned(), count.parse().ok()?)))
            .collect()
    }
}

/// What the program does beside is told as ever, labels that lie or not.
fn check_honest_work(profile: &Profile) {
    for (function, rest) in [
        ("main.honest", &[][..]),
        ("main.labelled", &["main.main.func1"][..]),
    ] {
        let share = profile.share(|stack| stack.has(function));
        println!("{function}: {share:.3}");
        assert!(share > 0.05, "{share} in {function}\n{}", profile.top(20));
        let wrong = profile.share(|stack| {
            let names = stack.names();
            let at = names.iter().position(|name| *name == function);
            at.is_some_and(|at| &names[at + 1..] != rest)
        });
        assert_eq!(wrong, 0.0, "{function}\n{}", profile.top(20));
    }
    let strays = profile.share(|stack| {
        let names = stack.names();
        names.first() == Some(&"main.burn")
            && !stack.has("main.honest")
            && !stack.has("main.labelled")
    });
    assert_eq!(strays, 0.0, "burning without a caller");
}

/// CPU time of a process, in clock ticks.
#[track_caller]
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("read the stat file");
    // User and system time, the 14th and 15th field; the second is a name.
    let (_, fields) = stat.rsplit_once(')').expect("a stat line");
    let fields = fields.split_ascii_whitespace().skip(11).take(2);
    fields
        .map(|ticks| ticks.parse::<u64>().expect("ticks"))
        .sum()
}

/// What the kernel counted of the perf-event program that a process holds; 0
/// where it holds none.
fn run_time_ns(pid: u32) -> u64 {
    // `BPF_PROG_TYPE_PERF_EVENT` of the kernel's uapi/linux/bpf.h.
    const PERF_EVENT: u64 = 7;
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return 0;
    };
    let texts = files.filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok());
    let number = |text: &str, key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.strip_prefix(':')?.trim().parse().ok()
    };
    texts
        .filter(|text| number(text, "prog_type") == Some(PERF_EVENT))
        .filter_map(|text| number(&text, "run_time_ns"))
        .max()
        .unwrap_or(0)
}
