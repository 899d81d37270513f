//! Doctor: what this machine, and a process, can and cannot give, each finding
//! with its remedy. Tries things and undoes them at once; records nothing, and of the
//! pipeline it knows the probes alone, to have them verified.

mod kernel;
mod memory;
mod place;
mod process;
mod program;
mod programs;
mod rights;
mod sampling;

use anyhow::{Result, bail};
use serde::Serialize;

pub use process::{ProcessReport, existing, process};
use rights::Rights;

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing is missing.
    Ok,
    /// Profiles can be made, but lack something.
    Warn,
    /// No profile can be made.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name for programs, the same in every version.
    pub id: &'static str,
    /// Its name for people.
    pub what: &'static str,
    /// Whether something is missing.
    pub status: Status,
    /// How things are.
    pub found: String,
    /// What to do about it; only where something is missing.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(id: &'static str, what: &'static str, found: impl Into<String>) -> Self {
        Self {
            id,
            what,
            status: Status::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn warn(mut self, remedy: impl Into<String>) -> Self {
        self.status = Status::Warn;
        self.remedy = Some(remedy.into());
        self
    }

    fn fail(mut self, remedy: impl Into<String>) -> Self {
        self.status = Status::Fail;
        self.remedy = Some(remedy.into());
        self
    }
}

/// Looks at the machine, and at what this process may do on it. Causes come
/// before their effects: the first failure is the one to see to.
pub fn system(rate_hz: u32) -> Vec<Check> {
    let own = place::OwnStatus::read();
    let rights = Rights::of(&own);
    let mut checks = vec![place::proc(), kernel::version()];
    checks.push(rights.user_namespace());
    checks.push(rights.required());
    checks.extend(rights.optional());
    checks.push(place::pid_namespace());
    checks.push(rights.seccomp());
    checks.push(kernel::btf());
    checks.push(kernel::lockdown());
    checks.push(kernel::ring_buffer(&rights));
    checks.push(kernel::helpers(&rights));
    checks.push(kernel::locked_memory());
    checks.push(rights.unprivileged_bpf());
    checks.push(rights.paranoid());
    checks.push(sampling::rate(rate_hz));
    checks.push(sampling::clock(rate_hz, &rights));
    checks.push(kernel::symbols());
    checks.push(place::tracefs());
    checks
}

/// As [`system`], and has the kernel verify every eBPF program, which takes it some
/// tenths of a second; unless what is missing is more than what programs may call.
pub fn thorough(rate_hz: u32) -> Vec<Check> {
    let mut checks = system(rate_hz);
    let is_tried = |check: &Check| check.status != Status::Fail || check.id == "helpers";
    if checks.iter().all(is_tried) {
        checks.push(programs::programs());
        checks.push(programs::probes());
    }
    checks
}

/// Looks at the machine before anything is loaded, so that what is missing is
/// said in words and not by an error number of the kernel's.
///
/// # Errors
/// The first check that fails, with its remedy, on one line.
pub fn require(rate_hz: u32) -> Result<()> {
    let failed = system(rate_hz)
        .into_iter()
        .find(|check| check.status == Status::Fail);
    match failed {
        Some(check) => bail!(one_line(&check)),
        None => Ok(()),
    }
}

/// What profiles lack here for want of rights that they can do without, each with
/// its remedy, on one line. `kernel` says whether kernel frames are wanted.
pub fn shortfalls(kernel: bool) -> Vec<String> {
    let rights = Rights::of(&place::OwnStatus::read());
    let names = kernel.then(kernel::symbols);
    let checks = rights.optional().into_iter().chain(names);
    checks
        .filter(|check| check.status != Status::Ok)
        .map(|check| one_line(&check))
        .collect()
}

fn one_line(check: &Check) -> String {
    let remedy = check.remedy.as_deref().unwrap_or_default();
    format!("{}: {}; {remedy}", check.what, check.found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_with_its_remedy() {
        let check = Check::ok("x", "kernel", "too old").fail("take a newer one");
        assert_eq!(one_line(&check), "kernel: too old; take a newer one");
    }

    #[test]
    fn the_keys_of_json_are_stable() {
        let check = Check::ok("btf", "BTF", "there");
        assert_eq!(
            serde_json::to_string(&check).unwrap(),
            r#"{"id":"btf","what":"BTF","status":"ok","found":"there","remedy":null}"#
        );
    }

    #[test]
    fn every_check_has_its_own_id() {
        let mut ids: Vec<_> = system(99).iter().map(|check| check.id).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }
}
