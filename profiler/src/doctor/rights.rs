//! Rights: what this process may do, and what stands in its way. Reads
//! `/proc/self` and sysctls; tries nothing.

use std::fs;

use super::{Check, place::OwnStatus};

/// A capability: its number (`linux/capability.h`), what gives it as well, and
/// what goprof wants it for.
struct Capability {
    id: &'static str,
    name: &'static str,
    what: &'static str,
    bit: u32,
    implied_by: u32,
    without: &'static str,
}

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;
const CAP_CHECKPOINT_RESTORE: u32 = 40;

/// Inode of the user namespace that the machine starts with
/// (`PROC_USER_INIT_INO`, include/linux/proc_ns.h).
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";

/// Without these a profile may lack something.
const OPTIONAL: [Capability; 3] = [
    Capability {
        id: "cap_sys_ptrace",
        name: "CAP_SYS_PTRACE",
        what: "other users' processes",
        bit: CAP_SYS_PTRACE,
        implied_by: CAP_SYS_PTRACE,
        without: "processes of other users cannot be looked at",
    },
    Capability {
        id: "cap_checkpoint_restore",
        name: "CAP_CHECKPOINT_RESTORE",
        what: "deleted files",
        bit: CAP_CHECKPOINT_RESTORE,
        implied_by: CAP_SYS_ADMIN,
        without: "shared libraries that were deleted or replaced cannot be read",
    },
    Capability {
        id: "cap_dac_read_search",
        name: "CAP_DAC_READ_SEARCH",
        what: "unreadable files",
        bit: CAP_DAC_READ_SEARCH,
        implied_by: CAP_DAC_OVERRIDE,
        without: "programs that their owner lets nobody read cannot be named",
    },
];

/// What a file needs to run goprof without root.
const FILE_CAPABILITIES: &str = "cap_bpf,cap_perfmon,cap_sys_ptrace,cap_checkpoint_restore,\
     cap_dac_read_search,cap_syslog";

/// What this process may do.
pub(super) struct Rights {
    effective: u64,
    is_root: bool,
    first_user_namespace: bool,
    seccomp: u32,
}

impl Rights {
    pub(super) fn of(own: &OwnStatus) -> Self {
        let namespace = fs::read_link("/proc/self/ns/user").ok();
        Self {
            effective: own.effective,
            is_root: own.uid == 0,
            // Unknown is taken for the usual.
            first_user_namespace: namespace
                .is_none_or(|name| name.to_str() == Some(FIRST_USER_NAMESPACE)),
            seccomp: own.seccomp,
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.effective >> bit & 1 == 1
    }

    /// Whether what it may do counts on this machine as a whole.
    pub(super) fn count(&self) -> bool {
        self.first_user_namespace
    }

    /// Whether a seccomp filter is in force.
    pub(super) fn is_filtered(&self) -> bool {
        self.seccomp != 0
    }

    /// Which of the capabilities that nothing goes without are missing.
    /// CAP_SYS_ADMIN stands for both.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
            .into_iter()
            .filter(|(bit, _)| !self.has(*bit) && !self.has(CAP_SYS_ADMIN))
            .map(|(_, name)| name)
            .collect()
    }

    /// How to come to capabilities, for who runs this.
    fn remedy(&self) -> String {
        if self.is_root {
            return "this root was given few capabilities, as in a container: start that with \
                 --privileged, or with --cap-add BPF, PERFMON, SYS_PTRACE, CHECKPOINT_RESTORE, \
                 DAC_READ_SEARCH and SYSLOG (Kubernetes: securityContext.capabilities.add)"
                .into();
        }
        let program = std::env::current_exe();
        let program = program.map_or("goprof".into(), |path| path.display().to_string());
        format!(
            "run goprof as root (sudo), or let this user run it: \
             sudo setcap {FILE_CAPABILITIES}+ep {program}"
        )
    }

    pub(super) fn user_namespace(&self) -> Check {
        let check = |found| Check::ok("user_namespace", "user namespace", found);
        if self.first_user_namespace {
            check("the machine's own")
        } else {
            check("another than the machine's, where root and capabilities do not count").fail(
                "run goprof outside of it: as real root, not in a rootless container or \
                 `unshare -r`",
            )
        }
    }

    pub(super) fn required(&self) -> Check {
        let check = |found: String| Check::ok("capabilities", "capabilities", found);
        match self.missing().as_slice() {
            [] if self.has(CAP_BPF) && self.has(CAP_PERFMON) => {
                check("CAP_BPF and CAP_PERFMON".into())
            }
            [] => check("CAP_SYS_ADMIN, which holds CAP_BPF and CAP_PERFMON".into()),
            [one] => check(format!("{one} is missing")).fail(self.remedy()),
            several => check(format!("{} are missing", several.join(" and "))).fail(self.remedy()),
        }
    }

