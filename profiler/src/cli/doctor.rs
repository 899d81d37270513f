//! `goprof doctor`: the checks as lines for people or JSON for programs. Knows
//! nothing of what is checked.

use std::{
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
};

use anyhow::Context;
use serde::Serialize;

use super::{Failure, printable, record::DEFAULT_RATE_HZ};
use crate::doctor::{self, Check, ProcessReport, Status};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  goprof doctor
  goprof doctor -p 1234
  goprof doctor --json | jq '.system[] | select(.status != \"ok\")'

Exit codes: 0 nothing failed (warnings are no failure), 1 something did, 2 usage.")]
/// What `goprof doctor` takes.
pub struct Args {
    /// Look at the process PID too (may be given several times)
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Vec<u32>,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    ok: bool,
    system: Vec<Check>,
    processes: Vec<ProcessReport>,
}

impl Report {
    fn checks(&self) -> impl Iterator<Item = &Check> {
        let of_processes = self.processes.iter().flat_map(|process| &process.checks);
        self.system.iter().chain(of_processes)
    }

    fn count(&self, status: Status) -> usize {
        self.checks().filter(|check| check.status == status).count()
    }
}

/// Checks, and writes what was found.
///
/// # Errors
/// It could not be written.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        ok: false,
        system: doctor::thorough(DEFAULT_RATE_HZ),
        processes: args.pid.iter().map(|pid| doctor::process(*pid)).collect(),
    };
    report.ok = report.count(Status::Fail) == 0;
    let stdout = io::stdout();
    let colours = stdout.is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    let written = if args.json {
        json(&mut stdout.lock(), &report)
    } else {
        lines(&mut stdout.lock(), &report, colours)
    };
    match written {
        // Who reads only the beginning wants no more.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.context("cannot write to stdout")?,
    }
    Ok(ExitCode::from(u8::from(!report.ok)))
}

fn json(out: &mut impl Write, report: &Report) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report)?;
    writeln!(out)
}

fn lines(out: &mut impl Write, report: &Report, colours: bool) -> io::Result<()> {
    let width = report.checks().map(|check| check.what.len()).max();
    let width = width.unwrap_or(0);
    writeln!(out, "This machine")?;
    for check in &report.system {
        line(out, check, width, colours)?;
    }
    for process in &report.processes {
        match process.comm.as_str() {
            "" => writeln!(out, "\nProcess {}", process.pid)?,
            comm => writeln!(out, "\nProcess {} ({})", process.pid, printable(comm))?,
        }
        for check in &process.checks {
            line(out, check, width, colours)?;
        }
    }
    let (warned, failed) = (report.count(Status::Warn), report.count(Status::Fail));
    let warnings = match warned {
        0 => String::new(),
        1 => ", 1 warning".into(),
        several => format!(", {several} warnings"),
    };
    match failed {
        0 => writeln!(out, "\nNothing stands in the way of a profile{warnings}."),
        failed => writeln!(out, "\n{failed} failed{warnings}."),
    }
}

fn line(out: &mut impl Write, check: &Check, width: usize, colours: bool) -> io::Result<()> {
    let (word, colour) = match check.status {
        Status::Ok => ("ok", "32"),
        Status::Warn => ("warn", "33"),
        Status::Fail => ("FAIL", "1;31"),
    };
    let found = printable(&check.found);
    if colours {
        write!(out, "  \x1b[{colour}m{word:<4}\x1b[0m")?;
    } else {
        write!(out, "  {word:<4}")?;
    }
    writeln!(out, "  {:<width$}  {found}", check.what)?;
    if let Some(remedy) = &check.remedy {
        writeln!(out, "  {:4}  {:width$}  > {}", "", "", printable(remedy))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: Status, remedy: Option<&str>) -> Check {
        Check {
            id: "btf",
            what: "kernel types",
            status,
            found: "not\x1b[31m there".into(),
            remedy: remedy.map(Into::into),
        }
    }

    fn report(checks: Vec<Check>) -> Report {
        Report {
            version: "0",
            ok: true,
            system: checks,
            processes: Vec::new(),
        }
    }

    fn text(report: &Report, colours: bool) -> String {
        let mut out = Vec::new();
        lines(&mut out, report, colours).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_remedy_stands_below() {
        let said = text(&report(vec![check(Status::Fail, Some("do this"))]), false);
        let mut said = said.lines().skip(1);
        assert_eq!(
            said.next(),
            Some("  FAIL  kernel types  not\u{fffd}[31m there")
        );
        assert_eq!(said.next(), Some("                      > do this"));
        assert_eq!(said.nth(1), Some("1 failed."));
    }

    #[test]
    fn colours_are_for_terminals() {
        let report = report(vec![check(Status::Warn, Some("x"))]);
        assert!(!text(&report, false).contains('\x1b'));
        assert!(text(&report, true).contains("\x1b[33mwarn\x1b[0m"));
        assert!(
            text(&report, false).contains("Nothing stands in the way of a profile, 1 warning.")
        );
    }
}
