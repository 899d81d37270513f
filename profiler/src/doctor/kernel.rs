//! Kernel: its version, what it was built with and what it lets eBPF do. Tries
//! a map and a few programs of two instructions, which are gone at once.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
};

use aya::{
    maps::MapType,
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};

use super::{Check, rights::Rights, rights::sysctl};

/// What goprof's programs call, and the Linux that brought it.
const HELPERS: [(BpfHelper, &str, Version); 6] = [
    (BpfHelper::BPF_FUNC_loop, "bpf_loop", (5, 17)),
    (
        BpfHelper::BPF_FUNC_task_pt_regs,
        "bpf_task_pt_regs",
        (5, 15),
    ),
    (
        BpfHelper::BPF_FUNC_ringbuf_output,
        "bpf_ringbuf_output",
        (5, 8),
    ),
    (
        BpfHelper::BPF_FUNC_probe_read_user,
        "bpf_probe_read_user",
        (5, 5),
    ),
    (
        BpfHelper::BPF_FUNC_probe_read_kernel,
        "bpf_probe_read_kernel",
        (5, 5),
    ),
    (BpfHelper::BPF_FUNC_get_stack, "bpf_get_stack", (4, 18)),
];

/// The oldest Linux that has all of it.
const OLDEST: Version = (5, 17);
/// The first Linux that counts eBPF's memory by cgroup, not against
/// RLIMIT_MEMLOCK.
const NO_MEMLOCK: Version = (5, 11);
/// What the maps take, roughly: mostly the ring buffer.
const MAP_BYTES: u64 = 16 << 20;
/// How far into the kernel's symbols code is looked for: before it come some
/// hundred per-CPU offsets. All of them would take 100 ms.
const MAX_KALLSYMS_LINES: usize = 10_000;

/// Major and minor.
type Version = (u32, u32);

fn release() -> String {
    sysctl("osrelease").unwrap_or_default()
}

fn parse_release(text: &str) -> Option<Version> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn version() -> Check {
    judge_version(&release())
}

fn judge_version(release: &str) -> Check {
    let check = |found: String| Check::ok("kernel_version", "kernel", found);
    let Some(version) = parse_release(release) else {
        return check("its version cannot be read".into()).warn("mount /proc whole");
    };
    let missing: Vec<String> = HELPERS
        .iter()
        .filter(|(_, _, since)| version < *since)
        .map(|(_, name, (major, minor))| format!("{name} ({major}.{minor})"))
        .collect();
    let remedy = format!("run Linux {}.{} or later", OLDEST.0, OLDEST.1);
    if missing.is_empty() {
        check(format!("Linux {release}"))
    } else if version < (5, 8) {
        let missing = missing.join(", ");
        check(format!("Linux {release} has no {missing}")).fail(remedy)
    } else {
        // Distributions carry newer eBPF into older kernels: the try decides.
        let missing = missing.join(", ");
        check(format!(
            "Linux {release} came without {missing}; whether this one has it shows below"
        ))
        .warn(remedy)
    }
}

pub(super) fn btf() -> Check {
    let path = "/sys/kernel/btf/vmlinux";
    judge_btf(path, File::open(path).map(drop))
}

fn judge_btf(path: &str, opened: io::Result<()>) -> Check {
    let check = |found: String| Check::ok("btf", "kernel types (BTF)", found);
    match opened {
        Ok(()) => check(path.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            check(format!("there is no {path}")).fail(
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' are; \
                 in a container mount /sys",
            )
        }
        Err(error) => check(format!("cannot read {path}: {error}"))
            .fail("let goprof read it; in a container mount /sys"),
    }
}

pub(super) fn lockdown() -> Check {
    judge_lockdown(
        fs::read_to_string("/sys/kernel/security/lockdown")
            .ok()
            .as_deref(),
    )
}