    pub(super) fn optional(&self) -> Vec<Check> {
        OPTIONAL
            .iter()
            .map(|capability| {
                let check = |found: String| Check::ok(capability.id, capability.what, found);
                if self.has(capability.bit) || self.has(capability.implied_by) {
                    check(format!("readable ({})", capability.name))
                } else {
                    check(format!(
                        "{} is missing: {}",
                        capability.name, capability.without
                    ))
                    .warn(match self.missing().as_slice() {
                        [] => format!("run goprof as root, or give it {} as well", capability.name),
                        _ => "see to the capabilities above".into(),
                    })
                }
            })
            .collect()
    }

    pub(super) fn seccomp(&self) -> Check {
        let found = match self.seccomp {
            0 => "no filter",
            1 => "strict mode",
            _ => "a filter is in force; what it lets through shows below",
        };
        Check::ok("seccomp", "seccomp", found)
    }

    pub(super) fn unprivileged_bpf(&self) -> Check {
        let value = sysctl("unprivileged_bpf_disabled");
        Check::ok(
            "unprivileged_bpf_disabled",
            "eBPF for others",
            match value.as_deref() {
                Some("0") => "kernel.unprivileged_bpf_disabled is 0; goprof needs CAP_BPF anyway",
                Some("1") => "off until reboot; does not concern who has CAP_BPF",
                Some(_) => "off; does not concern who has CAP_BPF",
                None => "this kernel has no kernel.unprivileged_bpf_disabled",
            },
        )
    }

    pub(super) fn paranoid(&self) -> Check {
        self.judge_paranoid(sysctl("perf_event_paranoid").as_deref())
    }

    fn judge_paranoid(&self, value: Option<&str>) -> Check {
        let check = |found: String| Check::ok("perf_event_paranoid", "perf_event_paranoid", found);
        let Some(level) = value.and_then(|value| value.parse::<i32>().ok()) else {
            return check("no such setting: this kernel has no perf events".into())
                .fail("use a kernel built with CONFIG_PERF_EVENTS");
        };
        if level <= 0 {
            check(format!("{level}: anybody may sample a CPU"))
        } else if self.has(CAP_PERFMON) || self.has(CAP_SYS_ADMIN) {
            check(format!("{level}: does not concern who has CAP_PERFMON"))
        } else {
            check(format!("{level}: sampling a whole CPU takes CAP_PERFMON"))
                .warn("give goprof CAP_PERFMON; eBPF needs that whatever the setting")
        }
    }
}

/// The text of a setting below `kernel.`.
pub(super) fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn rights(bits: &[u32], uid: u32) -> Rights {
        Rights {
            effective: bits.iter().fold(0, |mask, bit| mask | 1 << bit),
            is_root: uid == 0,
            first_user_namespace: true,
            seccomp: 0,
        }
    }

    #[test]
    fn the_missing_capability_is_named() {
        let check = rights(&[], 1000).required();
        assert_eq!(check.status, Status::Fail);
        assert_eq!(check.found, "CAP_BPF and CAP_PERFMON are missing");
        let remedy = check.remedy.unwrap();
        assert!(
            remedy.contains("sudo") && remedy.contains("setcap"),
            "{remedy}"
        );

        let check = rights(&[CAP_BPF], 0).required();
        assert_eq!(check.found, "CAP_PERFMON is missing");
        assert!(check.remedy.unwrap().contains("--cap-add"));
    }

    #[test]
    fn the_old_capability_for_everything_is_enough() {
        let admin = rights(&[CAP_SYS_ADMIN], 0);
        assert_eq!(admin.required().status, Status::Ok);
        let statuses: Vec<_> = admin.optional().iter().map(|check| check.status).collect();
        // It reads neither other users' processes nor closed files.
        assert_eq!(statuses, [Status::Warn, Status::Ok, Status::Warn]);
        let both = rights(&[CAP_BPF, CAP_PERFMON], 1000);
        assert_eq!(both.required().status, Status::Ok);
    }

    #[test]
    fn paranoia_concerns_those_without_the_capability() {
        let (some, none) = (rights(&[CAP_PERFMON], 0), rights(&[], 0));
        assert_eq!(some.judge_paranoid(Some("4")).status, Status::Ok);
        assert_eq!(none.judge_paranoid(Some("2")).status, Status::Warn);
        assert_eq!(none.judge_paranoid(Some("-1")).status, Status::Ok);
        assert_eq!(some.judge_paranoid(None).status, Status::Fail);
    }

    #[test]
    fn capabilities_of_another_user_namespace_do_not_count() {
        let mut all = rights(&[CAP_SYS_ADMIN], 0);
        assert_eq!(all.user_namespace().status, Status::Ok);
        all.first_user_namespace = false;
        assert_eq!(all.user_namespace().status, Status::Fail);
    }
}
