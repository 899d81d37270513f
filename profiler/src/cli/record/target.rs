//! Whom to record: checks that they are there before anything is loaded, starts
//! the command where one is given, and names them.

use std::process::ExitCode;

use anyhow::Context;
use tokio::process::{Child, Command};

use super::args::{Plan, Who};
use crate::{
    cli::{Failure, printable, process::go_process},
    doctor,
    process::{Objects, Process, Selection, is_alive},
    session::Stopped,
    sink::Subject,
};

/// Whom to record.
pub(super) enum Target {
    Pids(Vec<Process>),
    All,
    Name(regex::Regex),
    Command {
        words: Vec<String>,
        child: Option<Child>,
    },
}

impl Target {
    /// Checks of what was asked what needs no rights: that the pids are there.
    pub(super) fn look_for(plan: &Plan) -> Result<(), Failure> {
        let Who::Pids(pids) = &plan.who else {
            return Ok(());
        };
        for pid in pids {
            if let Err((found, remedy)) = doctor::existing(*pid) {
                let remedy = remedy.map_or(String::new(), |remedy| format!(": {remedy}"));
                return Err(Failure::Failed(anyhow::anyhow!("{found}{remedy}")));
            }
        }
        Ok(())
    }

    /// Checks what was asked against what is there.
    pub(super) fn prepare(plan: &Plan) -> Result<Self, Failure> {
        Ok(match &plan.who {
            Who::Pids(pids) => {
                let mut objects = Objects::default();
                let processes = pids.iter().map(|pid| go_process(*pid, &mut objects));
                Target::Pids(processes.collect::<Result<_, _>>()?)
            }
            Who::All => Target::All,
            Who::Name(name) => Target::Name(name.clone()),
            Who::Command(words) => Target::Command {
                words: words.clone(),
                child: None,
            },
        })
    }

    pub(super) fn selection(&self) -> Selection {
        match self {
            Target::Pids(processes) => {
                Selection::Pids(processes.iter().map(|process| process.pid).collect())
            }
            Target::All => Selection::All,
            Target::Name(name) => Selection::Name(name.clone()),
            Target::Command { .. } => Selection::DescendantsOf(std::process::id()),
        }
    }

    /// Starts the command, where there is one.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        let Target::Command { words, child } = self else {
            return Ok(());
        };
        adopt_orphans();
        let (program, arguments) = words
            .split_first()
            .ok_or_else(|| Failure::Usage("no command given after --".into()))?;
        match Command::new(program).args(arguments).spawn() {
            Ok(started) => {
                *child = Some(started);
                Ok(())
            }
            // As env(1) and the shells do.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Failure::Code(
                127,
                format!("cannot start {program}: no such command"),
            )),
            Err(error) => Err(Failure::Code(
                126,
                format!("cannot start {program}: {error}"),
            )),
        }
    }

    pub(super) fn child(&mut self) -> Option<&mut Child> {
        match self {
            Target::Command { child, .. } => child.as_mut(),
            _ => None,
        }
    }

    /// What is recorded, in words.
    pub(super) fn subject(&self) -> String {
        match self {
            Target::Pids(processes) => {
                let names: Vec<String> = processes
                    .iter()
                    .map(|process| format!("{} (pid {})", process.comm, process.pid))
                    .collect();
                names.join(", ")
            }
            Target::All => "every Go process".into(),
            Target::Name(name) => format!("Go processes named {name}"),
            Target::Command { words, .. } => words.join(" "),
        }
    }

    /// Until when it is recorded where no time is set, in words.
    pub(super) fn until(&self) -> &'static str {
        match self {
            Target::Pids(_) => "until they exit",
            Target::All | Target::Name(_) => "until stopped",
            Target::Command { .. } => "until it exits",
        }
    }

    /// What an output that nobody named is named after.
    pub(super) fn file_subject(&self) -> Subject<'_> {
        match self {
            Target::Pids(processes) => match processes.as_slice() {
                [one] => Subject::Process {
                    comm: &one.comm,
                    pid: one.pid,
                },
                _ => Subject::Selected,
            },
            Target::All => Subject::All,
            Target::Name(_) => Subject::Selected,
            Target::Command { words, .. } => {
                Subject::Command(words.first().map_or("", String::as_str))
            }
        }
    }

    /// What to say where everything exited before a sample was taken.
    pub(super) fn gone_without_samples(&self, quiet: bool) -> Result<(), Failure> {
        let line = format!(
            "no samples: {} exited before one was taken; nothing was written",
            printable(&self.subject())
        );
        if let Target::Command { .. } = self {
            // The command did what it was to do, and its exit code says how.
            if !quiet {
                eprintln!("goprof: {line}");
            }
            return Ok(());
        }
        Err(Failure::Failed(anyhow::anyhow!(line)))
    }

    /// The code to exit with: the command's own, once it has ended.
    pub(super) async fn exit_code(
        &mut self,
        stopped: Stopped,
        quiet: bool,
    ) -> Result<ExitCode, Failure> {
        let Target::Command {
            child: Some(child), ..
        } = self
        else {
            return Ok(ExitCode::SUCCESS);
        };
        if stopped != Stopped::TargetsGone && !quiet && is_alive(child.id().unwrap_or(0)) {
            eprintln!("goprof: the command goes on; waiting for it to end (Ctrl-C leaves it)");
        }
        let status = child.wait().await.context("cannot wait for the command")?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        let code = match (status.code(), signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => 1,
        };
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
    }
}

/// Makes this process the parent of descendants whose own parent exits, so that
/// they can still be told to be the command's.
fn adopt_orphans() {
    // SAFETY: sets a flag of this process; a failure only loses such
    // descendants.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    }
}
