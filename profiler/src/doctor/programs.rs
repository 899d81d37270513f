//! Programs: what the kernel's verifier makes of each of goprof's, and how it puts them
//! on places of processes. Loads them, and lets go of them at once.

use anyhow::Result;

use super::Check;
use crate::probe::{Means, Verified, verify};

/// Whether the kernel takes every program.
pub(super) fn programs() -> Check {
    judge(verify())
}

/// How the kernel puts probes on.
pub(super) fn probes() -> Check {
    judge_means(Means::find())
}

fn judge_means(found: Result<Means>) -> Check {
    let check = |found: String| Check::ok("probes", "probes of processes", found);
    match found {
        Ok(Means::Link) => check("one link puts all of a program on and takes them off".into()),
        Ok(Means::Events(_)) => check(
            "each has a perf event, and they are taken off one after another, so that \
             programs which hit them often are watched less for their budget"
                .into(),
        )
        .warn("run Linux 6.6 or later for more of -e mutex, block and alloc-events"),
        Err(error) => check(format!("none can be put on: {error:#}"))
            .warn("use a kernel with CONFIG_UPROBE_EVENTS for -e mutex, block and alloc-events"),
    }
}

fn judge(tried: Result<Vec<Verified>>) -> Check {
    let check = |found: String| Check::ok("programs", "goprof's programs", found);
    let remedy = "run Linux 5.17 or later; if this one is, report it as a bug of goprof's";
    let all = match tried {
        Ok(all) => all,
        Err(error) => return check(format!("{error:#}")).fail(remedy),
    };
    let words: Vec<String> = all.iter().map(words).collect();
    let check = check(format!("verified: {}", words.join(", ")));
    match all.iter().all(|one| one.instructions.is_ok()) {
        true => check,
        false => check.fail(remedy),
    }
}

fn words(one: &Verified) -> String {
    let name = &one.name;
    match &one.instructions {
        Ok(Some(count)) => format!("{name} ({count} instructions)"),
        Ok(None) => format!("{name} (instructions not told before Linux 5.16)"),
        Err(reason) => format!("{name} REFUSED ({reason})"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn what_puts_probes_on_is_said() {
        let status = |means| judge_means(means).status;
        assert_eq!(status(Ok(Means::Link)), Status::Ok);
        assert_eq!(status(Ok(Means::Events(9))), Status::Warn);
        let none = judge_means(Err(crate::probe::NoMeans.into()));
        assert_eq!(none.status, Status::Warn);
        assert!(
            none.found.contains("CONFIG_UPROBE_EVENTS"),
            "{}",
            none.found
        );
        assert!(
            judge_means(Means::events())
                .found
                .contains("each has a perf event")
        );
    }

    #[test]
    fn a_refused_program_is_a_failure_with_its_reason() {
        let one = |instructions| {
            judge(Ok(vec![Verified {
                name: "cpu_sample".to_owned(),
                instructions,
            }]))
        };
        let fine = one(Ok(Some(38_000)));
        assert_eq!(fine.status, Status::Ok);
        assert_eq!(fine.found, "verified: cpu_sample (38000 instructions)");
        assert_eq!(one(Ok(None)).status, Status::Ok);
        let refused = one(Err("unknown func bpf_loop#181".to_owned()));
        assert_eq!(refused.status, Status::Fail);
        assert!(refused.found.contains("REFUSED (unknown func"));
        let no_maps = judge(Err(anyhow::anyhow!("no memory")));
        assert_eq!(no_maps.status, Status::Fail);
    }
}