/// The mode in force stands in brackets (`security/lockdown/lockdown.c`).
fn judge_lockdown(text: Option<&str>) -> Check {
    let check = |found: &str| Check::ok("lockdown", "lockdown", found);
    let mode = text
        .and_then(|text| text.split_once('['))
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(mode, _)| mode);
    match mode {
        None | Some("none") => check("none"),
        Some("integrity") => check("integrity, which lets eBPF read"),
        Some(mode) => check(&format!("{mode}, which forbids eBPF to read the kernel")).fail(
            "start the kernel with lockdown=integrity or without lockdown=; it cannot be \
             lowered while the machine runs",
        ),
    }
}

pub(super) fn ring_buffer(rights: &Rights) -> Check {
    let tried = is_map_supported(MapType::RingBuf).map_err(|error| error.io_error);
    judge_ring_buffer(tried, rights)
}

fn judge_ring_buffer(tried: io::Result<bool>, rights: &Rights) -> Check {
    let check = |found: String| Check::ok("ring_buffer", "eBPF maps", found);
    match tried {
        Ok(true) => check("a ring buffer was made".into()),
        Ok(false) => {
            check("the kernel has no eBPF ring buffers".into()).fail("run Linux 5.8 or later")
        }
        Err(error) => {
            let (cause, remedy) = refusal("bpf", &error, rights);
            check(cause).fail(remedy)
        }
    }
}

pub(super) fn helpers(rights: &Rights) -> Check {
    let check = |found: String| Check::ok("helpers", "eBPF programs", found);
    let mut missing = Vec::new();
    for (helper, name, (major, minor)) in HELPERS {
        match is_helper_supported(ProgramType::PerfEvent, helper) {
            Ok(true) => {}
            Ok(false) => missing.push(format!("{name} (Linux {major}.{minor})")),
            Err(ProgramError::SyscallError(error)) => {
                let (cause, remedy) = refusal("bpf", &error.io_error, rights);
                return check(cause).fail(remedy);
            }
            Err(error) => {
                return check(error.to_string()).fail("report this as a bug of goprof's");
            }
        }
    }
    if missing.is_empty() {
        check("they load, and may call what goprof's call".into())
    } else {
        check(format!("they may not call {}", missing.join(", ")))
            .fail("run Linux 5.17 or later, without lockdown=confidentiality")
    }
}

/// Why the kernel refused a system call, and what to do.
pub(super) fn refusal(call: &str, error: &io::Error, rights: &Rights) -> (String, String) {
    let missing = rights.missing();
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if !missing.is_empty() => (
            format!("{call} is forbidden without {}", missing.join(" and ")),
            "see to the capabilities above".into(),
        ),
        Some(libc::EPERM | libc::EACCES) if !rights.count() => (
            format!("{call} is forbidden in this user namespace"),
            "see to the user namespace above".into(),
        ),
        Some(libc::EPERM | libc::ENOSYS) if rights.is_filtered() => (
            format!("the seccomp filter forbids {call}"),
            "start the container with --security-opt seccomp=unconfined, or with a profile that \
             allows bpf and perf_event_open (Kubernetes: seccompProfile)"
                .into(),
        ),
        Some(libc::EPERM | libc::EACCES) => (
            format!("{call} is forbidden, and not for want of capabilities"),
            "look for a policy (SELinux, AppArmor) in the audit log: journalctl -k | grep -i denied"
                .into(),
        ),
        Some(libc::ENOSYS) => (
            format!("the kernel has no {call}"),
            "use a kernel built with CONFIG_BPF_SYSCALL and CONFIG_PERF_EVENTS".into(),
        ),
        Some(libc::EMFILE | libc::ENFILE) => (
            "too many files are open".into(),
            "raise the limit: ulimit -n 65536".into(),
        ),
        Some(libc::ENOMEM) => (
            format!("{call} finds no memory"),
            "raise the memory limit of the cgroup that goprof runs in".into(),
        ),
        _ => (
            format!("{call} fails: {error}"),
            "look for the cause in the kernel's log: dmesg".into(),
        ),
    }
}

