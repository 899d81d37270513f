//! The programs under test: started, waited for until they are busy, and ended
//! with the test.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::command;

/// A fixture ends by itself after this, should a test not live to end it.
const LIMIT: &str = "5m";

/// A program under test. Dropping it kills it.
pub struct Target {
    child: Child,
    /// What the ready line said after `ready`.
    pub details: String,
}

impl Target {
    /// Starts a Go program of `tests/go/` and waits for its ready line.
    #[track_caller]
    pub fn start(binary: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.args(["-duration", LIMIT]).args(args);
        Self::start_command(&mut command)
    }

    /// Starts a command that prints a ready line and waits for it.
    #[track_caller]
    pub fn start_command(command: &mut Command) -> Self {
        let mut target = Self::spawn(command.stdout(Stdio::piped()));
        let stdout = target.child.stdout.take().expect("a pipe was asked for");
        let (sender, lines) = mpsc::channel();
        // The thread also keeps the pipe open and empty until the program ends.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) if line == "ready" => return target,
                Ok(line) => {
                    if let Some(details) = line.strip_prefix("ready ") {
                        target.details = details.to_owned();
                        return target;
                    }
                }
                Err(e) => panic!("`{command:?}` printed no ready line: {e}"),
            }
        }
    }

    /// Starts a command that needs no waiting for, or another way of it.
    #[track_caller]
    pub fn spawn(command: &mut Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("start `{command:?}`: {e}"));
        Target {
            child,
            details: String::new(),
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process id as an argument.
    pub fn pid_arg(&self) -> String {
        self.pid().to_string()
    }

    /// The descendant (or the process itself) whose executable is called
    /// `name`: the profiled program behind `unshare` and the like.
    #[track_caller]
    pub fn descendant(&self, name: &str) -> u32 {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(pid) = find_descendant(self.pid(), name) {
                return pid;
            }
            assert!(
                Instant::now() < deadline,
                "no descendant of {} is called {name}",
                self.pid()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What has become of it, as the kernel says: running, sleeping, a zombie.
    /// For messages.
    pub fn state(&self) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.unwrap_or_default();
        let state = status.lines().find_map(|l| l.strip_prefix("State:"));
        state.unwrap_or("gone").trim().to_owned()
    }

    /// Panics unless it still runs.
    #[track_caller]
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().expect("wait for a child") {
            panic!("the program under test ended: {status}");
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // The descendants first: a killed `unshare` would leave them behind.
        for pid in children(self.pid()) {
            if Path::new(&format!("/proc/{pid}")).exists() {
                command::send_signal(pid, libc::SIGKILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find_descendant(pid: u32, name: &str) -> Option<u32> {
    let executable = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    if executable.file_name().is_some_and(|n| n == name) {
        return Some(pid);
    }
    children(pid)
        .into_iter()
        .find_map(|c| find_descendant(c, name))
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    text.unwrap_or_default()
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}
