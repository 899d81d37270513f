//! A program and goprof on CPUs of their own, so that neither takes the other's.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::Bench;

/// The last CPU is the program's, and everything else is kept on the others.
#[derive(Debug, Clone, Copy)]
pub struct Apart {
    last: usize,
}

impl Apart {
    /// Where there are two CPUs.
    pub fn of(bench: &Bench) -> Result<Self> {
        ensure!(
            bench.cpus > 1,
            "what a program loses is measured with a CPU for it alone: it takes two"
        );
        Ok(Self {
            last: bench.cpus - 1,
        })
    }

    /// The program that is measured.
    pub fn program(&self, program: &Path) -> Command {
        on(&self.last.to_string(), program)
    }

    /// What is to run beside it.
    pub fn beside(&self, program: &Path) -> Command {
        on(&format!("0-{}", self.last - 1), program)
    }
}

fn on(cpus: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cpus]).arg(program);
    command
}