pub(super) fn locked_memory() -> Check {
    // SAFETY: fills a structure of our own.
    let limit = unsafe {
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit);
        limit.rlim_cur
    };
    judge_locked_memory(parse_release(&release()), limit)
}

fn judge_locked_memory(version: Option<Version>, limit_bytes: u64) -> Check {
    let check = |found: String| Check::ok("memlock", "locked memory", found);
    let limit = match limit_bytes {
        libc::RLIM_INFINITY => "no limit".to_owned(),
        bytes => format!("limit {} kB", bytes / 1024),
    };
    if version.is_none_or(|version| version >= NO_MEMLOCK) {
        check(format!("{limit}; does not concern eBPF since Linux 5.11"))
    } else if limit_bytes < MAP_BYTES {
        check(format!("{limit}, and eBPF maps count against it")).warn("ulimit -l unlimited")
    } else {
        check(limit)
    }
}

pub(super) fn symbols() -> Check {
    let restrict = sysctl("kptr_restrict").unwrap_or_default();
    match File::open("/proc/kallsyms") {
        Ok(file) => judge_symbols(BufReader::new(file), &restrict),
        Err(error) if error.kind() == io::ErrorKind::NotFound => symbols_check(
            "there is no /proc/kallsyms; kernel frames would have no names",
        )
        .warn("use a kernel built with CONFIG_KALLSYMS; or leave kernel frames out: --no-kernel"),
        Err(error) => symbols_check(&format!(
            "cannot read /proc/kallsyms: {error}; kernel frames would have no names"
        ))
        .warn("run goprof as root; or leave kernel frames out: --no-kernel"),
    }
}

fn symbols_check(found: &str) -> Check {
    Check::ok("kallsyms", "kernel names", found)
}

