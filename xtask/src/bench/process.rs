//! The processes of a measurement: targets that end with their value, and
//! profilers whose whole cost is known when they have ended.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command;

/// How long a profiler may take until it samples.
const START_LIMIT: Duration = Duration::from_secs(30);

/// `BPF_PROG_TYPE_PERF_EVENT` of the kernel's uapi/linux/bpf.h.
const PERF_EVENT_PROGRAM: u64 = 7;

/// A program that prints `ready` and then stays busy; killed with this value.
#[derive(Debug)]
pub struct Target {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Target {
    /// Starts it and waits for its ready line.
    pub fn start(program: &mut Command) -> Result<Self> {
        let line = command::line(program);
        let mut child = program
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{line}`"))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("`{line}` has no pipes");
        };
        let mut target = Self {
            child,
            requests,
            answers: BufReader::new(answers),
        };
        let ready = target.read_line()?;
        if !ready.starts_with("ready") {
            bail!("`{line}` did not get ready: {}", ready.trim());
        }
        Ok(target)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes one line to it and reads one back.
    pub fn ask(&mut self, request: &str) -> Result<String> {
        writeln!(self.requests, "{request}").context("ask the measured program")?;
        self.read_line()
    }

    /// Stops it, as Ctrl-Z does.
    pub fn freeze(&self) -> Result<()> {
        signal(self.pid(), libc::SIGSTOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        signal(self.pid(), libc::SIGCONT)
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        let length = self.answers.read_line(&mut line);
        if length.context("read from the measured program")? == 0 {
            bail!("the measured program ended early");
        }
        Ok(line)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Either fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program took from its start to its end, with the children it waited
/// for.
#[derive(Debug, Clone)]
pub struct Cost {
    /// User and system time, in seconds.
    pub cpu_s: f64,
    /// Start to end, in seconds.
    pub wall_s: f64,
    /// The most resident memory of it, or of a child it waited for.
    pub peak_mib: f64,
    /// What it wrote to standard error.
    pub errors: String,
}

/// A profiler at work; killed with this value where nobody finished it.
#[derive(Debug)]
pub struct Profiler {
    child: Option<Child>,
    line: String,
    started: Instant,
}

impl Profiler {
    /// Starts it.
    pub fn start(program: &mut Command) -> Result<Self> {
        Self::start_reading(program, Stdio::null())
    }

    fn start_reading(program: &mut Command, input: Stdio) -> Result<Self> {
        let line = command::line(program);
        let started = Instant::now();
        let child = program
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{line}`"))?;
        Ok(Self {
            child: Some(child),
            line,
            started,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Waits until it holds what samples: perf events, or an eBPF program for
    /// them, which goprof loads right before it attaches it.
    pub fn wait_until_sampling(&self) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < START_LIMIT {
            if perf_event_program(self.pid())?.is_some() || holds_perf_event(self.pid())? {
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
        bail!("`{}` does not sample after {START_LIMIT:?}", self.line)
    }

    /// Interrupts it, as Ctrl-C does, and waits for its end.
    pub fn stop(self) -> Result<Cost> {
        signal(self.pid(), libc::SIGINT)?;
        self.finish()
    }

    /// Waits for its end; fails where it failed.
    pub fn finish(mut self) -> Result<Cost> {
        let mut child = self.child.take().context("it was finished before")?;
        let mut errors = String::new();
        if let Some(mut stream) = child.stderr.take() {
            // Ends with the program; what it says is short or was asked for.
            stream
                .read_to_string(&mut errors)
                .with_context(|| format!("read what `{}` says", self.line))?;
        }
        let (status, usage) = wait(&child).with_context(|| format!("wait for `{}`", self.line))?;
        // `perf record` ends itself by the signal that it was stopped with.
        let stopped = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGINT;
        let succeeded = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
        if !stopped && !succeeded {
            bail!("`{}` failed:\n{}", self.line, errors.trim_end());
        }
        Ok(Cost {
            cpu_s: seconds(usage.ru_utime) + seconds(usage.ru_stime),
            // In kilobytes.
            peak_mib: usage.ru_maxrss as f64 / 1024.0,
            wall_s: self.started.elapsed().as_secs_f64(),
            errors,
        })
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Either fails only where it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs `program` to its end.
pub fn cost(program: &mut Command) -> Result<Cost> {
    Profiler::start(program)?.finish()
}

/// Runs `program` to its end with `input` to read.
pub fn cost_reading(program: &mut Command, input: Stdio) -> Result<Cost> {
    Profiler::start_reading(program, input)?.finish()
}

/// What `/proc` says of the eBPF program for perf events that `pid` has loaded,
/// one "key:\tvalue" a line.
pub fn perf_event_program(pid: u32) -> Result<Option<String>> {
    let folder = format!("/proc/{pid}/fdinfo");
    for entry in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        // A descriptor may be closed meanwhile; the program's is not.
        let Ok(info) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        if number(&info, "prog_type") == Some(PERF_EVENT_PROGRAM) {
            return Ok(Some(info));
        }
    }
    Ok(None)
}

fn holds_perf_event(pid: u32) -> Result<bool> {
    let folder = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&folder).with_context(|| format!("list {folder}"))?;
    Ok(entries
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|link| link == Path::new("anon_inode:[perf_event]")))
}

/// The number under `key` in what [`perf_event_program`] returns.
pub fn number(info: &str, key: &str) -> Option<u64> {
    info.lines().find_map(|line| {
        line.strip_prefix(key)?
            .strip_prefix(':')?
            .trim()
            .parse()
            .ok()
    })
}

/// The kilobytes under `key` in a `/proc/PID/status`; NaN where there are none.
pub fn number_kb(status: &str, key: &str) -> f64 {
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    value
        .and_then(|value| value.split_whitespace().next())
        .and_then(|value| value.parse().ok())
        .unwrap_or(f64::NAN)
}

/// The number before the word `samples` in what a profiler says: both goprof
/// and perf write it so.
pub fn samples(said: &str) -> Result<u64> {
    let words: Vec<&str> = said
        .split(|c: char| c.is_whitespace() || c == '(' || c == ')')
        .collect();
    words
        .windows(2)
        .filter(|pair| pair[1] == "samples")
        .find_map(|pair| pair[0].parse().ok())
        .with_context(|| format!("the profiler does not say how many samples it took:\n{said}"))
}

/// Waits for `child`; its wait status, and what it and what it waited for used.
fn wait(child: &Child) -> Result<(i32, libc::rusage)> {
    let pid = i32::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: a structure of integers may be all zero.
    let mut usage = unsafe { std::mem::zeroed::<libc::rusage>() };
    // SAFETY: writes to the two places given and nowhere else.
    while unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } != pid {
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error.into());
        }
    }
    Ok((status, usage))
}

fn seconds(time: libc::timeval) -> f64 {
    time.tv_sec as f64 + time.tv_usec as f64 / 1e6
}

/// Sends a signal by its number.
pub fn signal(pid: u32, signal: i32) -> Result<()> {
    // Zero would be this whole process group.
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    let pid = pid.context("there is no process to signal")?;
    // SAFETY: takes two integers and touches no memory.
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(std::io::Error::last_os_error()).context("signal a process");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_samples_in_what_profilers_say() {
        let goprof = "594 samples of 1 process in 3.0 s at 99 Hz; 0 lost\n100.0% of frames named";
        assert_eq!(samples(goprof).unwrap(), 594);
        let perf = "[ perf record: Woken up 1 times to write data ]\n\
                    [ perf record: Captured and wrote 0.119 MB perf.data (612 samples) ]\n";
        assert_eq!(samples(perf).unwrap(), 612);
        assert!(samples("nothing was said").is_err());
    }

    #[test]
    fn finds_kilobytes() {
        let status = "VmRSSX:\t1 kB\nVmRSS:\t   5120 kB\nThreads:\t3\n";
        assert_eq!(number_kb(status, "VmRSS"), 5120.0);
        assert!(number_kb(status, "RssAnon").is_nan());
    }

    #[test]
    fn counts_the_cpu_time_of_children() {
        let mut busy = Command::new("sh");
        busy.args([
            "-c",
            "sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done'; true",
        ]);
        let cost = cost(&mut busy).unwrap();
        assert!(cost.cpu_s > 0.005, "{cost:?}");
    }

    #[test]
    fn a_failure_tells_what_was_said() {
        let mut failing = Command::new("sh");
        failing.args(["-c", "echo no such thing >&2; exit 3"]);
        let error = format!("{:#}", cost(&mut failing).unwrap_err());
        assert!(error.contains("no such thing"), "{error}");
    }
}
