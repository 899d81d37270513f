//! `goprof agent` under measurement: started as an operator does, in a memory
//! cgroup of its own where the machine has them, and looked at from outside.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Bench, process};

/// How long it may take until it samples, and until it has ended.
const LIMIT: Duration = Duration::from_secs(30);

/// An agent at work; killed with this value.
pub struct Agent {
    child: Child,
    address: String,
    folder: PathBuf,
    cgroup: Option<Cgroup>,
}

/// How much memory it takes, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Of the process, pages of mapped files included.
    pub resident: f64,
    /// Of that, what is its own.
    pub anonymous: f64,
    /// What the kernel charges to the cgroup.
    pub charged: f64,
}

impl Memory {
    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            anonymous: self.anonymous.max(other.anonymous),
            charged: self.charged.max(other.charged),
        }
    }
}

impl Agent {
    /// Starts it with a store and a spool of its own, and waits until it samples.
    /// `max_bytes` is the most that its cgroup allows.
    pub fn start(bench: &Bench, args: &[&str], max_bytes: Option<u64>) -> Result<Self> {
        let folder = bench.folder.join("agent");
        // What an earlier one left.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).context("make a folder for the agent")?;
        let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
        let address = listener.local_addr()?.to_string();
        drop(listener);
        let cgroup = max_bytes.map(Cgroup::make).transpose()?.flatten();
        let mut agent = Command::new("sh");
        // The shell joins the cgroup and becomes the agent.
        agent.args(["-c", "[ -z \"$0\" ] || echo $$ > \"$0\"; exec \"$@\""]);
        agent.arg(cgroup.as_ref().map_or(PathBuf::new(), Cgroup::processes));
        agent
            .arg(bench.agent()?)
            .args(["agent", "--listen", &address]);
        agent.arg("--store").arg(folder.join("store"));
        agent.arg("--spool").arg(folder.join("spool")).args(args);
        let log = fs::File::create(folder.join("log")).context("make the agent's log")?;
        let child = agent.stdin(Stdio::null()).stderr(log).spawn();
        let mut agent = Self {
            child: child.context("start the agent")?,
            address,
            folder,
            cgroup,
        };
        let begun = Instant::now();
        while !agent.get("/readyz").is_ok_and(|answer| answer.0) {
            if begun.elapsed() > LIMIT || agent.child.try_wait()?.is_some() {
                bail!("the agent does not sample:\n{}", agent.log());
            }
            sleep(Duration::from_millis(50));
        }
        Ok(agent)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Whether it answered with success, and the answer.
    fn get(&self, path: &str) -> Result<(bool, String)> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let is_success = answer.split(' ').nth(1) == Some("200");
        Ok((is_success, answer))
    }

    /// The sum of a metric over its labels; with labels as they are written, of
    /// that one.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = self.get("/metrics")?;
        let values = text.lines().filter_map(|line| {
            let (found, value) = line.rsplit_once(' ')?;
            let is_it = found == name || found.split('{').next() == Some(name);
            is_it.then(|| value.parse::<f64>().ok())?
        });
        // The sum of none is -0.
        Ok(values.sum::<f64>() + 0.0)
    }

    /// CPU time that it has taken so far, in seconds.
    pub fn cpu_s(&self) -> Result<f64> {
        let stat = self.read("stat")?;
        // Behind the name, which may hold anything: fields 14 and 15 of
        // proc_pid_stat(5).
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: f64 = ticks.filter_map(|field| field.parse::<f64>().ok()).sum();
        // SAFETY: no preconditions.
        let a_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Ok(ticks / a_second as f64)
    }

    /// How much memory it takes now.
    pub fn memory(&self) -> Result<Memory> {
        let status = self.read("status")?;
        let bytes = |key| process::number_kb(&status, key) * 1024.0;
        Ok(Memory {
            resident: bytes("VmRSS"),
            anonymous: bytes("RssAnon"),
            charged: self.cgroup.as_ref().map_or(f64::NAN, Cgroup::bytes),
        })
    }

    /// The most memory that it has ever had resident, in bytes.
    pub fn most_resident(&self) -> Result<f64> {
        let status = self.read("status")?;
        Ok(process::number_kb(&status, "VmHWM") * 1024.0)
    }

    /// The most memory that the kernel has ever charged to its cgroup, and how
    /// often it found none for it; the machine may not tell.
    pub fn charged(&self) -> (f64, f64) {
        let cgroup = self.cgroup.as_ref();
        cgroup.map_or((f64::NAN, f64::NAN), |cgroup| {
            (cgroup.max_bytes(), cgroup.kills())
        })
    }

    /// Ends it as a service manager does; fails where it failed.
    pub fn stop(&mut self) -> Result<()> {
        process::signal(self.child.id(), libc::SIGTERM)?;
        let begun = Instant::now();
        loop {
            match self.child.try_wait().context("wait for the agent")? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the agent failed: {status}\n{}", self.log()),
                None if begun.elapsed() > LIMIT => bail!("the agent does not end"),
                None => sleep(Duration::from_millis(20)),
            }
        }
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(&path).with_context(|| format!("read {path}: did the agent end?"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Either fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A memory cgroup; removed with this value.
struct Cgroup {
    folder: PathBuf,
    is_v2: bool,
}

impl Cgroup {
    /// Makes one with a limit, in the hierarchy that the machine has; None where
    /// it has none.
    fn make(max_bytes: u64) -> Result<Option<Self>> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let v2 = Path::new("/sys/fs/cgroup");
        let has_v2 = fs::read_to_string(v2.join("cgroup.controllers"))
            .is_ok_and(|controllers| controllers.contains("memory"));
        let (parent, is_v2) = match v1.join("memory.limit_in_bytes").exists() {
            true => (v1, false),
            false if has_v2 => (v2, true),
            false => return Ok(None),
        };
        if is_v2 {
            fs::write(parent.join("cgroup.subtree_control"), "+memory")
                .context("hand the memory controller down")?;
        }
        let folder = parent.join(format!("goprof-bench-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        let cgroup = Self { folder, is_v2 };
        let limit = cgroup.file("memory.limit_in_bytes", "memory.max");
        fs::write(&limit, max_bytes.to_string())
            .with_context(|| format!("write {}", limit.display()))?;
        Ok(Some(cgroup))
    }

    fn file(&self, v1: &str, v2: &str) -> PathBuf {
        self.folder.join(if self.is_v2 { v2 } else { v1 })
    }

    fn processes(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    fn bytes(&self) -> f64 {
        number(&self.file("memory.usage_in_bytes", "memory.current"))
    }

    fn max_bytes(&self) -> f64 {
        number(&self.file("memory.max_usage_in_bytes", "memory.peak"))
    }

    /// Processes killed as there was no memory for them.
    fn kills(&self) -> f64 {
        let events = self.file("memory.oom_control", "memory.events");
        let events = fs::read_to_string(events).unwrap_or_default();
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        kills
            .and_then(|count| count.parse().ok())
            .unwrap_or(f64::NAN)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The agent has ended by now.
        let _ = fs::remove_dir(&self.folder);
    }
}

fn number(file: &Path) -> f64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.trim().parse().unwrap_or(f64::NAN)
}