/// Who may not see addresses is shown zeros: everybody where kptr_restrict is
/// 2, else who has no CAP_SYSLOG (`kallsyms_show_value`, kernel/ksyms_common.c).
fn judge_symbols(text: impl BufRead, restrict: &str) -> Check {
    let code = text
        .lines()
        .take(MAX_KALLSYMS_LINES)
        .map_while(Result::ok)
        .find(|line| matches!(line.split(' ').nth(1), Some("t" | "T")));
    let is_shown = code.is_some_and(|line| {
        let address = line.split(' ').next().unwrap_or_default();
        address.bytes().any(|digit| digit != b'0')
    });
    if is_shown {
        symbols_check("in /proc/kallsyms")
    } else {
        let found = format!(
            "hidden (kernel.kptr_restrict is {restrict}); kernel frames would have no names"
        );
        symbols_check(&found).warn(match restrict {
            "0" | "1" => {
                "run goprof as root, or give it CAP_SYSLOG; or leave kernel frames out: --no-kernel"
            }
            _ => "sysctl kernel.kptr_restrict=1; or leave kernel frames out: --no-kernel",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Status, place::OwnStatus};
    use super::*;

    fn rights(effective: u64, seccomp: u32) -> Rights {
        Rights::of(&OwnStatus {
            uid: 0,
            effective,
            seccomp,
        })
    }

    fn refused(errno: i32, rights: &Rights) -> String {
        let (cause, remedy) = refusal("bpf", &io::Error::from_raw_os_error(errno), rights);
        format!("{cause}; {remedy}")
    }

    #[test]
    fn releases_are_read() {
        assert_eq!(parse_release("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(parse_release("5.4"), Some((5, 4)));
        assert_eq!(parse_release("6.1-rc1"), Some((6, 1)));
        assert_eq!(parse_release("linux"), None);
        assert_eq!(parse_release(""), None);
    }

    #[test]
    fn an_old_kernel_is_told_what_it_lacks() {
        assert_eq!(judge_version("5.17.0").status, Status::Ok);
        assert_eq!(judge_version("6.1.0-arch").status, Status::Ok);
        let rhel = judge_version("5.14.0-427.el9.x86_64");
        assert_eq!(rhel.status, Status::Warn);
        assert!(rhel.found.contains("bpf_loop (5.17)"), "{}", rhel.found);
        assert!(rhel.found.contains("bpf_task_pt_regs (5.15)"));
        assert!(!rhel.found.contains("ringbuf"));
        let old = judge_version("5.4.0-150-generic");
        assert_eq!(old.status, Status::Fail);
        assert!(old.found.contains("bpf_ringbuf_output (5.8)"));
        assert_eq!(judge_version("").status, Status::Warn);
    }

    #[test]
    fn lockdown_modes_are_told_apart() {
        let status = |text| judge_lockdown(Some(text)).status;
        assert_eq!(judge_lockdown(None).status, Status::Ok);
        assert_eq!(status("[none] integrity confidentiality\n"), Status::Ok);
        assert_eq!(status("none [integrity] confidentiality\n"), Status::Ok);
        assert_eq!(status("none integrity [confidentiality]\n"), Status::Fail);
    }

    #[test]
    fn missing_types_are_told_from_unreadable_ones() {
        let judge = |errno| judge_btf("/p", Err(io::Error::from_raw_os_error(errno)));
        assert!(judge(libc::ENOENT).remedy.unwrap().contains("CONFIG_"));
        assert!(judge(libc::EACCES).found.contains("cannot read"));
        assert_eq!(judge_btf("/p", Ok(())).status, Status::Ok);
    }

    #[test]
    fn a_refusal_is_traced_to_its_cause() {
        let (none, all) = (rights(0, 0), rights(u64::MAX, 0));
        let filtered = rights(u64::MAX, 2);
        assert!(refused(libc::EPERM, &none).contains("CAP_BPF and CAP_PERFMON"));
        assert!(refused(libc::EPERM, &filtered).contains("seccomp"));
        assert!(refused(libc::ENOSYS, &filtered).contains("seccomp"));
        assert!(refused(libc::ENOSYS, &all).contains("CONFIG_BPF_SYSCALL"));
        assert!(refused(libc::EPERM, &all).contains("SELinux"));
        assert!(refused(libc::EMFILE, &all).contains("ulimit -n"));
    }

    #[test]
    fn a_ring_buffer_is_made_or_missed() {
        let all = rights(u64::MAX, 0);
        assert_eq!(judge_ring_buffer(Ok(true), &all).status, Status::Ok);
        let missing = judge_ring_buffer(Ok(false), &all);
        assert_eq!(missing.status, Status::Fail);
        assert!(missing.remedy.unwrap().contains("5.8"));
    }

    #[test]
    fn locked_memory_matters_to_old_kernels_only() {
        let status = |version, limit| judge_locked_memory(Some(version), limit).status;
        assert_eq!(status((5, 11), 65536), Status::Ok);
        assert_eq!(status((5, 10), 65536), Status::Warn);
        assert_eq!(status((5, 10), libc::RLIM_INFINITY), Status::Ok);
    }

    #[test]
    fn hidden_symbols_are_noticed() {
        let shown = "0000000000000000 D __per_cpu_start\nffffffff81000000 T _text\n";
        let hidden = "0000000000000000 D __per_cpu_start\n0000000000000000 T _text\n";
        assert_eq!(judge_symbols(shown.as_bytes(), "0").status, Status::Ok);
        let check = judge_symbols(hidden.as_bytes(), "2");
        assert_eq!(check.status, Status::Warn);
        assert!(check.found.contains("kptr_restrict is 2"));
        assert!(check.remedy.unwrap().contains("sysctl"));
        let check = judge_symbols(&b""[..], "1");
        assert!(check.remedy.unwrap().contains("CAP_SYSLOG"));
    }
}
