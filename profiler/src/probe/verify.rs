//! Has the kernel verify every program of the object, for `goprof doctor`. Attaches
//! none, and all of them are gone at the end.

use anyhow::{Result, bail};
use aya::programs::{Program, ProgramError};

use super::{Hooks, KernelTypes, Options, load_object, off_cpu};

/// What a ring buffer may have at the least on every machine: a page of 64 KB.
const RING_BYTES: u32 = 64 * 1024;

/// A program, and what the kernel's verifier made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Its name in the object.
    pub name: String,
    /// How many instructions the verifier looked at, which Linux tells since 5.16;
    /// or why it refused the program.
    pub instructions: Result<Option<u32>, String>,
}

/// Loads each program by itself, in the order of their names.
///
/// # Errors
/// The object's maps cannot be made.
pub fn verify() -> Result<Vec<Verified>> {
    let options = Options {
        kernel_stacks: true,
        watch_execs: true,
        ring_bytes: RING_BYTES,
        cpu: true,
        off_cpu: true,
        block_io: true,
        kernel_io: true,
    };
    let types = KernelTypes::read(&["task_struct", "thread_struct", "sched_entity"]).ok();
    let task = off_cpu::Task::find(types.as_ref()).unwrap_or_default();
    let hooks = Hooks::find(types.as_ref(), true).ok();
    let mut ebpf = load_object(&options, types.as_ref(), task, hooks.as_ref())?;
    let mut all: Vec<Verified> = ebpf
        .programs_mut()
        .map(|(name, program)| Verified {
            name: name.to_owned(),
            instructions: load(program).map_err(|error| reason(&error)),
        })
        .collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(all)
}

fn load(program: &mut Program) -> Result<Option<u32>> {
    match program {
        Program::PerfEvent(program) => program.load()?,
        Program::RawTracePoint(program) => program.load()?,
        Program::TracePoint(program) => program.load()?,
        Program::UProbe(program) => program.load()?,
        _ => bail!("this goprof does not know its kind"),
    }
    Ok(program.info()?.verified_instruction_count())
}

/// Why a program was refused, on one line.
fn reason(error: &anyhow::Error) -> String {
    match error.downcast_ref() {
        Some(ProgramError::LoadError {
            io_error,
            verifier_log,
        }) => last_words(&verifier_log.to_string()).unwrap_or_else(|| io_error.to_string()),
        _ => format!("{error:#}"),
    }
}

/// What the verifier said last, before it counts what it did.
fn last_words(log: &str) -> Option<String> {
    log.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !line.starts_with("processed "))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_the_last_thing_that_the_verifier_said() {
        let log = "0: (85) call 181\nunknown func bpf_loop#181\nprocessed 1 insns (limit 1)\n\n";
        assert_eq!(last_words(log).unwrap(), "unknown func bpf_loop#181");
        assert_eq!(last_words(""), None);
    }
}
