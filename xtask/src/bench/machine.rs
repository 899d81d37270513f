//! What was measured on and with: without it no figure can be compared. It
//! changes nothing on the machine.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use super::Bench;
use crate::command;

/// The machine, the versions, and how quiet it was.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Such as "Intel(R) Xeon(R) Processor @ 2.50GHz".
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Of the kernel.
    pub kernel: String,
    /// Of goprof: the package's version and the commit.
    pub goprof: String,
    /// Of Go.
    pub go: String,
    /// Of perf.
    pub perf: String,
    /// The share of CPU time that a hypervisor gave to others, while measuring.
    pub stolen_share: f64,
    /// Processes that wanted a CPU in the minute before.
    pub load_before: f64,
}

impl Machine {
    /// Looks at it; to be called before anything is measured.
    pub fn look(bench: &Bench) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or_else(
                || std::env::consts::ARCH.to_owned(),
                |(_, name)| name.trim().to_owned(),
            );
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("read the kernel's release")?;
        let load = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
        let version = command::output(Command::new(&bench.goprof).arg("--version"))?;
        let mut describe = Command::new("git");
        describe.args(["describe", "--always", "--dirty"]);
        // A source archive has no commit to name.
        let commit = command::output(describe.current_dir(&bench.workspace.root));
        Ok(Self {
            cpu,
            cpus: bench.cpus,
            kernel: kernel.trim().to_owned(),
            goprof: match commit {
                Ok(commit) => format!("{} ({})", last_word(&version), commit.trim()),
                Err(_) => last_word(&version),
            },
            go: command::output(bench.go.command(None).args(["env", "GOVERSION"]))?
                .trim()
                .to_owned(),
            perf: last_word(&command::output(Command::new(&bench.perf).arg("version"))?),
            stolen_share: 0.0,
            load_before: load
                .split(' ')
                .next()
                .and_then(|number| number.parse().ok())
                .context("read a number from /proc/loadavg")?,
        })
    }
}

fn last_word(text: &str) -> String {
    text.split_whitespace()
        .next_back()
        .unwrap_or_default()
        .to_owned()
}

/// CPU time of all CPUs since boot, in the kernel's ticks.
#[derive(Debug, Clone, Copy)]
pub struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    /// Reads them.
    pub fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        Self::parse(&stat).context("/proc/stat has no line `cpu`")
    }

    /// user, nice, system, idle, iowait, irq, softirq, steal; what follows is
    /// in the first two already (proc_stat(5)).
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line
            .split_whitespace()
            .take(8)
            .map_while(|word| word.parse().ok())
            .collect();
        Some(Self {
            all: ticks.iter().sum(),
            stolen: *ticks.get(7)?,
        })
    }

    /// The share that was stolen since `before`.
    pub fn stolen_share_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all);
        self.stolen.saturating_sub(before.stolen) as f64 / all.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stolen_time() {
        let ticks = |text: &str| Ticks::parse(text).unwrap();
        let before = ticks("cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1\n");
        let after = ticks("cpu  40 0 10 80 0 0 0 10 5 0\n");
        assert_eq!(after.stolen_share_since(before), 0.25);
        assert!(Ticks::parse("intr 1 2\n").is_none());
    }
}
